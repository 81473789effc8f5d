"""Stencils: small kernels swept over one plane of pixels, where every output is a sum over its neighbours.

A *stencil* says, for a tile of `rows` units below one another, which input pixel meets which weight. A unit is one
output pixel; in the input gradient of a convolution with stride s it is an s×s square of them, which read the same
neighbourhood. Lanes are neighbouring units along x:

    for offsets along x (a block of them):                  one, or all if all weights fit the registers
        for input rows:
            load the vector at row and offset               once, for all outputs of the tile that read it
            for weights on it:  acc[unit row][phase] += weight · vector

Where units lie two pixels apart, two vectors are loaded and sorted into even and odd pixels, which serve two offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of

# From the number of a row to where it begins.
Pointers = Callable[[int], Value]


@dataclass(frozen=True)
class Tap:
    """Output phase (ry, rx) of a unit reads, at `row`, `column` from the unit's first input pixel, the pixel for this
    weight.
    """

    ry: int
    rx: int
    row: int
    column: int
    weight: int


@dataclass(frozen=True)
class Stencil:
    """`rows` units below one another, `lanes` side by side.

    step: input pixels from a unit to the next, along y and x; out: output pixels of a unit along y and x. registers:
    of the machine.
    """

    rows: int
    lanes: int
    step: tuple[int, int]
    out: tuple[int, int]
    taps: tuple[Tap, ...]
    weights: int
    registers: int

    @cached_property
    def loads(self) -> tuple[int, ...]:
        """Offsets along x at which vectors are loaded, or pairs of vectors that follow each other."""
        columns = sorted({tap.column for tap in self.taps})
        if self.step[1] == 1:
            return tuple(columns)
        pairs: list[int] = []
        for column in columns:
            if not pairs or column > pairs[-1] + 1:
                pairs.append(column)
        return tuple(pairs)

    @property
    def masks(self) -> int:
        """Masks of a column of tiles: one for each vector loaded of a row, one for each vector stored."""
        return len(self.loads) * self.step[1] + self.out[1]

    @property
    def span(self) -> int:
        """Input rows a tile reaches over."""
        return (self.rows - 1) * self.step[0] + 1 + max((tap.row for tap in self.taps), default=0)

    @property
    def sums(self) -> int:
        return self.rows * self.out[0] * self.out[1]

    @property
    def resident(self) -> bool:
        """Whether all weights stay in registers, beside the sums and what is loaded."""
        return len(self.taps) + self.sums + 2 * self.step[1] + 1 <= self.registers

    @property
    def fits(self) -> bool:
        """Whether the weights on one offset stay in registers, beside the sums and what is loaded."""
        widest = max(sum(tap.column - load in range(self.step[1]) for tap in self.taps) for load in self.loads)
        return widest + self.sums + self.step[1] <= self.registers


def load_weights(f: Function, stencil: Stencil, weights: Value) -> list[Value]:
    """Every weight in all lanes of a vector."""
    return [f.splat(f.load(weights + i, F32, f"w_{i}"), stencil.lanes, f"weight_{i}") for i in range(stencil.weights)]


def sweep(
    f: Function,
    stencil: Stencil,
    row: Callable[[int], Value],
    weight: Callable[[int], Value],
    bias: Value,
    masks: list[Value] | None,
) -> dict[tuple[int, int, int], Value]:
    """The sums of one tile, by (unit row, phase y, phase x). `row(i)` points to input row i of the tile, at its first
    column.

    masks: which lanes of the loaded vectors lie inside the input; None if all do.
    """
    ry, rx = stencil.out
    sums = {(j, y, x): bias for j in range(stencil.rows) for y in range(ry) for x in range(rx)}
    numbered = list(enumerate(stencil.loads))
    for block in [numbered] if stencil.resident else [[load] for load in numbered]:
        columns = [load + i for _, load in block for i in range(stencil.step[1])]
        taps = [tap for tap in stencil.taps if tap.column in columns]
        values = {tap.weight: weight(tap.weight) for tap in taps}
        for i in range(stencil.span):
            reading = [(tap, (i - tap.row) // stencil.step[0]) for tap in taps if (i - tap.row) % stencil.step[0] == 0]
            reading = [(tap, j) for tap, j in reading if 0 <= j < stencil.rows]
            if not reading:
                continue
            at = row(i)
            for number, load in block:
                for column, pixels in _pixels(f, stencil, at, number, load, masks):
                    for tap, j in reading:
                        if tap.column == column:
                            key = (j, tap.ry, tap.rx)
                            sums[key] = f.fma(values[tap.weight], pixels, sums[key], f"acc_{j}_{tap.ry}_{tap.rx}")
    return sums


def _pixels(
    f: Function, stencil: Stencil, row: Value, number: int, load: int, masks: list[Value] | None
) -> list[tuple[int, Value]]:
    """(column, its vector) for each column that load `number` serves."""
    lanes = stencil.lanes

    def vector(half: int) -> Value:
        mask = masks[number * stencil.step[1] + half] if masks else None
        return _vector(f, stencil, row + (load + half * lanes), mask, "pixels")

    if stencil.step[1] == 1:
        return [(load, vector(0))]
    a, b = vector(0), vector(1)
    wanted = {tap.column for tap in stencil.taps}
    return [
        (load + odd, f.shuffle(a, b, range(odd, 2 * lanes, 2), "odd" if odd else "even"))
        for odd in (0, 1)
        if load + odd in wanted
    ]


def _vector(f: Function, stencil: Stencil, at: Value, mask: Value | None, name: str) -> Value:
    if mask is None:
        return f.load(at, vector_of(stencil.lanes), name)
    return f.load_masked(at, mask, stencil.lanes, name)


def correlate(
    f: Function,
    stencil: Stencil,
    loads: Sequence[int],
    row: Pointers,
    dy: Pointers,
    sums: dict[int, Value],
    masks: list[Value] | None,
) -> dict[int, Value]:
    """The sums of one tile for the weight gradient, by weight, over the taps that `loads` (indices) serve, added to
    `sums`.

        sums[weight] += dy[unit row] · input[row, column]       lane by lane

    `dy(j)` points to the output gradient of unit row j. The last of `masks` says which lanes hold one.
    """
    columns = {stencil.loads[number] + i for number in loads for i in range(stencil.step[1])}
    taps = [tap for tap in stencil.taps if tap.column in columns]
    sums, gradients = dict(sums), {}
    for i in range(stencil.span):
        reading = [(tap, (i - tap.row) // stencil.step[0]) for tap in taps if (i - tap.row) % stencil.step[0] == 0]
        reading = [(tap, j) for tap, j in reading if 0 <= j < stencil.rows]
        if not reading:
            continue
        at = row(i)
        for j in {j for _, j in reading} - gradients.keys():
            gradients[j] = _vector(f, stencil, dy(j), masks[-1] if masks else None, "dy")
        for number in loads:
            for column, pixels in _pixels(f, stencil, at, number, stencil.loads[number], masks):
                for tap, j in reading:
                    if tap.column == column:
                        sums[tap.weight] = f.fma(gradients[j], pixels, sums[tap.weight], f"acc_{tap.weight}")
    return sums


def outputs(f: Function, stencil: Stencil, sums: dict[tuple[int, int, int], Value], j: int, y: int) -> list[Value]:
    """The vectors of one output row of a tile, in the order in which they are stored."""
    if stencil.out[1] == 1:
        return [sums[j, y, 0]]
    a, b = sums[j, y, 0], sums[j, y, 1]
    lanes = stencil.lanes
    zipped = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for lane in pair]
    return [f.shuffle(a, b, zipped[half * lanes : (half + 1) * lanes], "zipped") for half in (0, 1)]


def load_mask(f: Function, table: Value, index: int, lanes: int) -> Value:
    """The mask in word `index` of a table: bit i is lane i."""
    bits = max(lanes, 8)
    at = f.offset(table, index, I64, "mask_at")
    number = f._emit(f"i{bits}", f"load i{bits}, ptr {at.text}, align 8", "bits")
    if bits != lanes:
        number = f._emit(f"i{lanes}", f"trunc i{bits} {number.text} to i{lanes}", "bits")
    return f._emit(f"<{lanes} x i1>", f"bitcast i{lanes} {number.text} to <{lanes} x i1>", "mask")


def store_masked(f: Function, value: Value, pointer: Value, mask: Value) -> None:
    """Store the lanes of `mask`; memory under the others is not touched."""
    lanes = int(mask.type[1:].split()[0])
    callee = f"@llvm.masked.store.v{lanes}f32.p0"
    f.declarations.add(f"declare void {callee}({value.type}, {PTR}, {mask.type})")
    f.lines.append(
        f"  call void {callee}({value.type} {value.text}, ptr align 4 {pointer.text}, {mask.type} {mask.text})"
    )
