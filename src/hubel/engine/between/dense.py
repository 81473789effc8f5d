"""Fully connected layers of a training step with few rows, whose weights are used where they lie, and once.

    y[row, output]    =  Σ_inputs x[row, input] · w[output, input]  (+ bias[output])
    dx[row, input]    =  Σ_outputs dy[row, output] · w[output, input]
    dw[output, input] =  Σ_rows dy[row, output] · x[row, input]

With few rows everything waits for the weights, which change with every step: packing them would move them twice more.
What else a tile reads is copied beside it, since rows that lie a power of two apart fall into the same sets of a cache.

    y:   for some outputs, for stretches of inputs, for tiles of outputs and rows:       sums in lanes, added up at last
    dx:  for a strip of inputs, for blocks of outputs, for tiles of inputs and rows:     outer products
    dw:  for a strip of inputs and a block of outputs, for tiles of outputs and inputs:  outer products of all rows

Sums that go on after a stretch or block lie in scratch, each tile's in a place of its own: the last tile reaches back,
and what two of them compute is the same. How the sums are cut depends on the sizes alone, and so do the bits.

Constants: the layers of VGG at batch 16 on two threads (25,088 → 4,096: 27, 28 and 20 ms, at 15 to 20 GB/s of weights;
torch 52, 58 and 49 ms, and 190 where the gradient's memory is new). Blocks of 8 to 16 outputs in dx read along the
rows of w; with 32 and more, in short pieces of many rows, they take a third longer. Zen 3, 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hubel.engine.between.work import Work, kernel_function, work
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.machine import Machine
from hubel.engine.threads import RESERVED_WORDS

# y: outputs of an item (about); inputs of a stretch: those of 16 rows stay in L1.
ITEM_OUTPUTS, STRETCH = 32, 256
# dx: terms of a block; sums of a strip, about; strips at least, if that leaves so many inputs in one.
TERMS, STRIP_SUMS, ITEMS, LEAST_STRIP = 16, 32768, 8, 256
# dw: numbers of x beside an item, and outputs of it.
PANEL, BLOCK = 6144, 256
LINE = 16


def dense_outputs(rows: int, inputs: int, outputs: int, bias: bool) -> Work:
    """Base pointers: x in p0, weights in p1, bias in p2, y in p3."""
    machine = Machine.detect()
    height, wide = tile_of(rows, machine.registers)
    together = ITEM_OUTPUTS // wide * wide
    groups = -(-rows // height)
    # Each group of rows asks for so many rows of the weights that come next.
    asks = -(-wide // groups)
    sums = groups * together * height * machine.lanes
    return work(
        f"dense_dots_{height}x{wide}_{asks}{'b' * bias}",
        lambda: dots_function(height, wide, asks, bias, machine.lanes),
        -(-outputs // together), (rows, inputs, outputs, groups, together, sums), rows * inputs * together,
        scratch=sums + rows * STRETCH,
    )  # fmt: skip


def dense_input_gradient(rows: int, inputs: int, outputs: int) -> Work:
    """Base pointers: dy in p0, weights in p1, dx in p3."""
    machine = Machine.detect()
    height, vectors = tile_of(rows, machine.registers)
    width = vectors * machine.lanes
    tiles = -(-inputs // width)
    strip = _share(tiles, max(1, min(STRIP_SUMS // rows, max(inputs // ITEMS, LEAST_STRIP)) // width))
    groups = -(-rows // height)
    sums = strip * groups * height * width
    return work(
        f"dense_inputs_{height}x{vectors}", lambda: inputs_function(height, vectors, machine.lanes),
        -(-tiles // strip), (rows, inputs, outputs, tiles, strip, groups, sums), rows * strip * width * outputs,
        scratch=sums + TERMS * (width + rows),
    )  # fmt: skip


def dense_weight_gradient(rows: int, inputs: int, outputs: int) -> Work:
    """Base pointers: dy in p0, x in p1, the weights' gradient in p3, at a multiple of 64 bytes."""
    machine = Machine.detect()
    height, vectors = tile_of(outputs, machine.registers, max(1, LINE // machine.lanes))
    width = vectors * machine.lanes
    tiles = -(-inputs // width)
    strip = _share(tiles, max(1, PANEL // rows // width))
    block = _share(outputs, BLOCK)
    # What would drive everything else out of the caches goes past them, if its rows begin as lines do.
    past = 4 * inputs * outputs > machine.l3 and inputs % LINE == 0
    return work(
        f"dense_weights_{height}x{vectors}{'p' * past}", lambda: weights_function(height, vectors, past, machine.lanes),
        -(-tiles // strip) * -(-outputs // block), (rows, inputs, outputs, tiles, strip, block),
        rows * strip * width * block, scratch=rows * (strip * width + block + 2 * LINE),
    )  # fmt: skip


def fits(rows: int, inputs: int, outputs: int) -> bool:
    """Whether there are numbers enough for a tile of each kernel."""
    return rows > 0 and inputs >= 8 * Machine.detect().lanes and outputs >= 8


def _share(count: int, most: int) -> int:
    """The size of equal shares of `count`, none larger than `most`."""
    return -(-count // -(-count // most))


def tile_of(rows: int, registers: int, step: int = 1) -> tuple[int, int]:
    """(rows, vectors) of the register tile: the fewest cycles for a vector of all rows. Beside its sums a tile holds
    one operand whole, and one number of the other.
    """

    def cycles(tile: tuple[int, int]) -> float:
        height, vectors = tile
        # Two products a cycle, or two loads; chains of sums shorter than eight wait for each other.
        each = max(height * vectors / 2, (height + vectors) / 2, 4.0)
        return -(-rows // height) * each / vectors

    tiles = [
        (h, v) for h in range(1, min(rows, 8) + 1) for v in range(step, 9, step) if h * v + min(h, v) + 1 <= registers
    ]
    return min(tiles, key=cycles)


class _Slots:
    """Where a tile's sums lie while they go on."""

    def __init__(self, f: Function, at: Value, count: int, lanes: int) -> None:
        self.f, self.at, self.count, self.lanes = f, at, count, lanes

    def begin(self, again: Value) -> list[Value]:
        """Zeros, or, where `again` is 1, what was kept."""
        zero = self.f.constant(0.0, vector_of(self.lanes))
        with self.f.loop("again", 0, again, carry=[zero] * self.count) as loop:
            kept = [self.f.load(self.at + i * self.lanes, vector_of(self.lanes), "kept") for i in range(self.count)]
            loop.carry(*kept)
        return loop.results

    def keep(self, sums: Sequence[Value]) -> None:
        for i, total in enumerate(sums):
            self.f.store(total, self.at + i * self.lanes)


def _flag(f: Function, condition: Value) -> Value:
    return f.select(condition, 1, 0, "flag")


def dots_function(height: int, wide: int, asks: int, bias: bool, lanes: int) -> Function:
    """The kernel `dots`; an item is some outputs for all rows."""
    f, tile = kernel_function(), _dots_tile(height, wide, asks, bias, lanes)
    args = f.arg("args")
    x, w, biases, y = (f.word(args, i, n, PTR) for i, n in enumerate(("x", "w", "bias", "y")))
    names = ("rows", "inputs", "outputs", "groups", "together", "sums")
    rows, inputs, outputs, groups, together, sums = (
        f.word(args, RESERVED_WORDS + i, n, I64) for i, n in enumerate(names)
    )
    near = f.arg("scratch") + sums
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        first = item.index * together
        last = f.minimum(first + together, outputs)
        with f.loop("from", 0, inputs, STRETCH) as stretch:
            length = f.minimum(inputs - stretch.index, STRETCH)
            final = _flag(f, (stretch.index + STRETCH) >= inputs)
            with f.loop("r", 0, rows) as r:
                _copy(f, x + (r.index * inputs + stretch.index), near + r.index * STRETCH, length, lanes)
            with f.loop("o", first, last, wide) as o:
                output = f.minimum(o.index, outputs - wide)
                following = f.minimum(o.index + wide, outputs - wide)
                with f.loop("group", 0, groups) as group:
                    row = f.minimum(group.index * height, rows - height)
                    slot = ((o.index - first) * groups + group.index * wide) * (height * lanes)
                    ahead = f.minimum(group.index * asks, wide - asks) + following
                    f.call(
                        tile, near + row * STRETCH, w + (output * inputs + stretch.index),
                        w + (ahead * inputs + stretch.index), f.arg("scratch") + slot,
                        biases + output if bias else biases, y + (row * outputs + output), length, inputs, outputs,
                        _flag(f, stretch.index > 0), final,
                    )  # fmt: skip
    f.ret()
    return f


def _copy(f: Function, source: Value, target: Value, length: Value, lanes: int) -> None:
    """Copy a row; behind its end follow zeros, up to a whole vector."""
    whole = length // lanes * lanes
    with f.loop("copied", 0, whole, lanes) as i:
        f.store(f.load(source + i.index, vector_of(lanes)), target + i.index)
    with f.when(whole < length):
        rest = f.load_masked(source + whole, f.lanes_below(length - whole, lanes), lanes)
        f.store(rest, target + whole)


def _dots_tile(height: int, wide: int, asks: int, bias: bool, lanes: int) -> Function:
    """tile(x, w, ahead, slot, bias, y, length, apart, y_apart, again, final): the sums of `height` rows, which lie
    `STRETCH` apart, and `wide` outputs over `length` inputs; kept in `slot`, or, where final is 1, added up and
    written.
    """
    pointers = [(n, PTR) for n in ("x", "w", "ahead", "slot", "bias", "y")]
    numbers = [(n, I64) for n in ("length", "apart", "y_apart", "again", "final")]
    f, vector = Function("tile", [*pointers, *numbers], private=True), vector_of(lanes)
    slots = _Slots(f, f.arg("slot"), height * wide, lanes)
    whole = f.arg("length") // lanes * lanes
    rest = f.arg("length") - whole
    xs = [f.arg("x") + STRETCH * r for r in range(height)]
    ws = [f.arg("w") + f.arg("apart") * o for o in range(wide)]

    def step(sums: Sequence[Value], at: Value, read: Callable[[Value], Value]) -> list[Value]:
        numbers = [f.load(x + at, vector, "x") for x in xs]
        weights = [read(w + at) for w in ws]
        return [f.fma(numbers[i // wide], weights[i % wide], total) for i, total in enumerate(sums)]

    with f.loop("i", 0, whole, lanes, carry=slots.begin(f.arg("again"))) as i:
        for row in range(asks):
            f.prefetch(f.arg("ahead") + (f.arg("apart") * row + i.index), level=2)
        i.carry(*step(i.carried, i.index, lambda w: f.load(w, vector, "w")))
    mask = f.lanes_below(rest, lanes)
    with f.loop("rest", 0, _flag(f, rest > 0), carry=i.results) as last:
        last.carry(*step(last.carried, whole, lambda w: f.load_masked(w, mask, lanes, "w")))
    with f.when(f.arg("final").equals(0)):
        slots.keep(last.results)
    with f.when(f.arg("final").equals(1)):
        for i, sums in enumerate(last.results):
            total = _total(f, sums, lanes)
            total = total + f.load(f.arg("bias") + i % wide, F32) if bias else total
            f.store(total, f.arg("y") + (f.arg("y_apart") * (i // wide) + i % wide))
    f.ret()
    return f


def _total(f: Function, vector: Value, lanes: int) -> Value:
    """The sum of the lanes."""
    width = lanes
    while width > 1:
        width //= 2
        vector = vector + f.shuffle(vector, vector, [(i + width) % lanes for i in range(lanes)])
    return f.lane(vector, 0)


def inputs_function(height: int, vectors: int, lanes: int) -> Function:
    """The kernel of dx; an item is a strip of inputs for all rows."""
    f, tile, width = kernel_function(), _products_tile(height, vectors, False, lanes), vectors * lanes
    args = f.arg("args")
    dy, w, dx = (f.word(args, i, n, PTR) for i, n in ((0, "dy"), (1, "w"), (3, "dx")))
    names = ("rows", "inputs", "outputs", "tiles", "strip", "groups", "sums")
    rows, inputs, outputs, tiles, strip, groups, sums = (
        f.word(args, RESERVED_WORDS + i, n, I64) for i, n in enumerate(names)
    )
    near_w = f.arg("scratch") + sums
    near_dy = near_w + TERMS * width
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        first = item.index * strip
        last = f.minimum(first + strip, tiles)
        with f.loop("term", 0, outputs, TERMS) as term:
            count = f.minimum(outputs - term.index, TERMS)
            final = _flag(f, (term.index + TERMS) >= outputs)
            with f.loop("r", 0, rows) as r:
                _copy(f, dy + (r.index * outputs + term.index), near_dy + r.index * TERMS, count, lanes)
            with f.loop("t", first, last) as t:
                column = f.minimum(t.index * width, inputs - width)
                here = w + (term.index * inputs + column)
                # Behind the last tile of a strip comes the next block of terms.
                below = w + (f.minimum(term.index + TERMS, outputs - count) * inputs + first * width)
                ahead = f.select((t.index + 1).equals(last), below, here + width, "ahead")
                with f.loop("k", 0, count) as k:
                    for line in range(0, width, LINE):
                        f.prefetch(ahead + (k.index * inputs + line), level=2)
                    _copy_vectors(f, here + k.index * inputs, near_w + k.index * width, vectors, lanes)
                with f.loop("group", 0, groups) as group:
                    row = f.minimum(group.index * height, rows - height)
                    slot = ((t.index - first) * groups + group.index) * (height * width)
                    f.call(
                        tile, near_dy + row * TERMS, near_w, dx + (row * inputs + column), f.arg("scratch") + slot,
                        count, TERMS, 1, inputs, _flag(f, term.index > 0), final,
                    )  # fmt: skip
    f.ret()
    return f


def weights_function(height: int, vectors: int, past: bool, lanes: int) -> Function:
    """The kernel of dw; an item is a strip of inputs for a block of outputs."""
    f, tile, width = kernel_function(), _products_tile(height, vectors, past, lanes), vectors * lanes
    args = f.arg("args")
    dy, x, dw = (f.word(args, i, n, PTR) for i, n in ((0, "dy"), (1, "x"), (3, "dw")))
    names = ("rows", "inputs", "outputs", "tiles", "strip", "block")
    rows, inputs, outputs, tiles, strip, block = (f.word(args, RESERVED_WORDS + i, n, I64) for i, n in enumerate(names))
    strips = (tiles + (strip - 1)) // strip
    # A row of dy does not begin where others do in the cache.
    pitch = (block + (2 * LINE - 1)) // LINE * LINE
    near_dy = f.arg("scratch")
    near_x = near_dy + rows * pitch
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        first = item.index % strips * strip
        last = f.minimum(first + strip, tiles)
        top = f.minimum(item.index // strips * block, outputs - block)
        with f.loop("k", 0, rows) as k:
            _copy(f, dy + (k.index * outputs + top), near_dy + k.index * pitch, block, lanes)
            with f.loop("t", first, last) as t:
                column = f.minimum(t.index * width, inputs - width)
                near = near_x + ((t.index - first) * rows + k.index) * width
                _copy_vectors(f, x + (k.index * inputs + column), near, vectors, lanes)
        with f.loop("o", 0, block, height) as o:
            output = f.minimum(o.index, block - height)
            with f.loop("t", first, last) as t:
                column = f.minimum(t.index * width, inputs - width)
                to = dw + ((top + output) * inputs + column)
                f.call(
                    tile, near_dy + output, near_x + (t.index - first) * rows * width, to, to,
                    rows, 1, pitch, inputs, 0, 1,
                )  # fmt: skip
    f.ret()
    return f


def _copy_vectors(f: Function, source: Value, target: Value, vectors: int, lanes: int) -> None:
    for v in range(vectors):
        f.store(f.load(source + v * lanes, vector_of(lanes)), target + v * lanes)


def _products_tile(height: int, vectors: int, past: bool, lanes: int) -> Function:
    """tile(a, b, c, slot, terms, a_row, a_term, columns, again, final): the sums of a tile over some terms, kept
    in `slot`, or, where final is 1, written to c.
    """
    pointers = [(n, PTR) for n in ("a", "b", "c", "slot")]
    numbers = [(n, I64) for n in ("terms", "a_row", "a_term", "columns", "again", "final")]
    f, vector = Function("tile", [*pointers, *numbers], private=True), vector_of(lanes)
    slots = _Slots(f, f.arg("slot"), height * vectors, lanes)
    start = [f.arg("a"), f.arg("b"), *slots.begin(f.arg("again"))]
    with f.loop("k", 0, f.arg("terms"), carry=start, at_least_once=True) as k:
        a, b, *sums = k.carried
        numbers_of_b = [f.load(b + v * lanes, vector, "b") for v in range(vectors)]
        after = []
        for r in range(height):
            factor = f.splat(f.load(a + f.arg("a_row") * r, F32, "factor"), lanes)
            after += [f.fma(factor, number, sums[r * vectors + v]) for v, number in enumerate(numbers_of_b)]
        k.carry(a + f.arg("a_term"), b + vectors * lanes, *after)
    sums = k.results[2:]
    with f.when(f.arg("final").equals(0)):
        slots.keep(sums)
    with f.when(f.arg("final").equals(1)):
        for i, total in enumerate(sums):
            at = f.arg("c") + (f.arg("columns") * (i // vectors) + i % vectors * lanes)
            f.store_past(total, at) if past else f.store(total, at)
    f.ret()
    return f
