"""Where the faces are: MTCNN's three networks on a photograph, on Hubel's kernels.

    pip install -c constraints.txt 'hubel[examples]'
    pip install --no-deps facenet-pytorch
    python examples/mtcnn_faces.py [faces.png]

Zhang, Zhang, Li, Qiao, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", arXiv
1604.02878. The weights lie in the package facenet-pytorch, of which only these files are read; nothing is downloaded.
The first network looks at the photograph in many sizes and proposes, the second refuses most, the third decides and
points at eyes, nose and mouth. The whole cascade runs twice: on Hubel's kernels and on PyTorch's.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from parts import Compared, distance, folder_of

# What each stage keeps, and how much smaller each size of the photograph is than the one before: the authors' values.
THRESHOLDS = (0.6, 0.7, 0.7)
SCALE = 0.709
SMALLEST = 20
STRIDE, CELL = 2, 12


class Stage(nn.Module):
    """Convolutions with PReLU and pooling; then scores, boxes, and in the last stage five points.

    widths, kernels, pools: of the convolutions; a pool is (kernel, stride) or None. inside: numbers that the dense
    layer reads, 0 for the first stage, which is convolutional to its end and takes images of any size.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        kernels: tuple[int, ...],
        pools: tuple[tuple[int, int] | None, ...],
        inside: int = 0,
        dense: int = 0,
        outputs: tuple[int, ...] = (2, 4),
    ) -> None:
        super().__init__()
        channels, self.pools, self.inside = 3, pools, inside
        for number, (width, kernel) in enumerate(zip(widths, kernels, strict=True), 1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, kernel))
            self.add_module(f"prelu{number}", nn.PReLU(width))
            channels = width
        self.depth, last = len(widths), len(widths) + 1
        self.heads: list[str] = []
        if inside:
            self.add_module(f"dense{last}", nn.Linear(inside, dense))
            self.add_module(f"prelu{last}", nn.PReLU(dense))
            last += 1
        for number, width in enumerate(outputs, 1):
            head = nn.Linear(dense, width) if inside else nn.Conv2d(channels, width, 1)
            self.heads.append(f"{'dense' if inside else 'conv'}{last}_{number}")
            self.add_module(self.heads[-1], head)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W). Returns (probability of a face, box, points), each (N, n) or (N, n, H', W')."""
        for number, pool in enumerate(self.pools, 1):
            x = self.get_submodule(f"prelu{number}")(self.get_submodule(f"conv{number}")(x))
            if pool is not None:
                x = F.max_pool2d(x, *pool, ceil_mode=True)
        if self.inside:
            # columns first: the weights were trained that way
            x = x.permute(0, 3, 2, 1).reshape(-1, self.inside)
            number = self.depth + 1
            x = self.get_submodule(f"prelu{number}")(self.get_submodule(f"dense{number}")(x))
        scores, *others = (self.get_submodule(head)(x) for head in self.heads)
        return scores.softmax(1)[:, 1], *others


def stages() -> dict[str, nn.Module]:
    """The three networks with the weights of facenet-pytorch."""
    made = {
        "pnet": Stage((10, 16, 32), (3, 3, 3), ((2, 2), None, None)),
        "rnet": Stage((28, 48, 64), (3, 3, 2), ((3, 2), (3, 2), None), 576, 128),
        "onet": Stage((32, 64, 64, 128), (3, 3, 3, 2), ((3, 2), (3, 2), (2, 2), None), 1152, 256, (2, 4, 10)),
    }
    folder = folder_of("facenet_pytorch") / "data"
    for name, network in made.items():
        network.load_state_dict(hubel.convert.read_state_dict(folder / f"{name}.pt"))
    return {name: network.eval() for name, network in made.items()}


@dataclass(frozen=True)
class Faces:
    """boxes: (n, 4), left, top, right, below, in pixels; scores: (n,); points: (n, 5, 2), eyes, nose, mouth."""

    boxes: Tensor
    scores: Tensor
    points: Tensor


@torch.no_grad()
def detect(image: Tensor, nets: dict[str, nn.Module]) -> Faces:
    """image: (3, H, W), 0 to 255."""
    boxes = _refined(*_proposed(image, nets["pnet"]))
    scores, shifts = nets["rnet"](_crops(image, boxes, 24))
    kept = scores > THRESHOLDS[1]
    boxes, scores, shifts = boxes[kept], scores[kept], shifts[kept]
    best = _without_overlaps(boxes, scores, 0.7)
    boxes = _refined(boxes[best], shifts[best])
    scores, shifts, points = nets["onet"](_crops(image, boxes, 48))
    kept = scores > THRESHOLDS[2]
    boxes, scores, shifts, points = boxes[kept], scores[kept], shifts[kept], points[kept]
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    # five x, then five y, in shares of the box
    points = torch.stack([points[:, :5], points[:, 5:]], 2) * sides[:, None] + boxes[:, None, :2] - 1
    boxes = boxes + shifts * sides.repeat(1, 2)
    best = _without_overlaps(boxes, scores, 0.7, of_smaller=True)
    return Faces(boxes[best], scores[best], points[best])


def _proposed(image: Tensor, pnet: nn.Module) -> tuple[Tensor, Tensor]:
    """Boxes of the first stage in every size of the photograph, and how to move them."""
    H, W = image.shape[1:]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    scale = CELL / SMALLEST
    while min(H, W) * scale >= CELL:
        smaller = _resized(image[None], (int(H * scale + 1), int(W * scale + 1)))
        scores, shifts = pnet(smaller)
        y, x = (scores[0] >= THRESHOLDS[0]).nonzero(as_tuple=True)
        corner = torch.stack([x, y], 1) * STRIDE
        boxes = torch.cat([((corner + 1) / scale).floor(), ((corner + CELL) / scale).floor()], 1)
        best = _without_overlaps(boxes, scores[0, y, x], 0.5)
        found.append((boxes[best], scores[0, y, x][best], shifts[0, :, y, x].T[best]))
        scale *= SCALE
    boxes, scores, shifts = (torch.cat(part) for part in zip(*found, strict=True))
    best = _without_overlaps(boxes, scores, 0.7)
    return boxes[best], shifts[best]


def _refined(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Boxes moved as the network says, and made square around their middle."""
    boxes = boxes + shifts * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.max(1, keepdim=True).values
    corner = boxes[:, :2] + sides / 2 - longest / 2
    return torch.cat([corner, corner + longest], 1)


