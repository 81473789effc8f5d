"""LeNet-5: the network that read handwritten digits on cheques.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998.
We depart from it as everyone has since: max instead of trainable average pooling, ReLU instead of a scaled tanh, every
map of conv2 sees every map of conv1 (the paper's table connects some), and a linear last layer with cross-entropy
instead of distances to drawn digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from hubel.errors import ModelError, unknown
from hubel.zoo.network import Network, initialise, rows

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class LeNet5(nn.Module):
    """Two convolutions find strokes and their parts, three linear layers decide which digit they make.

        image   1×28×28   padded to 32×32 by conv1, so that a stroke at the rim can be in the middle of a kernel
        conv1   6×28×28   6 kernels of 1×5×5          156 parameters
        pool1   6×14×14   the largest of each 2×2
        conv2  16×10×10   16 kernels of 6×5×5       2,416
        pool2  16×5×5     the largest of each 2×2
        fc1    120        400 numbers in           48,120
        fc2    84                                  10,164
        fc3    10         one score a class           850      → 61,706 in all

    images: (N, in_channels, image_size, image_size); image_size is 28, and fc1 as large as that needs.
    Returns scores (logits) of shape (N, num_classes), before any softmax.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        activation: Literal["relu", "tanh"] = "relu",
        image_size: int = 28,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if not isinstance(image_size, int) or image_size < 12:
            raise ModelError(
                f"image_size of lenet5 is a whole number of 12 or more. Received: {image_size!r}. Leave it out for 28."
            )
        act = ACTIVATIONS[activation]
        # The paper's 32×32 images have this rim of two pixels already.
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=2)
        self.act1 = act()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.act2 = act()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * ((image_size // 2 - 4) // 2) ** 2, 120)
        self.act3 = act()
        self.fc2 = nn.Linear(120, 84)
        self.act4 = act()
        self.fc3 = nn.Linear(84, num_classes)
        initialise(self, activation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.act1(self.conv1(images)))
        x = self.pool2(self.act2(self.conv2(x)))
        x = x.flatten(1)
        x = self.act3(self.fc1(x))
        x = self.act4(self.fc2(x))
        return self.fc3(x)


LENETS = rows(
    Network(
        name="lenet5",
        factory=LeNet5,
        input=(1, 28, 28),
        smallest=(28, 28),
        num_classes=10,
        parameters=61_706,
        year=1998,
        source="LeCun et al., Gradient-Based Learning Applied to Document Recognition; with ReLU and max pooling",
        options={"activation": "relu (default) or tanh", "image_size": "a side of the images, 28"},
    )
)
