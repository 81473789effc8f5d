"""Which images of a network have their channels side by side in memory.

A network is given its images in planes, one channel behind the other, and hands them back so. In between many kernels
are faster where the channels of a pixel are side by side: 1×1 ones on small maps, depthwise ones, whose rows then have
no ends within a vector. Maps of one size lie alike, so that what meets in a sum or a concatenation does; each size has
the layout with which all convolutions take the fewest cycles together, by estimate, with the turning of what comes
from maps that lie otherwise. The estimate is that of one image on one thread: a layout may decide between orders of
summation, and results have the same bits in every batch and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from hubel.engine import choose
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.geometry import of_usual_batch
from hubel.engine.machine import Machine
from hubel.engine.problem import Problem
from hubel.errors import UnsupportedError
from hubel.graph.network import Node
from hubel.graph.operators import convolution, problem_of

if TYPE_CHECKING:
    from hubel.graph.binder import Binder

# Cycles to turn a number: 96 channels at 56×56, 2.5 (Intel Xeon with AVX-512, 2026-11). And of a job more.
TURNED, JOB = 2.5, 5000.0
# Cycles for each number that a kernel with output channels in its lanes reads from an input that lies the other way.
CROSSED = 1.0
# What planes cost more in a network than alone: kernels with channels side by side share maps out by pixels, and so
# find in their own L2 cache what they wrote (ResNet-50, of the same cycles: 30.6 and 29.5 ms; Inception v3 32.2, 30.6).
APART = 1.03
# Operators that make images of images.
_ELEMENTWISE, _POOLS = ("affine", "activation", "binary"), ("pool", "adaptive_pool")
_OF_IMAGES = (*_ELEMENTWISE, *_POOLS, "concat")
# In the place of the pixels of a map: those whose layout is given.
PLANES, LAST = -1, 0


@dataclass(frozen=True)
class Layouts:
    """last: values with their channels side by side. turned: convolutions before which their input is copied into the
    layout of their output.
    """

    last: frozenset[str] = frozenset()
    turned: frozenset[str] = frozenset()


def layouts_of(b: Binder) -> Layouts:
    """The layouts with the fewest cycles."""
    costs = Costs(b)
    free = frozenset(pixels for pixels in costs.pixels.values() if pixels > 0)
    sizes = min((frozenset[int](), free), key=costs.cycles)
    cycles, better = costs.cycles(sizes), True
    while better:
        better = False
        for size in sorted(free):
            if (other := costs.cycles(sizes ^ {size})) < cycles:
                sizes, cycles, better = sizes ^ {size}, other, True
    return costs.layouts(sizes)


class Costs:
    """Counts what layouts cost: `sizes` are the maps, by their pixels, that have their channels side by side."""

    def __init__(self, b: Binder) -> None:
        self.b, self.machine = b, Machine.detect()
        self.policy = replace(b.policy, threads=1)
        self.pixels = _pixels(b)
        self._known: dict[tuple[str, bool, bool], tuple[float, bool]] = {}

    def layouts(self, sizes: frozenset[int]) -> Layouts:
        """How everything lies then."""
        last = frozenset(name for name in self.pixels if self.last(name, sizes))
        turned = frozenset(node.name for node in self.convolutions if self._convolution(node, sizes)[1])
        return Layouts(last, turned)

    def last(self, name: str, sizes: frozenset[int]) -> bool:
        pixels = self.pixels.get(name, PLANES)
        return pixels == LAST or pixels in sizes

    @cached_property
    def convolutions(self) -> list[Node]:
        return [node for node in self.b.graph.nodes if node.op == "conv"]

    def cycles(self, sizes: frozenset[int]) -> float:
        """Of all convolutions for one image on one thread, and of turning what lies otherwise."""
        total = sum(self._convolution(node, sizes)[0] for node in self.convolutions)
        return total + sum(self._turning(name) for name in self._turned(sizes))

    def _turning(self, name: str) -> float:
        """Cycles to turn an image; of one that is a single pixel there is nothing to turn."""
        shape = self.b.shapes[name]
        return JOB + TURNED * prod(shape[1:]) if prod(shape[2:]) > 1 else 0.0

    def _turned(self, sizes: frozenset[int]) -> Iterator[str]:
        """Values that are copied because of how they lie, convolutions' inputs aside."""
        for node in self.b.graph.nodes:
            source, last = node.operand(0), self.last(node.name, sizes)
            if node.op == "conv":
                if node.operand(3) and self.last(node.operand(3), sizes) != last:
                    yield node.name
            elif node.op in _POOLS:
                if self.last(source, sizes) != last:
                    yield node.name
            elif node.op in _OF_IMAGES:
                yield from (name for name in node.inputs if name in self.pixels and self.last(name, sizes) != last)
            elif source in self.pixels and _wanted(node) is not None and _wanted(node) != self.last(source, sizes):
                yield source

    def _convolution(self, node: Node, sizes: frozenset[int]) -> tuple[float, bool]:
        """Cycles, and whether the input is turned first."""
        of_x, of_y = self.last(node.inputs[0], sizes), self.last(node.name, sizes)
        key = node.name, of_x, of_y
        if key not in self._known:
            self._known[key] = self._counted(*key)
        return self._known[key]

    def _counted(self, name: str, of_x: bool, of_y: bool) -> tuple[float, bool]:
        node = self.b.made_by(name)
        shapes = [self.b.shapes[operand] if operand else () for operand in node.inputs]
        problem = of_usual_batch(problem_of(node, *convolution(self.b.attributes(node), shapes)))
        alike, either = self._planned(problem, of_y)
        if of_x == of_y:
            return alike, False
        if either:
            return alike + CROSSED * prod(shapes[0][1:]), False
        return alike + self._turning(node.inputs[0]), True

    def _planned(self, problem: Problem, last: bool) -> tuple[float, bool]:
        """Cycles, and whether the kernel knows channels that are side by side."""
        try:
            plan = choose(replace(problem, layout="channels_last" if last else "planes"), self.machine, self.policy)
        except UnsupportedError:
            return 0.0, False
        either = getattr(ALGORITHMS[plan.algorithm], "CHANNELS_LAST", False)
        return plan.estimate.cycles * (1.0 if last else APART), either


