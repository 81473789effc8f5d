"""Stencils: small kernels swept over one plane of pixels, where every output is a sum over its neighbours.

A *stencil* says, for a tile of `rows` units below one another, which input pixel meets which weight. A unit is one
output pixel; in the input gradient of a convolution with stride s it is an s×s square of them, which read the same
neighbourhood. Lanes are neighbouring units along x:

    for offsets along x:
        for input rows:
            load the vector at row and offset               once, for all outputs of the tile that read it
            for weights on it:  acc[unit row][phase] += weight · vector

Where units lie two pixels apart, two vectors are loaded and sorted into even and odd pixels, which serve two offsets.
AVX2 sorts within halves of a vector in one instruction, across them in two: there the sums keep the order that one
gives, and only what is stored, or what they are multiplied with, is brought into order (`_ORDER`).
Planes of less than half a vector go in twos: one in the lower half of all vectors, one in the upper.

Left and right of a row lie zeros that are not there. Masked loads put them into the vectors, and touch no memory
outside. On AVX-512 such a load takes a turn of a multiply-add unit, a masked multiply-add none: so rows are loaded
whole where that reads nothing but neighbouring rows, and the lanes outside are left out of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hubel.engine.ir.function import F32, I64, Function, Value, vector_of
from hubel.engine.ir.turn import joined

# From the number of a row to where it begins (in each plane); None for a row of padding.
Pointers = Callable[[int], Value | Sequence[Value] | None]

# The units in the lanes of eight, two pixels apart, after sorting within halves of vectors. Its own opposite.
_ORDER = (0, 1, 4, 5, 2, 3, 6, 7)


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
    of the machine. planes: how many share a vector. streams: vectors side by side through which rows stream, one unit
    row after another; 0 where tiles are swept.
    """

    rows: int
    lanes: int
    step: tuple[int, int]
    out: tuple[int, int]
    taps: tuple[Tap, ...]
    weights: int
    registers: int
    planes: int = 1
    streams: int = 0

    @cached_property
    def loads(self) -> tuple[int, ...]:
        """Offsets along x at which vectors are loaded, or pairs of vectors that follow each other."""
        if self.step[1] == 1:
            return self.columns
        pairs: list[int] = []
        for column in self.columns:
            if not pairs or column > pairs[-1] + 1:
                pairs.append(column)
        return tuple(pairs)

    @property
    def shifts(self) -> bool:
        """Whether taps reach no more than a unit beyond the pixels of one load, in rows with a lane to spare."""
        return (self.step, self.out, self.planes) == ((2, 2), (1, 1), 1) and self.columns in ((0, 1, 2), (0, 1, 2, 3))

    @property
    def order(self) -> tuple[int, ...]:
        """The unit in each lane of a sum."""
        return _ORDER if self.step[1] == 2 and self.lanes == 8 else tuple(range(self.lanes))

    @property
    def width(self) -> int:
        """Units side by side in one plane."""
        return self.lanes // self.planes

    @property
    def loaded(self) -> tuple[int, int]:
        """(vectors read of a row at each of the loads, pixels in such a vector)"""
        return (self.step[1], self.lanes) if self.planes == 1 else (1, self.width * self.step[1])

    @property
    def stored(self) -> tuple[int, int]:
        """(vectors written to a row, pixels in such a vector)"""
        return (self.out[1], self.lanes) if self.planes == 1 else (1, self.width * self.out[1])

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Offsets along x that some tap reads."""
        return tuple(sorted({tap.column for tap in self.taps}))

    @property
    def mask_widths(self) -> tuple[list[int], list[int], list[int]]:
        """Lanes of the masks of a column of tiles, as in `Masks`."""
        (count, read), (stores, written) = self.loaded, self.stored
        masked = len(self.columns) if self.lanes == 16 else 0
        return [read] * (len(self.loads) * count), [self.lanes] * masked, [written] * stores

    @property
    def span(self) -> int:
        """Input rows a tile reaches over."""
        return (self.rows - 1) * self.step[0] + 1 + max((tap.row for tap in self.taps), default=0)

    @property
    def sums(self) -> int:
        return self.rows * self.out[0] * self.out[1]

    @property
    def depth(self) -> int:
        """Unit rows that read the same input rows."""
        return max(tap.row for tap in self.taps) // self.step[0] + 1

    def streamable(self, streams: int) -> bool:
        """Whether all weights stay in registers, beside the sums of all unit rows that read a row and its pixels."""
        sums = self.depth * self.out[0] * self.out[1] * streams
        return len(self.taps) + sums + (1 if self.step[1] == 1 else 3) <= self.registers

    def completed(self, sums: Sequence[Value]) -> tuple[list[dict[tuple[int, int, int], Value]], Sequence[Value]]:
        """(of each vector the sums of the uppermost unit row, the sums of the rows below it)"""
        out_y, out_x = self.out
        size = self.streams * out_y * out_x
        first = iter(sums[:size])
        return [
            {(0, y, x): next(first) for y in range(out_y) for x in range(out_x)} for _ in range(self.streams)
        ], sums[size:]

    @property
    def fits(self) -> bool:
        """Whether the weights on one offset stay in registers, beside the sums and what is loaded."""
        widest = max(sum(tap.column - load in range(self.step[1]) for tap in self.taps) for load in self.loads)
        return widest + self.sums + (1 if self.step[1] == 1 else 3) <= self.registers


def load_weight(f: Function, stencil: Stencil, weights: Sequence[Value], index: int) -> Value:
    """A weight of each plane in all of the plane's lanes."""
    vectors = [f.splat(f.load(w + index, F32, f"w_{index}"), stencil.lanes, f"weight_{index}") for w in weights]
    return vectors[0] if len(vectors) == 1 else halves(f, *vectors)


