"""The linter: each planted fault is found under its code, a healthy network is clean, and exit codes follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hubel
from hubel.check import RULES, run
from hubel.cli import main
from hubel.errors import DataError, ModelError, UnknownNameError
from hubel.records import Document, Finding


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def x_of(n: int = 320) -> Tensor:
    return torch.randn(n, 1, 10, 10, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def plant(code: str) -> nn.Module:
    net: Any = Net()
    if code == "HB101":
        net.conv1.weight[[1, 4]] = 0
        net.conv1.bias[[1, 4]] = 0
    elif code == "HB102":
        net.bn.weight[2], net.bn.bias[2] = -1e-9, -1
    elif code == "HB103":
        net.conv2.bias[3] = -100
    elif code == "HB201":
        net.conv1.weight[5, 0, 0, 0] = 1e-42
    elif code == "HB301":
        net.conv1.weight[6], net.conv1.bias[6] = 2 * net.conv1.weight[0], 2 * net.conv1.bias[0]
    elif code == "HB401":
        net = nn.Sequential(nn.ConvTranspose2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nn.init.ones_(net[0].weight)
    return net


EXPECTED = {
    "HB101": ["conv1:1", "conv1:4"],
    "HB102": ["conv1:2"],
    "HB103": ["conv2:3"],
    "HB201": ["conv1:5"],
    "HB301": ["conv1:0", "conv1:6"],
    "HB401": ["0"],
}


def found_in(net: nn.Module, data: Any = None, **options: Any) -> list[Finding]:
    return hubel.check(net, data, keep=False, **options)  # type: ignore[operator]


@pytest.mark.parametrize("code", EXPECTED)
def test_each_planted_fault_is_found_and_nothing_else(code: str) -> None:
    found = found_in(plant(code), x_of(), ignore=["HB301"] if code == "HB401" else [])
    assert [(f.code, f.targets, f.decided) for f in found] == [(code, EXPECTED[code], True)]
    (finding,) = found
    assert finding.severity == "warning" and finding.remedy is not None and finding.remedy["text"]
    assert finding.docs == f"docs/methods.md#{code.lower()}" and len(finding.fingerprint) == 16
    checked = run(plant(code), x_of(), keep=False, ignore=["HB301"] if code == "HB401" else [])
    records = {record.id: record for record in checked.records}
    for evidence in finding.evidence:
        assert evidence["column"] in records[evidence["record"]].row(evidence["target"])
    assert checked.failed() and checked.undecided == 0


def test_a_healthy_network_is_clean() -> None:
    assert found_in(Net(), x_of()) == []
    assert not run(Net(), x_of(), keep=False).failed(strict=True)


def test_learned_weights_with_even_overlap_are_no_checkerboard_and_made_up_for_uneven_overlap_neither() -> None:
    even = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2), nn.ReLU())
    assert found_in(even, select=["HB401"]) == []
    made_up = nn.Sequential(nn.ConvTranspose2d(1, 1, 3, 2, bias=False))
    with torch.no_grad():  # a tent: every phase sums to one
        made_up[0].weight[0, 0] = torch.outer(torch.tensor([0.5, 1, 0.5]), torch.tensor([0.5, 1, 0.5]))  # type: ignore[index,operator]
    assert found_in(made_up, select=["HB401"]) == []


def test_words_and_effects() -> None:
    (finding,) = found_in(plant("HB101"), x_of())
    assert finding.message == (
        "2 of 8 kernels of conv1 have no weights (:1, :4): without them the outputs are the same bits."
    )
    (finding,) = found_in(plant("HB103"), x_of())
    assert finding.message == (
        "1 of 6 kernels of conv2 were zero at every place of all 320 images (:3); they may still fire in up to 0.9% of "
        "images like these."
    )
    assert finding.effect == {"accuracy": 0, "kl": 0, "how": "measured"}
    (finding,) = found_in(plant("HB201"), x_of())
    assert finding.message.startswith("conv1 has 1 denormal weight in 1 of 8 kernels (:5): numbers that change nothing")
    (finding,) = found_in(plant("HB301"), x_of())
    assert finding.effect is not None and finding.effect["how"] == "measured"
    assert finding.message == "1 pair of kernels of conv1 say the same (:0 and :6)."


def test_few_images_decide_nothing_that_rests_on_silence() -> None:
    checked = run(plant("HB103"), x_of(20), keep=False)
    assert [(f.code, f.severity, f.decided) for f in checked.findings] == [
        ("HB103", "warning", False),
        ("HB902", "note", True),
    ]
    assert checked.findings[1].message.startswith("20 images: what none of them showed may still happen in up to 13.9%")
    assert not checked.failed() and checked.failed(strict=True) and checked.undecided == 1


def test_labels_that_answers_do_not_follow_come_first_and_are_not_used() -> None:
    net: Any = plant("HB101").eval()
    x = x_of()
    with torch.no_grad():
        net.head.bias -= net(x).mean(0)  # so that all three answers are given
        y = net(x).argmax(1)
    shuffled = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(1))
    checked = run(net, (x, shuffled), keep=False)
    first = checked.findings[0]
    assert (first.code, first.severity, first.decided) == ("HB901", "error", True)
    assert "Labels and outputs may not be aligned:" in first.message
    redundancy = next(record for record in checked.records if record.id == "redundancy")
    assert all(row["merge_accuracy"] is None for row in redundancy.rows)
    assert "HB901" not in [f.code for f in found_in(net, (x, y))]
    assert "HB901" not in [f.code for f in found_in(net, (x, shuffled), random_weights=True)]


def test_fingerprints_know_the_structure_and_no_weights() -> None:
    (one,), (two,) = found_in(plant("HB201"), x_of()), found_in(plant("HB201"), x_of(300))
    assert one.fingerprint == two.fingerprint
    other: Any = plant("HB201")
    other.head = nn.Linear(6, 4)
    assert found_in(other, x_of())[0].fingerprint != one.fingerprint


def test_without_images_the_weights_speak_and_the_rest_is_named() -> None:
    checked = run(plant("HB101"), keep=False)
    assert [f.code for f in checked.findings] == ["HB101"]
    assert checked.unchecked["images"].startswith("none were given")


def test_codes_are_chosen_by_their_beginnings() -> None:
    net = plant("HB101")
    assert found_in(net, x_of(), select=["HB2", "hb4"]) == [] == found_in(net, x_of(), ignore=["HB1"])
    assert [f.code for f in found_in(net, x_of(), select=["HB1"])] == ["HB101"]
    with pytest.raises(UnknownNameError, match='unknown rule "HB7".* Known: HB101, HB102'):
        found_in(net, select=["HB7"])


def test_refusals() -> None:
    with pytest.raises(ModelError, match="A check is of a torch.nn.Module. Received: str. Pass the network itself."):
        found_in("net")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="A network to check has convolutions. Received: Flatten, which has none."):
        found_in(nn.Flatten())
    with pytest.raises(DataError, match=r"'imagenet' preprocessing is for 3 channels\. Received: images with 1\."):
        found_in(Net(), x_of(4), preprocess="imagenet")
    with pytest.raises(UnknownNameError, match='unknown preprocessing "unti"'):
        found_in(Net(), x_of(4), preprocess="unti")


def test_every_rule_is_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for code, rule in RULES.items():
        assert f"### {code}" in text and rule.__doc__


MODULE = """
import torch
from tests.check.test_rules import plant
def healthy(): return plant("")
def dead(): return plant("HB101")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planted_nets.py").write_text(MODULE)
    x = x_of(40).numpy()
    np.savez(tmp_path / "images.npz", images=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def exits(*words: str) -> int:
    with pytest.raises(SystemExit) as info:
        main(words)
    return int(info.value.code or 0)


def test_the_command_prints_findings_and_exits_by_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data", "images.npz", "--input-size", "1x10x10")
    assert exits("check", "planted_nets:healthy", *options) == 0
    assert "HB902 note" in capsys.readouterr().out
    assert exits("check", "planted_nets:dead", *options) == 1
    out = capsys.readouterr().out
    assert "HB101 warning: 2 of 8 kernels of conv1 have no weights" in out and "0 errors, 1 warnings, 1 notes" in out
    assert exits("check", "planted_nets:dead", *options, "--ignore", "HB101") == 0
    capsys.readouterr()
    assert exits("check", "planted_nets:dead", "--json") == 1
    body = json.loads(capsys.readouterr().out)
    assert [f["code"] for f in body["findings"]] == ["HB101"] and "images" in body["unchecked"]
    assert exits("check", "planted_nets:dead", "--select", "HB999") == 2
    assert 'error: unknown rule "HB999"' in capsys.readouterr().err
    assert exits("check", "no_such_module:net") == 2


def test_findings_can_be_kept(tmp_path: Path) -> None:
    checked = run(plant("HB301"), x_of(), keep=False)
    document = Document(
        model={
            "name": "net",
            "sha256": None,
            "weights": "file",
            "params": 1,
            "input": {"shape": [1, 1, 10, 10], "dtype": "float32"},
            "preprocess": None,
            "classes": None,
            "output": None,
        },
        data=None,
        settings={"profile": None, "seed": 0, "accuracy": "default", "threads": 1, "engine": "torch"},
        records=checked.records,
        findings=checked.findings,
    )
    document.save(tmp_path)
    assert Document.load(tmp_path).findings == checked.findings