def _pixels(b: Binder) -> dict[str, int]:
    """For each image how many pixels its map has; PLANES or LAST where nothing is to be chosen."""
    given = {name for node in b.graph.nodes if node.op in ("torch", "item") for name in (node.name, *node.inputs)}
    given |= set(b.graph.outputs)
    pixels: dict[str, int] = {}
    for node in b.graph.nodes:
        name, shape = node.name, b.shapes.get(node.name, ())
        images = [operand for operand in node.inputs if operand in pixels]
        if len(shape) < 3:
            continue
        if node.op == "permute":
            # Rows of features, made by nobody here, become the channels of images.
            if not images and node["dims"] == (0, len(shape) - 1, *range(1, len(shape) - 1)):
                pixels[name] = LAST
        elif node.op == "slice":
            if images:
                pixels[name] = pixels[images[0]]
        elif node.op == "conv" or (images and node.op in _OF_IMAGES):
            size = prod(shape[2:])
            if name in given or size == 1:
                pixels[name] = PLANES
            elif node.op in _ELEMENTWISE and pixels[images[0]] == LAST:
                pixels[name] = LAST
            else:
                pixels[name] = size
    return pixels


def _wanted(node: Node) -> bool | None:
    """Whether an operator that sees images as something else wants them with channels side by side; None for others."""
    if node.op == "permute":
        # Channels behind the pixels, for a layer norm or a linear layer.
        rank = len(node["dims"])
        return True if node["dims"] == (0, *range(2, rank), 1) else None
    return False if node.op in ("reshape", "flatten") else None
