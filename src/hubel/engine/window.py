"""How a convolution's input lies in scratch memory, so that every term of its sum is one contiguous run of numbers.

Along an axis, output j of a convolution reads the positions j·step + shift, one shift for each kernel position. Two
things spoil contiguous reading: padding, and steps larger than one. So a *window* (a box of outputs, and all that it
reads) is copied first: padding becomes zeros, and positions are sorted by their remainder modulo the step, the
*phase*. Then

    position j·step + shift  =  scratch[phase(shift)][j + advance(shift)]

and one vector load fetches neighbouring outputs' inputs whatever the stride or dilation. The layout of a window is

    [channel][phase z, y, x][image][z][y][x],    x running on from one row into the next

Rows follow each other without a gap, so a tile may run over the ends of rows: the few outputs in between are thrown
away. Where the step is 1, the zeros right of a row are those left of the next one, and are kept once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import TypeAlias

# The sizes and strides of a window as a kernel reads them, in this order. Strides and pitches count elements.
WORDS = (
    "stride_c", "stride_z", "stride_y", "stride_x",
    "size_z", "size_y",
    "step_z", "step_y", "step_x",
    "pad_z", "pad_y",
    "phases_z", "phases_y", "phases_x",
    "valid_z", "valid_y", "valid_x",
    "planes", "rows",
    "pitch_c", "pitch_phase", "pitch_z", "pitch_y",
    "table_z", "table_y", "table_x",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis: `outputs` positions j, of which each reads j·step + shift for every shift, out of `size`."""

    size: int
    outputs: int
    step: int = 1
    shifts: tuple[int, ...] = (0,)

    @cached_property
    def pad(self) -> int:
        """Zeros before the first position; negative where the first positions are never read."""
        return -min(self.shifts, default=0)

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """The remainders modulo the step that some shift reads."""
        return tuple(sorted({(shift + self.pad) % self.step for shift in self.shifts})) or (0,)

    @cached_property
    def reach(self) -> int:
        """How far beyond its own place an output reads, in steps."""
        return max(((shift + self.pad) // self.step for shift in self.shifts), default=0)

    def place(self, shift: int) -> tuple[int, int]:
        """(index of the phase, advance) of a shift."""
        return self.phases.index((shift + self.pad) % self.step), (shift + self.pad) // self.step

    def table(self) -> list[int]:
        """For each phase: the phase, minus the pad; the first place that holds data; the place after the last."""
        words = []
        for phase in self.phases:
            start = phase - self.pad
            first = max(0, -(start // self.step))
            words += [start, first, max(first, -((start - self.size) // self.step))]
        return words


Axes: TypeAlias = tuple[Axis, Axis, Axis]


@dataclass(frozen=True)
class Window:
    """A box of outputs along (z, y, x), for `images` images at a time, and the scratch memory of what it reads.

    `like`: lay rows and planes out as another window does (the output gradient beside the input).
    """

    axes: Axes
    box: tuple[int, int, int]
    images: int = 1
    lanes: int = 16
    like: Window | None = None

    @cached_property
    def valid(self) -> tuple[int, int, int]:
        """Positions along each axis that hold data."""
        return tuple(b + a.reach for a, b in zip(self.axes, self.box, strict=True))  # type: ignore[return-value]

    @cached_property
    def pitch_y(self) -> int:
        """From a row to the next."""
        if self.like:
            return self.like.pitch_y
        x, width = self.axes[2], self.valid[2]
        if x.step > 1 or self.box[2] < x.outputs:
            return width
        left, right = max(x.pad, 0), max(width - max(x.pad, 0) - x.size, 0)
        return width - min(left, right)

    @cached_property
    def rows(self) -> int:
        return self.like.rows if self.like else self.valid[1]

    @cached_property
    def planes(self) -> int:
        return self.like.planes if self.like else self.valid[0]

    @cached_property
    def pitch_z(self) -> int:
        """From a plane to the next: its rows, and the last row's zeros."""
        if self.like:
            return self.like.pitch_z
        return self.rows * self.pitch_y + max(0, self.valid[2] - self.pitch_y)

    @property
    def pitch_image(self) -> int:
        """From an image to the next; whole vectors of outputs fit in between."""
        if self.like:
            return self.like.pitch_image
        outputs = (self.box[0] - 1) * self.pitch_z + self.flat
        return max(self.planes * self.pitch_z, -(-outputs // self.lanes) * self.lanes)

    @property
    def overhang(self) -> int:
        """How far past the last image a tile may read: the largest advance and a vector."""
        z, y, x = (axis.reach for axis in self.axes)
        return z * self.pitch_z + y * self.pitch_y + x + self.lanes

    @property
    def pitch_phase(self) -> int:
        if self.like:
            return self.images * self.pitch_image + self.lanes
        # Zeros written behind the last image may run over by a vector.
        return self.images * self.pitch_image + self.overhang + self.lanes

    @cached_property
    def pitch_c(self) -> int:
        """From a channel to the next, kept off multiples of 4 KiB, which all fall into one set of the L1 cache."""
        pitch = -(-self.pitch_phase * prod(len(a.phases) for a in self.axes) // self.lanes) * self.lanes
        return pitch + self.lanes if pitch % 1024 < self.lanes or pitch % 1024 > 1024 - self.lanes else pitch

    @property
    def flat(self) -> int:
        """Length of one plane of outputs with the thrown-away places between rows."""
        return (self.box[1] - 1) * self.pitch_y + self.box[2]

    def offsets(self, axes: Axes | None = None) -> list[int]:
        """Where each kernel position starts, in the order of the kernel's elements; of those with the shifts of `axes`,
        if that is given.
        """
        _, ny, nx = (len(a.phases) for a in self.axes)
        starts = []
        for shifts in product(*(axis.shifts for axis in axes or self.axes)):
            (pz, az), (py, ay), (px, ax) = (axis.place(s) for axis, s in zip(self.axes, shifts, strict=True))
            phase = (pz * ny + py) * nx + px
            starts.append(phase * self.pitch_phase + az * self.pitch_z + ay * self.pitch_y + ax)
        return starts

    def words(self, strides: tuple[int, int, int, int], tables: tuple[int, int, int]) -> list[int]:
        """The window as a kernel reads it (`WORDS`): strides of (channel, z, y, x) and the addresses of the axes'
        tables.
        """
        z, y, x = self.axes
        valid = self.valid
        return [
            *strides,
            z.size, y.size,
            z.step, y.step, x.step,
            z.pad, y.pad,
            len(z.phases), len(y.phases), len(x.phases),
            *valid,
            self.planes, self.rows,
            self.pitch_c, self.pitch_phase, self.pitch_z, self.pitch_y,
            *tables,
        ]  # fmt: skip