def halves(f: Function, a: Value, b: Value) -> Value:
    """The lower half of a and the upper half of b."""
    lanes = int(a.type[1:].split()[0])
    return f.shuffle(a, b, [*range(lanes // 2), *range(lanes + lanes // 2, 2 * lanes)], "halves")


@dataclass(frozen=True)
class Masks:
    """Which lanes lie inside: of the vectors read, of what is read at each offset (AVX-512 alone), of those written."""

    loads: list[Value]
    columns: list[Value]
    stores: list[Value]


def sweep(
    f: Function,
    stencil: Stencil,
    row: Pointers,
    weight: Callable[[int], Value],
    bias: Value,
    masks: Masks | None = None,
    guarded: Callable[[int], bool] = lambda i: True,
) -> dict[tuple[int, int, int], Value]:
    """The sums of one tile, by (unit row, phase y, phase x). `row(i)` points to input row i of the tile, at its first
    column.

    masks: which lanes lie inside the input; None if all do. guarded(i): whether what lies beside row i may not be read.
    """
    ry, rx = stencil.out
    sums = {(j, y, x): bias for j in range(stencil.rows) for y in range(ry) for x in range(rx)}
    for number, load in enumerate(stencil.loads):
        taps = [tap for tap in stencil.taps if 0 <= tap.column - load < stencil.step[1]]
        values = {tap.weight: weight(tap.weight) for tap in taps}
        for i in range(stencil.span):
            reading = [(tap, (i - tap.row) // stencil.step[0]) for tap in taps if (i - tap.row) % stencil.step[0] == 0]
            reading = [(tap, j) for tap, j in reading if 0 <= j < stencil.rows]
            at = row(i) if reading else None
            if at is None:
                continue
            whole = masks is not None and bool(masks.columns) and not guarded(i)
            for column, pixels in _pixels(f, stencil, at, number, load, None if whole else masks):
                for tap, j in reading:
                    if tap.column == column:
                        key = (j, tap.ry, tap.rx)
                        total = f.fma(values[tap.weight], pixels, sums[key], f"acc_{j}_{tap.ry}_{tap.rx}")
                        if masks and whole:
                            total = _where(f, masks.columns[stencil.columns.index(column)], total, sums[key])
                        sums[key] = total
        sums = dict(zip(sums, settled(f, stencil, list(sums.values())), strict=True))
    return sums


def sweep_by_rows(
    f: Function, stencil: Stencil, row: Pointers, weight: Callable[[int], Value], bias: Value, masks: Masks
) -> dict[tuple[int, int, int], Value]:
    """As `sweep`, where every row is loaded only once (`Stencil.shifts`): what the taps further to the right meet are
    the same pixels, a unit further on. In the last lane they are any pixels.
    """
    sums = {(j, 0, 0): bias for j in range(stencil.rows)}
    lane_of = {unit: lane for lane, unit in enumerate(stencil.order)}
    moved = [lane_of[min(unit + 1, stencil.lanes - 1)] for unit in stencil.order]
    for i in range(stencil.span):
        reading = [(tap, (i - tap.row) // 2) for tap in stencil.taps if (i - tap.row) % 2 == 0]
        reading = [(tap, j) for tap, j in reading if 0 <= j < stencil.rows]
        at = row(i) if reading else None
        if at is None:
            continue
        pixels = dict(_pixels(f, stencil, at, 0, stencil.loads[0], masks))
        for tap, j in reading:
            if tap.column not in pixels:
                before = pixels[tap.column - 2]
                pixels[tap.column] = f.shuffle(before, before, moved, "moved")
            sums[j, 0, 0] = f.fma(weight(tap.weight), pixels[tap.column], sums[j, 0, 0], f"acc_{j}")
    return sums


def stream(
    f: Function,
    stencil: Stencil,
    sums: Sequence[Value],
    rows: Sequence[Value],
    weights: Sequence[Value],
    masks: Sequence[Masks | None],
    guarded: bool,
) -> list[Value]:
    """The sums of all unit rows that read these input rows (`step[0]` of them), with what they add.

    sums: from the uppermost unit row to the lowest, vector by vector, phase by phase. masks: of each vector.
    """
    out_y, out_x = stencil.out
    sums = list(sums)
    for i, at in enumerate(rows):
        taps = [tap for tap in stencil.taps if tap.row % stencil.step[0] == i]
        for number, load in enumerate(stencil.loads):
            columns = range(load, load + stencil.step[1])
            if not any(tap.column in columns for tap in taps):
                continue
            for v, mask in enumerate(masks):
                whole = mask is not None and bool(mask.columns) and not guarded
                place = at + v * stencil.lanes * stencil.step[1]
                for column, pixels in _pixels(f, stencil, place, number, load, None if whole else mask):
                    for tap in (tap for tap in taps if tap.column == column):
                        unit = stencil.depth - 1 - tap.row // stencil.step[0]
                        key = ((unit * stencil.streams + v) * out_y + tap.ry) * out_x + tap.rx
                        total = f.fma(weights[tap.weight], pixels, sums[key], f"acc_{unit}_{v}")
                        if mask and whole:
                            total = _where(f, mask.columns[stencil.columns.index(column)], total, sums[key])
                        sums[key] = total
    return sums


def _where(f: Function, mask: Value, yes: Value, no: Value) -> Value:
    text = f"select {mask.type} {mask.text}, {yes.type} {yes.text}, {no.type} {no.text}"
    return f._emit(yes.type, text, "acc")


def settled(f: Function, stencil: Stencil, values: list[Value]) -> list[Value]:
    """The values, all of them computed before anything that uses one.

    LLVM would otherwise put the multiply-adds of one sum behind each other, where each waits for the one before it.
    """
    if len(values) == 1:
        return values
    place = "w" if stencil.lanes == 4 and stencil.registers == 32 else "v"
    types = f"{{ {', '.join(v.type for v in values)} }}"
    constraints = ",".join([f"={place}"] * len(values) + [str(i) for i in range(len(values))])
    arguments = ", ".join(f"{v.type} {v.text}" for v in values)
    both = f._emit(types, f'call {types} asm sideeffect "", "{constraints}"({arguments})', "settled")
    return [f._emit(v.type, f"extractvalue {types} {both.text}, {i}", "acc") for i, v in enumerate(values)]


def _pixels(
    f: Function,
    stencil: Stencil,
    row: Value | Sequence[Value],
    number: int,
    load: int,
    masks: Masks | None,
) -> list[tuple[int, Value]]:
    """(column, its vector) for each column that load `number` serves."""
    count, width = stencil.loaded
    rows = [row] if isinstance(row, Value) else row
    vectors = [
        _vector(f, at + (load + i * width), width, masks.loads[number * count + i] if masks else None, "pixels")
        for at in rows
        for i in range(count)
    ]
    if stencil.step[1] == 1:
        return [(load, joined(f, vectors))]
    a, b = vectors
    wanted = {tap.column for tap in stencil.taps}
    return [
        (load + odd, f.shuffle(a, b, [2 * unit + odd for unit in stencil.order], "odd" if odd else "even"))
        for odd in (0, 1)
        if load + odd in wanted
    ]


def _vector(f: Function, at: Value, width: int, mask: Value | None, name: str) -> Value:
    if mask is None:
        return f.load(at, vector_of(width), name)
    return f.load_masked(at, mask, width, name)


def correlate(
    f: Function,
    stencil: Stencil,
    loads: Sequence[int],
    row: Pointers,
    dy: Pointers,
    sums: dict[int, Value],
    masks: Masks | None,
    guarded: Callable[[int], bool] = lambda i: True,
    guarded_dy: Callable[[int], bool] = lambda j: True,
) -> dict[int, Value]:
    """The sums of one tile for the weight gradient, by weight, added to `sums`: of taps that `loads` (indices) serve.

        sums[weight] += dy[unit row] · input[row, column]       lane by lane

    `dy(j)` points to the output gradient of unit row j, which has the lanes of `masks.stores`; `masks.columns` are the
    lanes in which both lie inside. guarded, guarded_dy: as in `sweep`, of rows of input and output gradient.
    """
    columns = {stencil.loads[number] + i for number in loads for i in range(stencil.step[1])}
    taps = [tap for tap in stencil.taps if tap.column in columns]
    sums, gradients = dict(sums), {}
    can = masks is not None and bool(masks.columns)
    whole_dy = {j: can and not guarded_dy(j) for j in range(stencil.rows)}
    for i in range(stencil.span):
        reading = [(tap, (i - tap.row) // stencil.step[0]) for tap in taps if (i - tap.row) % stencil.step[0] == 0]
        reading = [(tap, j) for tap, j in reading if 0 <= j < stencil.rows]
        at = row(i) if reading else None
        if at is None:
            continue
        for j in sorted({j for _, j in reading} - gradients.keys()):
            rows = dy(j)
            parts = [rows] if isinstance(rows, Value) else rows or []
            mask = masks.stores[0] if masks and not whole_dy[j] else None
            both = joined(f, [_vector(f, p, stencil.width, mask, "dy") for p in parts])
            gradients[j] = _ordered(f, stencil, both)
        whole = can and not guarded(i)
        for number in loads:
            for column, pixels in _pixels(f, stencil, at, number, stencil.loads[number], None if whole else masks):
                for tap, j in reading:
                    if tap.column == column:
                        total = f.fma(gradients[j], pixels, sums[tap.weight], f"acc_{tap.weight}")
                        if masks and (whole or whole_dy[j]):
                            total = _where(f, masks.columns[stencil.columns.index(column)], total, sums[tap.weight])
                        sums[tap.weight] = total
    return sums


def _ordered(f: Function, stencil: Stencil, vector: Value) -> Value:
    """Neighbouring units in the order of the sums' lanes, or the sums as neighbouring units."""
    if stencil.order == tuple(range(stencil.lanes)):
        return vector
    return f.shuffle(vector, vector, stencil.order, "ordered")


def outputs(f: Function, stencil: Stencil, sums: dict[tuple[int, int, int], Value], j: int, y: int) -> list[Value]:
    """The vectors of one output row of a tile, in the order in which they are stored: along x, or plane by plane."""
    lanes = stencil.lanes
    if stencil.out[1] == 1:
        total = _ordered(f, stencil, sums[j, y, 0])
        if stencil.planes == 1:
            return [total]
        return [f.shuffle(total, total, range(h * lanes // 2, (h + 1) * lanes // 2), "half") for h in (0, 1)]
    a, b = sums[j, y, 0], sums[j, y, 1]
    zipped = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for lane in pair]
    return [f.shuffle(a, b, zipped[half * lanes : (half + 1) * lanes], "zipped") for half in (0, 1)]


def load_masks(f: Function, stencil: Stencil, table: Value, column: Value) -> Masks:
    """The masks of a column of tiles: a word each for AVX-512, else half a word a pixel."""
    widths = stencil.mask_widths
    size = sum(map(mask_size(stencil), [width for kind in widths for width in kind]))
    at = [f.offset(table, column * size, I64, "masks_at")]

    def load(width: int) -> Value:
        bits = f"<{width} x i1>"
        if stencil.lanes == 16:
            number = f.load(at[0], f"i{width}", "bits")
            mask = f._emit(bits, f"bitcast i{width} {number.text} to {bits}", "mask")
        else:
            # The sign bits are the mask: this is what AVX2's masked loads read.
            numbers = f.load(at[0], f"<{width} x i32>", "numbers")
            mask = f._emit(bits, f"icmp slt {numbers.type} {numbers.text}, zeroinitializer", "mask")
        at[0] = f.offset(at[0], mask_size(stencil)(width), I64, "masks_at")
        return mask

    loads, columns, stores = ([load(width) for width in kind] for kind in widths)
    return Masks(loads, columns, stores)


def mask_size(stencil: Stencil) -> Callable[[int], int]:
    """Words that a mask of so many lanes takes in a table."""
    return lambda width: 1 if stencil.lanes == 16 else width // 2


def mask_words(stencil: Stencil, bits: Sequence[bool]) -> list[int]:
    """A mask as it lies in a table: AVX-512 takes it as bits, the others as numbers of 32 bits."""
    if stencil.lanes == 16:
        return [sum(1 << i for i, bit in enumerate(bits) if bit)]
    return [-int(bits[n]) & 0xFFFFFFFF | -int(bits[n + 1]) << 32 for n in range(0, len(bits), 2)]
