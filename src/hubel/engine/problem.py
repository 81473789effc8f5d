"""What an algorithm is asked to do, and how it may be done.

    Problem    ConvSpec + direction + bias + dtype + layout + epilogue
    Policy     accuracy, determinism, threads

A problem's text is its spec's (grammar in `spec`), then `/input_gradient` or `/weight_gradient`, `/bias`, the dtype,
the layout and the epilogue, each only where it is not the default:

    n1c64o64i56x56k3x3s1p1/bias/bfloat16/residual+relu
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, Literal, TypeAlias, get_args

from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.spec import ConvSpec
from hubel.errors import HubelError, SpecError, unknown

LAYOUTS = ("planes", "channels_last", "strided")
# Bytes of a number in memory. Sums are float32, whatever is stored.
DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


class Direction(StrEnum):
    """Which of the three sums over the same index space is wanted."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"


@dataclass(frozen=True)
class Problem:
    """A convolution to be done: the sizes, the direction, whether a bias takes part, and the dtype of the data.

    bias: forward adds it; the weight gradient's kernel also writes the bias gradient; the input gradient has none.
    dtype: what input, weights, bias and output are stored as; weight and bias gradients are always float32, so that
    whoever needs them otherwise rounds them once. layout: how input and output lie; "channels_last" if channels
    are next to each other and pixels follow at one distance; "planes" if pixels do and channels are not; "strided" if
    not even these. epilogue: what is done to the outputs.
    """

    spec: ConvSpec
    direction: Direction = Direction.FORWARD
    bias: bool = False
    dtype: str = "float32"
    layout: str = "planes"
    epilogue: Epilogue | None = None

    def __post_init__(self) -> None:
        if self.direction not in set(Direction):
            raise unknown("direction", self.direction, Direction)
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.layout not in LAYOUTS:
            raise unknown("layout", self.layout, LAYOUTS)
        object.__setattr__(self, "direction", Direction(self.direction))
        if self.epilogue and self.direction is Direction.WEIGHT_GRADIENT:
            raise SpecError(f"weight gradients have no epilogue. Received: {self.epilogue}. Use None.")

    def __str__(self) -> str:
        text = str(self.spec)
        if self.direction is not Direction.FORWARD:
            text += f"/{self.direction}"
        if self.bias:
            text += "/bias"
        if self.dtype != "float32":
            text += f"/{self.dtype}"
        if self.layout != "planes":
            text += f"/{self.layout}"
        if self.epilogue:
            text += f"/{self.epilogue}"
        return text

    def bytes(self) -> int:
        """The least memory traffic of what is stored: input, weights, output, and the residual."""
        size = DTYPES[self.dtype]
        residual = prod(self.spec.output_shape) if self.epilogue and self.epilogue.residual else 0
        return self.spec.bytes(size) + size * residual

    @classmethod
    def parse(cls, text: str) -> Problem:
        """The problem that `text` names: `parse(str(problem)) == problem`. Raises `SpecError`."""
        spec, *parts = text.split("/")
        meanings: dict[str, tuple[str, Any]] = {"bias": ("bias", True)}
        meanings |= {str(d): ("direction", d) for d in Direction} | {dtype: ("dtype", dtype) for dtype in DTYPES}
        meanings |= {layout: ("layout", layout) for layout in LAYOUTS}
        given: dict[str, Any] = {}
        for part in parts:
            name, value = meanings.get(part) or _epilogue(part, meanings)
            if name in given:
                raise SpecError(f'a problem has one {name}. Received: "{text}". Name it once.')
            given[name] = value
        return cls(ConvSpec.parse(spec), **given)


def _epilogue(part: str, others: Iterable[str]) -> tuple[str, Epilogue]:
    """The part of a problem's text that is its epilogue."""
    if not re.match("|".join(("scale", "residual", *ACTIVATIONS)), part):
        raise unknown("part of a problem", part, others)
    return "epilogue", Epilogue.parse(part)


Accuracy: TypeAlias = Literal["strict", "default", "fast"]


@dataclass(frozen=True)
class Policy:
    """How a problem may be solved.

    accuracy: the error allowed, in units of 3e-7 * max(1, sqrt(K / 2304)) for K terms an output: strict 2, default 6,
        fast 20. strict also keeps torch's NaN, Inf and denormals.
    deterministic: the same bits whatever the threads and the rest of the batch.
    threads: how many may work on it.
    measured: among plans that give the same bits, the one that was fastest when they were timed here.
    """

    accuracy: Accuracy = "default"
    deterministic: bool = True
    threads: int = 1
    measured: bool = False

    def __post_init__(self) -> None:
        if self.accuracy not in get_args(Accuracy):
            raise unknown("accuracy", self.accuracy, get_args(Accuracy))
        if self.threads < 1:
            raise HubelError(f"threads must be at least 1. Received: {self.threads}. Use 1 to run without a region.")
