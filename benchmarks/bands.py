"""Whether a depthwise layer and the 1×1 behind it gain when they are done together, band of rows by band of rows.

What would be saved is the way of the depthwise layer's output through the caches: a band of it is still in L2 when the
1×1 reads it. One core runs both layers, with the kernels that a Session takes, whole or in bands; images have their
rows of padding in memory, so that a band is a layer of its own with the same sums. Above 1 bands are faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hubel.engine.algorithms.geometry import packed_strides
from hubel.engine.invoke import prepare
from hubel.engine.machine import Machine
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from hubel.lab import timing
from hubel.lab.timing import Contender
from hubel.ops import accuracy

# Pairs of MobileNet v1 and v2: channels, channels made, size of the image, stride, bands.
PAIRS = (
    (32, 64, 112, 1, 8), (64, 128, 112, 2, 8), (128, 128, 56, 1, 4), (128, 256, 56, 2, 4), (256, 256, 28, 1, 4),
    (512, 512, 14, 1, 2), (144, 24, 56, 1, 4), (192, 32, 28, 1, 4), (384, 64, 14, 1, 2), (576, 96, 14, 1, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer on memory: how many numbers its input's and output's rows are apart, and the call."""

    call: Callable[[int, int], None]
    row_in: int
    row_out: int


def layer(spec: ConvSpec, x: tuple[int, ...], y: tuple[int, ...]) -> Layer:
    """call(input, output) for tensors of these strides, weights packed."""
    weight = torch.randn(spec.weight_shape)
    invocation = prepare(Problem(spec), x, weight.stride(), y, accuracy.policy(1))
    packed = torch.empty(invocation.packed_bytes + 64, dtype=torch.uint8)
    address = -(-packed.data_ptr() // 64) * 64
    if invocation.packed_bytes:
        invocation.pack(weight.data_ptr(), address, 1)
    else:
        address = weight.data_ptr()

    def call(source: int, target: int, keep: object = (weight, packed)) -> None:
        invocation(source, address, 0, target, 1)

    return Layer(call, x[2], y[2])


def ratio(channels: int, made: int, size: int, stride: int, bands: int, layout: str) -> str:
    """A row of the table."""
    out, rows = size // stride, size // stride // bands
    shapes = (1, channels, size + 2, size), (1, channels, out, out), (1, made, out, out)
    first, middle, last = (torch.randn(shape).flatten() for shape in shapes)
    x, t, y = (packed_strides(shape, layout) for shape in shapes)

    def pair(height: int) -> tuple[Layer, Layer]:
        read = (height - 1) * stride + 3
        return (
            layer(ConvSpec(1, channels, channels, (read, size), 3, stride, (0, 1), 1, channels), x, t),
            layer(ConvSpec(1, channels, made, (height, out), 1), t, y),
        )

    def run(pair: tuple[Layer, Layer], count: int, height: int) -> None:
        depthwise, pointwise = pair
        for band in range(count):
            middle_at = middle.data_ptr() + 4 * band * height * depthwise.row_out
            depthwise.call(first.data_ptr() + 4 * band * height * stride * depthwise.row_in, middle_at)
            pointwise.call(middle_at, last.data_ptr() + 4 * band * height * pointwise.row_out)

    whole, parts = pair(out), pair(rows)
    taken = timing.measure(
        [
            Contender("whole", lambda: run(whole, 1, out)),
            Contender("bands", lambda: run(parts, bands, rows)),
            Contender("depthwise", lambda: whole[0].call(first.data_ptr(), middle.data_ptr())),
        ]
    )
    value = taken.ratio("whole", "bands")
    low, high = value.lo or 0.0, value.hi or 0.0
    times = (f"{1e6 * (taken.seconds(name).value or 0.0):9.0f}" for name in ("depthwise", "whole", "bands"))
    name = f"{channels}>{made}@{size} s{stride}, {bands} bands"
    return f"{name:<26} {layout:<14} {' '.join(times)}   {value.value:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    machine = Machine.detect()
    print(f"{machine.name}, {machine.cpu}, {machine.isa}")
    print(f"{'layers':<26} {'layout':<14} {'depthwise':>9} {'whole':>9} {'bands':>9}   whole / bands; µs, one thread")
    for pair in PAIRS:
        for layout in ("planes", "channels_last"):
            print(ratio(*pair, layout), flush=True)


if __name__ == "__main__":
    main()
