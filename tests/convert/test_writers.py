"""Exporting: what is written gives what the network gives, and what does not is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hubel.convert import resolve
from hubel.convert.writers import WRITERS, Captured, export
from hubel.errors import ModelError, UnknownNameError

pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")
SHAPE = (3, 12, 10)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_written_is_a_model_again(suffix: str, tmp_path: Path) -> None:
    net, path = network(), tmp_path / f"net{suffix}"
    written = export(net, SHAPE, path)
    assert net.training  # as it was
    assert (written.path, written.batch) == (path, None) and written.error < 1e-5
    assert f"agrees with {WRITERS[suffix].against} on random input" in str(written)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    loaded = resolve(str(path), networks={})
    assert loaded.input_shape == SHAPE and loaded.batch is None
    for n in (1, 4):
        x = torch.randn(n, *SHAPE)
        with torch.no_grad():
            torch.testing.assert_close(loaded.network(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def test_onnxruntime_runs_it_with_any_batch(tmp_path: Path) -> None:
    net = network().eval()
    export(net, SHAPE, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 5):
        x = torch.randn(n, *SHAPE)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(y, net(x).numpy(), rtol=1e-4, atol=1e-5)


class Fixed(nn.Module):
    """Takes two images at a time, and no other number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3 * 12 * 10) * 2


def test_a_network_of_one_batch_size_says_so(tmp_path: Path) -> None:
    written = export(Fixed(), SHAPE, tmp_path / "net.pt2")
    assert written.batch == 2 and "batches of 2" in str(written)


def test_what_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("what was there")
    good = WRITERS[".pt2"]

    def spoilt(captured: Captured, file: Path) -> None:
        other = network().eval()
        with torch.no_grad():
            other[0].weight.add_(0.01)  # type: ignore[operator]
        program = torch.export.export(other, (captured.example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        good.write(replace(captured, program=program), file)

    monkeypatch.setitem(WRITERS, ".pt2", replace(good, write=spoilt))
    with pytest.raises(
        ModelError, match=r"within 0.0001. Received: a relative error of .* in torch. .*was not written"
    ):
        export(network(), SHAPE, path)
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("found", [[], [np.full((2, 5), np.nan)], [np.zeros((2, 4))]])
def test_numbers_that_are_none_and_other_shapes_do_not_agree(
    found: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITERS, ".pt2", replace(WRITERS[".pt2"], open=lambda path: lambda x: found))
    with pytest.raises(ModelError, match="a relative error of inf"):
        export(network(), SHAPE, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


class Torn(nn.Module):
    """Decides by a number of the image, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x[0, 0, 0, 0].item() > 0 else -x


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r'unknown ending of an exported file "\.tflite"\. Known: \.onnx, \.pt2, \.hubel'
    ):
        export(network(), SHAPE, tmp_path / "net.tflite")
    with pytest.raises(ModelError, match="into a folder that exists"):
        export(network(), SHAPE, tmp_path / "none" / "net.pt2")
    with pytest.raises(ModelError, match="one that torch.export can capture. Received: Torn"):
        export(Torn(), SHAPE, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"torch.export can capture.*Sequential on \[2, 4, 12, 10\].*--input-size"):
        export(network(), (4, 12, 10), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
