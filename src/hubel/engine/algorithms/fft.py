"""Large kernels by Fourier transforms along columns: forward and input gradient.

A transform along one axis alone turns a sum over a kernel's rows and columns into sums over its columns, one at each
frequency: k·k multiply-adds an output become about 4·k, and nothing has to be transposed, because lanes are columns in
all steps:

    for every image, group, band of output rows and share of the output channels:          one work item
        for channels c, for vectors of columns:
            spectrum[c] = transform of the columns, with zeros above and below              `ir.fourier`
        for output channels m:
            for frequencies, for vectors of columns, for c, for taps t along x:             the register tile
                sums[x] += conjugate(weights[m, c, t]) · spectrum[c, x + t]
            for vectors of columns: the opposite transform, bias added; rows are stored

A transform of length L is circular: what leaves it below comes back above. A band is as high as it may be while that
meets zeros only, so planes that with half the kernel are no longer than L need one band. Taps that meet padding alone,
in all outputs, are left out.

Constants. Each layer has three lengths, for planes of about 14, 28 and 56 rows, so that at most three kernels do all of
its sizes. Two real frequencies have half of the weight of the others: they are halved after summing.

One infinity or NaN spoils the whole band of rows in those columns whose kernels meet it, at most L rows high. The error
is that of sums over the columns of a kernel and about log₂ L roundings more (measured: tests/engine/test_fft.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.fft_kernels import BAND, PACK_WORDS, kernel_function, pack_function
from hubel.engine.algorithms.fft_products import WORDS, Shape, tiles_of
from hubel.engine.ir import module_text
from hubel.engine.ir.fourier import FIRST, operations
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile, error_unit, terms_of
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "fft"
ANY_EDGES = True
# Elements of the smallest kernel for which transforms pay, and its rows: of layers with one channel a group, which have
# few kernels beside these, and of others, whose sizes share one length with several kernels of direct convolution.
LEAST_TAPS, LEAST_ROWS, LEAST_DENSE_ROWS = 50, 7, 11
# Heights of planes that have lengths of their own.
HEIGHTS, DENSE_HEIGHTS = (14, 28, 56), (56,)
# Work items wanted, so that every thread finds some.
ITEMS = 16
ERROR = 2.0
# Cycles: a frequency of a row of tiles, a column of vectors transformed, a row of a table.
FREQUENCY, COLUMN, ROW = 20.0, 60.0, 3.0


@dataclass(frozen=True)
class Axis:
    """One axis of the sum out[j] = Σ_t w[t]·in[j + t − pad] over `size` inputs, `outputs` outputs, kernel positions
    `first` ≤ t < `last`, those that meet data; `kernel` positions in all.
    """

    size: int
    outputs: int
    kernel: int
    pad: int

    @property
    def first(self) -> int:
        return max(0, self.pad - self.outputs + 1)

    @property
    def last(self) -> int:
        return min(self.kernel, self.pad + self.size)

    @property
    def taps(self) -> int:
        return self.last - self.first

    @property
    def before(self) -> int:
        """How far before its own place an output begins to read."""
        return self.pad - self.first


def axes_of(problem: Problem) -> tuple[Axis, Axis]:
    """Both axes, y and x, of a forward convolution, or of the input gradient with the kernel turned round."""
    spec = problem.spec
    sizes, outputs, pads = spec.input_size, spec.output_size, spec.padding
    if problem.direction is Direction.INPUT_GRADIENT:
        sizes, outputs = outputs, sizes
        pads = tuple(k - 1 - p for k, p in zip(spec.kernel_size, pads, strict=True))
    y, x = (Axis(*axis) for axis in zip(sizes, outputs, spec.kernel_size, pads, strict=True))
    return y, x


def fits(axis: Axis, length: int, start: int, stop: int) -> bool:
    """Whether outputs start ≤ j < stop read nothing that has gone round a transform of this length."""
    low, high = max(0, start - axis.before), min(axis.size, stop - 1 + axis.taps - axis.before)
    return max(high - start + axis.before, stop - low + axis.taps - 1 - axis.before) <= length


def bands(axis: Axis, length: int) -> list[tuple[int, int]]:
    """(first output, outputs) of each band, as few of them as can be, all about as high."""
    for count in range(1, axis.outputs + 1):
        edges = [axis.outputs * i // count for i in range(count + 1)]
        if all(fits(axis, length, a, b) for a, b in pairwise(edges)):
            return [(a, b - a) for a, b in pairwise(edges)]
    raise AssertionError(f"a transform of {length} rows is shorter than the kernel")


@lru_cache(maxsize=256)
def lengths(kernel: int, pad: int, heights: tuple[int, ...]) -> tuple[int, ...]:
    """The transforms that a layer's sizes share."""
    found = set()
    for size in heights:
        outputs = size + 2 * pad - kernel + 1
        if outputs > 0:
            axis = Axis(size, outputs, kernel, pad)
            found.add(min((n for n in FIRST if fits(axis, n, 0, outputs)), default=max(FIRST)))
    return tuple(sorted(found))


