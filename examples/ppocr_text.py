"""What a page says: PP-OCR's ONNX files, read into PyTorch and run on Hubel's kernels.

    pip install -c constraints.txt 'hubel[examples]'
    pip install --no-deps rapidocr-onnxruntime
    python examples/ppocr_text.py [IMAGE]

Three networks, as Paddle's authors have written them (Du et al., "PP-OCR", arXiv 2009.09941, version 4): one finds the
lines of text, one says whether a line stands on its head, one reads it. The files lie in the package
rapidocr-onnxruntime, of which only they are read; nothing is downloaded. Each runs in ONNX Runtime, too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from parts import Compared, compare, folder_of

FILES = {
    "detection": "ch_PP-OCRv4_det_infer.onnx",
    "direction": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "recognition": "ch_PP-OCRv4_rec_infer.onnx",
}
# Pixels above this belong to text; a box is as far around them as the authors' ratio says.
THRESHOLD, AROUND = 0.3, 1.6
SMALLEST = 480
LINES = ("Hubel and Wiesel, 1962", "Receptive fields, binocular", "interaction: 3x3, 5x5, 7x7")


def file(task: str) -> Path:
    return folder_of("rapidocr_onnxruntime") / "models" / FILES[task]


def network(task: str) -> nn.Module:
    return hubel.convert.resolve(str(file(task)), networks={}).network


def in_onnxruntime(task: str) -> Any:
    """The same file in its own runtime, as a function of tensors."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(file(task), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def alphabet() -> list[str]:
    """What the numbers of the recognition stand for: 0 is CTC's blank, the last one a space."""
    onnx: Any = importlib.import_module("onnx")
    notes = {entry.key: entry.value for entry in onnx.load(file("recognition")).metadata_props}
    return ["", *notes["character"].splitlines(), " "]


def page() -> Tensor:
    """(3, H, W), 0 to 255: three lines of text that are written here, black on light grey."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (640, 480), (225, 225, 220))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=40)
    for number, line in enumerate(LINES):
        pen.text((40, 60 + 120 * number), line, fill=(20, 20, 30), font=font)
    return from_picture(picture)


def from_picture(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float()


def normalised(image: Tensor) -> Tensor:
    """(1, 3, H, W) from -1 to 1, blue first: as the networks were trained."""
    return (image.flip(0)[None] / 255 - 0.5) / 0.5


def fitted(image: Tensor) -> Tensor:
    """At sides of a multiple of 32, which the detection needs; small pictures enlarged, so that letters are."""
    scale = max(1.0, SMALLEST / min(image.shape[1:]))
    sizes = [max(32, round(scale * side / 32) * 32) for side in image.shape[1:]]
    return F.interpolate(image[None], size=sizes, mode="bilinear", align_corners=False)[0]


def boxes(probability: Tensor) -> list[tuple[int, int, int, int]]:
    """Left, top, right, below of each line of text, from the top. probability: (H, W) of being text."""
    ndimage: Any = importlib.import_module("scipy.ndimage")
    H, W = probability.shape
    marked, _ = ndimage.label(probability.numpy() > THRESHOLD)
    found = []
    for rows, columns in ndimage.find_objects(marked):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) < 3:
            continue
        more = round(height * width * AROUND / (2 * (height + width)))
        box = (columns.start - more, rows.start - more, columns.stop + more, rows.stop + more)
        found.append((max(box[0], 0), max(box[1], 0), min(box[2], W), min(box[3], H)))
    return sorted(found, key=lambda box: (box[1], box[0]))


def cut(image: Tensor, box: tuple[int, int, int, int], width: int | None = None) -> Tensor:
    """(1, 3, 48, W): a line at the height that the networks read, normalised; squeezed or padded to `width`."""
    left, top, right, below = box
    line = image[None, :, top:below, left:right]
    wide = max(8, round(48 * (right - left) / (below - top)))
    wide = min(wide, width or wide)
    line = normalised(F.interpolate(line, size=(48, wide), mode="bilinear", align_corners=False)[0])
    return line if width is None else F.pad(line, (0, width - wide))


def text_of(steps: Tensor, letters: list[str]) -> str:
    """CTC's reading of (steps, letters): the likeliest of each step, repetitions and blanks left out."""
    best = steps.argmax(1)
    new = torch.ones_like(best, dtype=torch.bool)
    new[1:] = best[1:] != best[:-1]
    return "".join(letters[number] for number in best[new].tolist()).strip()


def run(image: Tensor) -> tuple[list[str], list[Compared]]:
    """The lines of text in an image, and how far each network is from ONNX Runtime."""
    image = fitted(image)
    nets = {task: network(task) for task in FILES}
    theirs = {task: in_onnxruntime(task) for task in FILES}
    letters, read, compared = alphabet(), [], []

    def ask(task: str, x: Tensor) -> Tensor:
        answer, how = compare(nets[task], x, theirs[task], f"onnxruntime ({task})")
        compared.append(how)
        return answer

    for box in boxes(ask("detection", normalised(image))[0, 0]):
        upright, turned = ask("direction", cut(image, box, 192))[0].tolist()
        line = cut(image, box)
        if turned > 0.9 > upright:
            line = line.flip(2, 3)
        read.append(text_of(ask("recognition", line)[0], letters))
    return read, compared


def main() -> None:
    if len(sys.argv) > 1:
        from PIL import Image

        image = from_picture(Image.open(sys.argv[1]))
    else:
        image = page()
    lines, compared = run(image)
    print("\n".join(lines))
    for how in {how.against: how for how in compared}.values():
        print(how)


if __name__ == "__main__":
    main()
