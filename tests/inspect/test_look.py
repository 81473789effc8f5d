"""All analyses in one go: shared pass, profiles, kept results, interruption, time budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.cli import main
from hubel.errors import UnknownNameError
from hubel.inspect import ANALYSES, store
from hubel.inspect.look import ORDER
from hubel.inspect.profiles import PROFILES
from hubel.records import Record
from tests.inspect.nets import build, same_state, state_of

CHEAP = ["kernels", "top_patches", "dead_kernels", "similarity", "edges"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def x_of(n: int = 70) -> torch.Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_tables_name_what_there_is() -> None:
    assert set(ORDER) | {"one_number", "ablation"} == set(ANALYSES)
    for profile in PROFILES.values():
        assert set(profile.options) | set(profile.passes) <= set(ORDER)


def test_everything_that_applies_runs_and_the_rest_says_why() -> None:
    net, x, y = build("residual"), x_of(), torch.arange(70) % 3
    before = state_of(net)
    found = inspect.look(net, x, y)
    assert same_state(before, state_of(net))
    assert [record.id for record in found.records] == list(ORDER) and found.status == "complete"
    for record in found.records:
        assert record.status in ("ok", "not_applicable"), (record.id, record.reason)
    assert [r.id for r in found.records if r.status != "ok"] == ["training_history"]
    assert found.sweep is not None and found.sweep.complete
    assert found.sampled[-1] == "--profile full looks at all of it, and goes on where it was stopped"
    assert inspect.estimate(net, x) > 0


def test_without_images_only_weights_speak() -> None:
    found = inspect.look(build("residual"), shape=(3, 12, 12))
    by_id = {record.id: record for record in found.records}
    assert by_id["kernels"].status == by_id["receptive_field"].status == by_id["dead_kernels"].status == "ok"
    assert by_id["top_patches"].reason == "it needs images; none were given: --data, or images= in Python"


def test_one_image_without_a_label_is_told_where_it_is_too_little() -> None:
    found = inspect.look(build("residual"), x_of(1))
    assert found.status == "complete"
    for record in found.records:
        assert record.status in ("ok", "not_applicable", "insufficient_data"), (record.id, record.reason)
        assert record.status == "ok" or record.reason
    by_id = {record.id: record for record in found.records}
    assert by_id["top_patches"].status == by_id["cost"].status == "ok"
    assert by_id["similarity"].status != "ok" and "64" in (by_id["similarity"].reason or "")


def test_a_network_without_convolutions_is_told_so() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
    found = inspect.look(net, x_of(8))
    assert found.status == "complete"
    by_id = {record.id: record for record in found.records}
    for name in ("kernels", "top_patches", "dead_kernels", "redundancy", "tuning_curves"):
        assert by_id[name].status == "not_applicable" and "convolution" in (by_id[name].reason or ""), by_id[
            name
        ].reason


def test_results_are_kept_and_read_again(cache: Path) -> None:
    net, x = build("residual"), x_of()
    first = inspect.look(net, x, only=CHEAP)
    second = inspect.look(net, x, only=CHEAP)
    assert second.sweep is None, "nothing was run again"
    for one, two in zip(first.records, second.records, strict=True):
        assert one.rows == two.rows and one.seconds == two.seconds
        assert all(np.array_equal(array.data, two.arrays[key].data) for key, array in one.arrays.items())
    assert (cache / "inspect").stat().st_mode & 0o077 == 0
    with torch.no_grad():
        net.conv1.weight[0] += 1  # type: ignore[union-attr,operator,index]
    assert inspect.look(net, x, only=["dead_kernels"]).sweep is not None, "other weights are another model"
    assert store.clear() == 2 and store.clear() == 0


def test_a_folder_that_others_can_read_is_not_used(cache: Path) -> None:
    (cache / "inspect").mkdir(parents=True)
    os.chmod(cache / "inspect", 0o755)  # noqa: PTH101
    inspect.look(build("residual"), x_of(8), only=["kernels"])
    assert list((cache / "inspect").iterdir()) == []


def test_ctrl_c_keeps_what_is_done_and_the_next_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build("residual"), x_of()
    ran: list[int] = []
    forward = net.forward

    def counted(batch: torch.Tensor) -> torch.Tensor:
        ran.append(len(batch))
        return forward(batch)

    def stop(done: float, total: float, stage: str) -> None:
        if stage.startswith("running") and done > 1.4:
            raise KeyboardInterrupt

    monkeypatch.setattr(net, "forward", counted)
    found = inspect.look(net, x, only=CHEAP, progress=stop)
    assert found.status == "interrupted" and [record.id for record in found.records] == ["kernels"]
    before = sum(n for n in ran if n > 1)
    ran.clear()
    again = inspect.look(net, x, only=["kernels", "top_patches"])
    assert again.status == "complete" and again.sweep is not None
    assert before == 32 and sum(n for n in ran if n > 1) == 70 - 32
    monkeypatch.undo()
    whole = inspect.look(net, x, only=["top_patches"], keep=False).records[0]
    for row, other in zip(again.records[1].rows, whole.rows, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_a_time_budget_leaves_the_rest_out_and_says_so() -> None:
    found = inspect.look(build("residual"), x_of(8), only=["kernels", "edges"], time_budget=-1.0)
    assert [record.status for record in found.records] == ["insufficient_data"] * 2
    assert found.records[1].reason == "the time budget of -1 s was spent; --only edges runs it alone"


def test_an_analysis_that_fails_takes_no_other_with_it() -> None:
    def broken(net: nn.Module, *args: Any, **kwargs: Any) -> Record:
        raise ZeroDivisionError("of all things")

    table = {**ANALYSES, "edges": broken}
    found = inspect.look(build("residual"), x_of(8), only=["edges", "kernels"], analyses=table)
    assert [(r.status, r.reason) for r in found.records] == [
        ("failed", "ZeroDivisionError: of all things"),
        ("ok", None),
    ]


def test_images_are_drawn_where_there_are_more_than_the_profile_takes() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = inspect.look(net, torch.randn(600, 1, 2, 2), only=["dead_kernels"])
    assert found.sampled[0] == "500 of 600 images were drawn with seed 0"
    assert found.records[0].method["params"]["images"] == 500
    one = inspect.look(net, torch.randn(1, 1, 4, 4))
    assert {r.id: r.status for r in one.records}["similarity"] == "insufficient_data"


def test_unknown_words_answer_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match='unknown analysis "kernel". Did you mean "kernels"'):
        inspect.look(build("plain"), only=["kernel"])
    with pytest.raises(UnknownNameError, match='unknown profile "quik". Did you mean "quick"'):
        inspect.look(build("plain"), profile="quik")


def test_the_command_that_clears_the_cache_clears_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    inspect.look(build("plain"), x_of(4), only=["kernels"])
    with pytest.raises(SystemExit):
        main(["cache", "--clear"])
    assert "removed what was seen of 1 network\n" in capsys.readouterr().out
    assert store.clear() == 0