def _crops(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(n, 3, side, side): what each box holds of the photograph."""
    H, W = image.shape[1:]
    pieces = []
    for left, top, right, below in boxes.trunc().long().tolist():
        piece = image[:, max(top - 1, 0) : max(min(below, H), 1), max(left - 1, 0) : max(min(right, W), 1)]
        pieces.append(_resized(piece[None], (side, side)))
    return torch.cat(pieces) if pieces else image.new_zeros(0, 3, side, side)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Averaged to `size`, and from 0..255 to about -1..1."""
    return (F.interpolate(image, size=size, mode="area") - 127.5) / 128


def _without_overlaps(boxes: Tensor, scores: Tensor, most: float, of_smaller: bool = False) -> Tensor:
    """The best boxes, none of which covers more than `most` of a better one: of their union, or of the smaller."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rest, kept = scores.argsort(descending=True), []
    while len(rest):
        first, rest = rest[0], rest[1:]
        kept.append(first)
        low = torch.maximum(boxes[rest, :2], boxes[first, :2])
        common = (torch.minimum(boxes[rest, 2:], boxes[first, 2:]) - low).clamp(min=0).prod(1)
        whole = torch.minimum(areas[rest], areas[first]) if of_smaller else areas[rest] + areas[first] - common
        rest = rest[common / whole <= most]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def photograph() -> Tensor:
    """(3, 512, 512), 0 to 255: the astronaut Eileen Collins, by NASA, from scikit-image."""
    data: Any = importlib.import_module("skimage.data")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1).float()


def run() -> tuple[Faces, Compared]:
    """The faces, and the distance from the same cascade on PyTorch's kernels."""
    image, nets = photograph(), stages()
    with hubel.enabled() as log:
        faces = detect(image, nets)
    theirs = detect(image, nets)
    pairs = ((faces.boxes, faces.scores, faces.points), (theirs.boxes, theirs.scores, theirs.points))
    return faces, distance(*pairs, log, "PyTorch")


def draw(faces: Faces, path: str) -> None:
    """The photograph with boxes and points."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(photograph().permute(1, 2, 0).byte().numpy())
    pen = ImageDraw.Draw(picture)
    for box, points in zip(faces.boxes.tolist(), faces.points.tolist(), strict=True):
        pen.rectangle(tuple(box), outline="yellow", width=3)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill="red")
    picture.save(path)


def main() -> None:
    faces, compared = run()
    for box, score, points in zip(faces.boxes, faces.scores, faces.points, strict=True):
        where = ", ".join(f"{value:.0f}" for value in box.tolist())
        tilt = math.degrees(math.atan2(*(points[1] - points[0]).flip(0).tolist()))
        print(f"a face ({score:.1%}) at {where}, turned by {tilt:.0f}°")
    print(compared)
    if len(sys.argv) > 1:
        draw(faces, sys.argv[1])
        print(sys.argv[1])


if __name__ == "__main__":
    main()