@dataclass(frozen=True)
class Cut:
    """How a problem is cut up. cycles: of one image on one thread; computed: floating-point operations, of all."""

    length: int
    bands: tuple[tuple[int, int], ...]
    cycles: float
    computed: int


@lru_cache(maxsize=1024)
def cut(problem: Problem, machine: Machine) -> Cut | None:
    """The length that takes the fewest cycles, for one image; None if all are shorter than the kernel."""
    y, x = axes_of(problem)
    spec, lanes = problem.spec, machine.lanes
    read, written = spec.in_channels, spec.out_channels
    if problem.direction is Direction.INPUT_GRADIENT:
        read, written = written, read
    found = []
    for length in lengths(y.kernel, y.pad, HEIGHTS if _one_channel(problem) else DENSE_HEIGHTS):
        if length < y.taps:
            continue
        pieces = bands(y, length)
        there, back = operations(length)
        vectors_in, vectors_out = -(-x.size // lanes), -(-x.outputs // lanes)
        moved = 3.5 * length
        columns = read * vectors_in * (there + moved + COLUMN) + written * vectors_out * (back + moved + COLUMN)
        pairs = read * written // spec.groups * length / 2
        products = pairs * (x.taps * tap_cycles(vectors_out, machine) + FREQUENCY)
        tables = (read + written) * length * ROW
        cycles = len(pieces) * (columns / 1.3 + 1.1 * products + tables)
        flops = columns * lanes + pairs * x.taps * vectors_out * 8 * lanes
        found.append(Cut(length, tuple(pieces), cycles, int(spec.batch * len(pieces) * flops)))
    return min(found, key=lambda each: each.cycles) if found else None


def tap_cycles(vectors: int, machine: Machine) -> float:
    """Cycles of one tap at one frequency for so many vectors."""
    crossing = 1.9 if machine.lanes == 16 else 1.4
    total, left = 0.0, vectors
    for width in tiles_of(machine.lanes, machine.registers):
        count, left = divmod(left, width)
        total += count * max(2.0 * width, width * crossing + 1, 2.5)
    return total


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for large kernels with stride and dilation 1, where it takes fewer cycles than direct convolution."""
    reason = _declined(problem, machine, policy)
    if reason:
        return Refusal(NAME, reason)
    best = cut(problem, machine)
    if best is None:
        return Refusal(NAME, f"transforms are up to {max(FIRST)} rows long, kernels must be shorter")
    spec, (_, axis) = problem.spec, axes_of(problem)
    read = (spec.out_channels if problem.direction is Direction.INPUT_GRADIENT else spec.in_channels) // spec.groups
    # Every output channel reads all of them: from L3 that takes several times as long (64 channels at 56×56: 60 ms, by
    # estimate 8).
    if read > 1 and 4 * read * best.length * (axis.size + axis.kernel) > machine.l2 // 2:
        return Refusal(NAME, "the transforms of a group's channels do not fit the cache")
    shape, high = shape_of(best.length, machine), max(rows for _, rows in best.bands)
    return Plan(
        problem, machine, policy, NAME, Tile(1, shape.tiles[0], machine.lanes),
        kernels=(
            _name("conv", problem, shape, machine) + ending_of(problem).name,
            _name("pack", problem, shape, machine),
        ),
        channel_block=spec.in_channels // spec.groups, box=(1, high, axes_of(problem)[1].outputs), row_tiles=1,
        estimate=Estimate(spec.flops, best.computed, problem.bytes(), spec.batch * best.cycles / policy.threads),
        error_bound=ERROR * error_unit(terms_of(problem)),
        reason=f"transforms of {best.length} rows: sums over the kernel's columns alone; an infinity or NaN spreads "
        f"over {high} rows",
    )  # fmt: skip


def _declined(problem: Problem, machine: Machine, policy: Policy) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels"
    if policy.accuracy == "strict":
        return "strict allows direct algorithms only"
    if spec.ndim != 2 or set(spec.stride) | set(spec.dilation) != {1}:
        return "does two dimensions with stride 1 and dilation 1"
    rows = LEAST_ROWS if _one_channel(problem) else LEAST_DENSE_ROWS
    if spec.kernel_size[0] < rows or spec.taps < LEAST_TAPS:
        return f"needs a kernel of {rows} rows and {LEAST_TAPS} elements or more"
    if any(p >= k for p, k in zip(spec.padding, spec.kernel_size, strict=True)):
        return "needs less padding than the kernel is large"
    y, x = axes_of(problem)
    if y.taps < 1 or x.taps < 1:
        return "no output meets any input"
    return ""


def _one_channel(problem: Problem) -> bool:
    spec = problem.spec
    return spec.in_channels == spec.groups > 1


def shape_of(length: int, machine: Machine) -> Shape:
    return Shape(length, machine.lanes, tiles_of(machine.lanes, machine.registers))


def _name(kind: str, problem: Problem, shape: Shape, machine: Machine) -> str:
    return f"{kind}_{number(problem)}_fft_columns_of_{shape.length}_{machine.isa}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    best = cut(plan.problem, plan.machine)
    assert best is not None
    shape = shape_of(best.length, plan.machine)
    (main, pack), ending = plan.kernels, ending_of(plan.problem)
    return {
        main: lambda: module_text(kernel_function(shape, ending), shape.lanes),
        pack: lambda: module_text(pack_function(shape, ending.stored), shape.lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are input and output (or their gradients), w the weight."""
    problem, spec = plan.problem, plan.problem.spec
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    read, written = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if not forward:
        read, written = written, read
    tables = Tables()
    words, items, scratch, pitch = _job_words(plan, read, written, source, target, tables)
    packing, needed = _packing(plan, w, pitch, tables)
    length, slices = _length(plan), spec.groups * read * written
    axis_y, axis_x = axes_of(problem)
    job = PlannedJob(plan.kernels[0], items, words, max(1, items // (8 * plan.policy.threads)))
    key = (
        plan.kernels[1], spec.weight_shape, spec.groups, w, forward,
        axis_y.first, axis_y.last, axis_x.first, axis_x.last,
    )  # fmt: skip
    return Bound((job,), (packing,), slices * length * pitch, key, max(scratch, needed), 0, tables.keep())


def _length(plan: Plan) -> int:
    best = cut(plan.problem, plan.machine)
    assert best is not None
    return best.length


def up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def places(sizes: dict[str, int], lanes: int) -> tuple[dict[str, int], int]:
    """Where the parts of a thread's scratch begin, and its length in numbers."""
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = at
        at += up(size + lanes, 16)
    return places, at


def _job_words(
    plan: Plan, read: int, written: int, source: tuple[int, ...], target: tuple[int, ...], tables: Tables
) -> tuple[tuple[int, ...], int, int, int]:
    """(words, work items, numbers of scratch of a thread, from a row of packed weights to the next)"""
    spec, lanes, best = plan.problem.spec, plan.machine.lanes, cut(plan.problem, plan.machine)
    assert best is not None
    axis_y, axis_x = axes_of(plan.problem)
    length = best.length
    # Data begin at a multiple of a cache line; what taps read left and right of them is zero.
    margin, w_pitch = up(max(0, axis_x.before), 16), up(axis_x.taps, lanes)
    put_vectors = -(-axis_x.outputs // lanes)
    reach = margin - axis_x.before + put_vectors * lanes + axis_x.taps
    pitch = odd_lines(max(reach, margin + up(axis_x.size, lanes)))
    out_pitch = odd_lines(put_vectors * lanes)
    spectrum_c = length * pitch
    # AVX-512 masks what lies beside short rows; elsewhere they go through scratch.
    least = 0 if lanes == 16 else lanes
    read_width, put_width = max(axis_x.size, least), max(axis_x.outputs, least)
    copy_in = int(source[3] != 1 or source[2] < axis_x.size or axis_x.size < least)
    copy_out = int(target[3] != 1 or axis_x.outputs < least or not ending_of(plan.problem).plain)
    table = []
    for first, count in best.bands:
        begin = first - axis_y.before
        table += [first, begin, min(axis_y.size, begin + count + axis_y.taps - 1), count]
    assert len(table) == BAND * len(best.bands)
    parts = min(written, -(-ITEMS // max(1, spec.batch * spec.groups * len(best.bands))))
    part_rows = -(-written // parts)
    at, scratch = places(
        {
            "zeros_at": pitch, "between_at": length * lanes, "ins_at": 2 * length, "rows_at": 2 * length,
            "outs_at": 2 * length, "made_at": 2 * length, "in_at": copy_in * length * read_width,
            "out_at": copy_out * length * out_pitch, "dump_at": out_pitch, "spectrum_at": read * spectrum_c,
            "sums_at": length * out_pitch,
        },
        lanes,
    )  # fmt: skip
    widths = tiles_of(lanes, plan.machine.registers)
    words = {
        "bands_at": tables.add(table), "bands": len(best.bands), "groups": spec.groups, "channels": read,
        "rows": written, "parts": -(-written // part_rows), "part_rows": part_rows,
        "in_n": source[0], "in_c": source[1], "in_y": source[2], "in_x": source[3], "width": axis_x.size,
        "read_width": read_width, "put_width": put_width, "images": spec.batch, "multiplier": 1,
        "out_n": target[0], "out_c": target[1], "out_y": target[2], "out_x": target[3], "out_width": axis_x.outputs,
        "copy_in": copy_in, "copy_out": copy_out, "taps": axis_x.taps, "from_tap": margin - axis_x.before,
        "pitch": pitch, "spectrum_c": spectrum_c, "out_pitch": out_pitch, "w_pitch": w_pitch, "margin": margin,
        "vectors": -(-axis_x.size // lanes), "put_vectors": put_vectors,
        **shares(put_vectors, widths), **at,
    }  # fmt: skip
    items = spec.batch * spec.groups * len(best.bands) * words["parts"]
    return tuple(words[name] for name in WORDS), items, scratch, w_pitch


def shares(vectors: int, widths: tuple[int, ...]) -> dict[str, int]:
    """Where the widest tiles of a row end, and the next: no vector is left alone where two tiles can share them."""
    widest = vectors // widths[0] * widths[0]
    if vectors - widest == 1 and widest:
        widest -= widths[0]
    return {"widest": widest, "wide": widest + (vectors - widest) // widths[1] * widths[1]}


def odd_lines(numbers: int) -> int:
    """At least so many numbers, in an odd number of cache lines: rows fall into different sets."""
    lines = -(-numbers // 16)
    return 16 * (lines + 1 - lines % 2)


def _packing(plan: Plan, w: tuple[int, ...], w_pitch: int, tables: Tables) -> tuple[PlannedJob, int]:
    """(the job that transforms the weights, numbers of scratch it needs)"""
    problem, spec, lanes = plan.problem, plan.problem.spec, plan.machine.lanes
    axis_y, axis_x = axes_of(problem)
    outer, inner = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    if problem.direction is Direction.FORWARD:
        pairs = product(range(spec.groups), range(outer), range(inner))
        slices = [(g * outer + m) * w[0] + c * w[1] for g, m, c in pairs]
        ys, xs = range(axis_y.first, axis_y.last), range(axis_x.first, axis_x.last)
    else:
        pairs = product(range(spec.groups), range(inner), range(outer))
        slices = [(g * outer + c) * w[0] + m * w[1] for g, m, c in pairs]
        # The kernel turned round.
        ys = [axis_y.kernel - 1 - t for t in range(axis_y.first, axis_y.last)]
        xs = [axis_x.kernel - 1 - t for t in range(axis_x.first, axis_x.last)]
    taps = [ty * w[2] + tx * w[3] for ty in ys for tx in xs]
    length = _length(plan)
    at, scratch = places(
        {
            "between_at": length * lanes, "ins_at": 2 * length, "outs_at": 2 * length,
            "from_at": axis_y.taps * w_pitch, "zeros_at": w_pitch,
        },
        lanes,
    )  # fmt: skip
    words = {
        "taps_at": tables.add(slices + taps), "rows": axis_y.taps, "columns": axis_x.taps, "w_pitch": w_pitch,
        "taps": len(slices), **at,
    }  # fmt: skip
    return PlannedJob(plan.kernels[1], len(slices), tuple(words[name] for name in PACK_WORDS)), scratch
