"""CRNN: convolutions turn a line of text into columns, an LSTM reads them from both ends.

Shi, Bai, Yao, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition", arXiv 1507.05717. Names
are those of the implementation most weights are for, crnn.pytorch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, rows

# Blank (class 0 of CTC), ten digits and 26 letters.
CLASSES = 37
HEIGHT = 32


class LSTM(nn.Module):
    """An LSTM from either end (Hochreiter, Schmidhuber 1997). (steps, N, inside) → (steps, N, 2 · hidden).

    torch.nn.LSTM's parameters under its names, and its function; but torch.compile stops at that class, and goes
    through this one.
    """

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.inside, self.hidden = inside, hidden
        for end in ("", "_reverse"):
            shapes = {"weight_ih": (4 * hidden, inside), "weight_hh": (4 * hidden, hidden)}
            shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}
            for name, shape in shapes.items():
                # as torch draws them
                values = torch.empty(shape).uniform_(-(hidden**-0.5), hidden**-0.5)
                self.register_parameter(f"{name}_l0{end}", nn.Parameter(values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = x.new_zeros(2, x.shape[1], self.hidden)
        weights: list[torch.Tensor] = [*self.parameters()]
        # biases, one layer, no dropout, from either end, steps first
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, self.training, True, False)[0]

    def extra_repr(self) -> str:
        return f"{self.inside}, {self.hidden}, bidirectional=True"


class BidirectionalLSTM(nn.Module):
    """An LSTM from either end and a linear layer on both. (steps, N, inside) → (steps, N, out)."""

    def __init__(self, inside: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = LSTM(inside, hidden)
        self.embedding = nn.Linear(2 * hidden, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.rnn(x))


class CRNN(nn.Module):
    """images: (N, in_channels, 32, W), W >= 4. Returns logits (N, W // 4 + 1, num_classes): a CTC step a column.

    `ctc_loss` wants the steps first: `net(images).transpose(0, 1)`. hidden: width of the LSTMs.
    """

    def __init__(self, num_classes: int = CLASSES, in_channels: int = 1, hidden: int = 256) -> None:
        super().__init__()
        widths, normed = (64, 128, 256, 256, 512, 512, 512), (2, 4, 6)
        # From 32 pixels of height to one; the later two keep the columns apart.
        pools = {
            0: nn.MaxPool2d(2),
            1: nn.MaxPool2d(2),
            3: nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            5: nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
        }
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number, width in enumerate(widths):
            last = number == len(widths) - 1
            parts[f"conv{number}"] = nn.Conv2d(channels, width, 2 if last else 3, padding=0 if last else 1)
            if number in normed:
                parts[f"batchnorm{number}"] = nn.BatchNorm2d(width)
            parts[f"relu{number}"] = ReLU()
            if number in pools:
                parts[f"pooling{number}"] = pools[number]
            channels = width
        self.cnn = nn.Sequential(parts)
        self.rnn = nn.Sequential(BidirectionalLSTM(512, hidden, hidden), BidirectionalLSTM(hidden, hidden, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # (N, 512, 1, W') → (W', N, 512)
        columns = self.cnn(images).flatten(2).permute(2, 0, 1)
        return self.rnn(columns).transpose(0, 1)


CRNNS = rows(
    Network(
        name="crnn",
        factory=CRNN,
        input=(1, HEIGHT, 100),
        smallest=(HEIGHT, 4),
        num_classes=CLASSES,
        parameters=8_331_301,
        year=2015,
        source="Shi, Bai, Yao, An End-to-End Trainable Neural Network for Image-based Sequence Recognition",
        arxiv="1507.05717",
        names="crnn.pytorch",
        output="sequence",
        options={"hidden": "width of the LSTMs, 256"},
    )
)
