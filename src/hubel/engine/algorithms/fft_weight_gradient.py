"""Weight gradients of large depthwise kernels: Fourier transforms along columns.

The gradient is a correlation too: of the input, with dy as the kernel, at as many places as the kernel has elements.
So it is done as `algorithms/fft.py` does the convolution, and images are summed where that sums channels:

    for every output channel:                                                              one work item
        for every image and band of rows of dy:
            transforms of the columns of the input, and of dy
            for frequencies, for vectors of the kernel's columns t, for columns x of dy:    the register tile
                sums[t] += conjugate(dy[x]) · input[x + t]
        the opposite transform: the gradient of a slice

Each layer has three lengths of transforms, for planes of about 14, 28 and 56 rows; dy of higher ones is cut into bands.
Sums over the columns of a band begin anew for each, which bounds the rounding error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from hubel.engine.algorithms import fft
from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.fft import COLUMN, FREQUENCY, HEIGHTS, LEAST_TAPS, ROW, Axis, fits
from hubel.engine.algorithms.fft_kernels import weight_gradient_function
from hubel.engine.algorithms.fft_products import WORDS
from hubel.engine.ir import module_text
from hubel.engine.ir.fourier import FIRST, operations
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile, error_unit, terms_of
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "fft_weight_gradient"
ANY_EDGES = True
LEAST_ROWS = 7
ERROR = 2.0
CHUNKS = 16


@dataclass(frozen=True)
class Cut:
    """The length of the transforms, and of every band of dy its first row and what is summed over it along y."""

    length: int
    bands: tuple[tuple[int, Axis], ...]
    cycles: float


def _bands(size: int, rows: int, kernel: int, pad: int, length: int) -> tuple[tuple[int, Axis], ...] | None:
    """dy cut into as few bands as can be; None if not even one row fits."""
    for count in range(1, rows + 1):
        edges = [rows * i // count for i in range(count + 1)]
        axes = [(a, Axis(size, kernel, b - a, pad - a)) for a, b in pairwise(edges)]
        if all(axis.taps < 1 or fits(axis, length, 0, kernel) for _, axis in axes):
            return tuple((a, axis) for a, axis in axes if axis.taps > 0)
    return None


def across(problem: Problem) -> Axis:
    """What is summed along x."""
    spec = problem.spec
    return Axis(spec.input_size[1], spec.kernel_size[1], spec.output_size[1], spec.padding[1])


@lru_cache(maxsize=1024)
def cut(problem: Problem, machine: Machine) -> Cut | None:
    """The length that takes the fewest cycles; None if all are shorter than the kernel."""
    spec, lanes = problem.spec, machine.lanes
    kernel, pad, x = spec.kernel_size[0], spec.padding[0], across(problem)
    lengths = set()
    for size in HEIGHTS:
        rows = size + 2 * pad - kernel + 1
        fitting = [n for n in FIRST if rows > 0 and fits(Axis(size, kernel, rows, pad), n, 0, kernel)]
        lengths |= set(fitting[:1]) if fitting else {max(FIRST)}
    found = []
    for length in sorted(lengths):
        bands = _bands(spec.input_size[0], spec.output_size[0], kernel, pad, length)
        if bands is None:
            continue
        there, _ = operations(length)
        vectors = -(-x.size // lanes) + -(-x.kernel // lanes)
        columns = vectors * (there + 3.5 * length + COLUMN) / 1.3
        products = length / 2 * (x.taps * fft.tap_cycles(-(-x.outputs // lanes), machine) + FREQUENCY)
        each = columns + 1.1 * products + 2 * length * ROW
        found.append(Cut(length, bands, len(bands) * spec.batch * spec.out_channels * each))
    return min(found, key=lambda each: each.cycles) if found else None


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for large kernels with stride and dilation 1 and one input channel a group."""
    reason = _declined(problem, policy)
    if reason:
        return Refusal(NAME, reason)
    best = cut(problem, machine)
    if best is None or not best.bands:
        return Refusal(
            NAME, f"transforms are up to {max(FIRST)} rows long, kernels must be shorter, and meet the input"
        )
    spec, shape = problem.spec, fft.shape_of(best.length, machine)
    return Plan(
        problem, machine, policy, NAME, Tile(1, shape.tiles[0], machine.lanes),
        kernels=(
            f"weight_gradient_{number(problem)}_fft_columns_of_{best.length}_{machine.isa}",
            bias_name(problem, machine),
        ),
        channel_block=1, box=(1, max(axis.kernel for _, axis in best.bands), spec.output_size[1]), row_tiles=1,
        estimate=Estimate(
            spec.flops, int(best.cycles * 4 * machine.lanes), problem.bytes(), best.cycles / policy.threads
        ),
        error_bound=ERROR * error_unit(terms_of(problem)),
        reason=f"transforms of {best.length} rows: sums over columns alone; an infinity or NaN spreads over columns of "
        "its slice",
    )  # fmt: skip


def _declined(problem: Problem, policy: Policy) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return "does weight gradients only"
    if policy.accuracy == "strict":
        return "strict allows direct algorithms only"
    if spec.ndim != 2 or set(spec.stride) | set(spec.dilation) != {1}:
        return "does two dimensions with stride 1 and dilation 1"
    if spec.groups == 1 or spec.in_channels != spec.groups:
        return "needs one input channel a group"
    if spec.kernel_size[0] < LEAST_ROWS or spec.taps < LEAST_TAPS:
        return f"needs a kernel of {LEAST_ROWS} rows and {LEAST_TAPS} elements or more"
    if any(p >= k for p, k in zip(spec.padding, spec.kernel_size, strict=True)) or across(problem).taps < 1:
        return "needs less padding than the kernel is large, and outputs that meet the input"
    return ""


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel that the plan runs, by name."""
    best = cut(plan.problem, plan.machine)
    assert best is not None
    shape = fft.shape_of(best.length, plan.machine)
    (main, bias), of = plan.kernels, stored(plan.problem)
    sources = {main: lambda: module_text(weight_gradient_function(shape, of), shape.lanes)}
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(shape.lanes, of), shape.lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, tables = plan.problem.spec, Tables()
    words, scratch = _words(plan, x, y, tables)
    chunk = max(1, spec.out_channels // (CHUNKS * plan.policy.threads))
    jobs = [PlannedJob(plan.kernels[0], spec.out_channels, words, chunk)]
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    return Bound(tuple(jobs), (), 0, (), scratch, 0, tables.keep())


def _words(plan: Plan, x: tuple[int, ...], y: tuple[int, ...], tables: Tables) -> tuple[tuple[int, ...], int]:
    """(the words of the job, numbers of scratch of a thread)"""
    spec, lanes, best, axis = (
        plan.problem.spec,
        plan.machine.lanes,
        cut(plan.problem, plan.machine),
        across(plan.problem),
    )
    assert best is not None
    length, least = best.length, 0 if lanes == 16 else lanes
    vectors = -(-axis.outputs // lanes)
    margin = fft.up(max(0, axis.before), 16)
    reach = margin - axis.before + vectors * lanes + axis.taps
    pitch = fft.odd_lines(max(reach, margin + fft.up(max(axis.size, least), lanes)))
    dy_pitch, out_pitch = fft.odd_lines(fft.up(max(axis.kernel, least), lanes)), fft.odd_lines(vectors * lanes)
    rows, dy_rows = [], []
    for first, band in best.bands:
        begin = -band.before
        rows += [0, begin, min(band.size, begin + band.outputs + band.taps - 1), 0]
        dy_rows += [0, first + band.first, first + band.last, 0]
    copies = [int(step != 1 or row < size or size < least) for row, step, size in (
        (x[2], x[3], axis.size), (y[2], y[3], axis.kernel),
    )]  # fmt: skip
    copy_out = int(axis.outputs < least)
    places, scratch = fft.places(
        {
            "zeros_at": max(pitch, dy_pitch), "between_at": length * lanes, "ins_at": 2 * length, "rows_at": 2 * length,
            "outs_at": 2 * length, "made_at": 2 * length, "in_at": copies[0] * length * max(axis.size, least),
            "out_at": copy_out * length * out_pitch, "dump_at": out_pitch, "spectrum_at": length * pitch,
            "sums_at": length * out_pitch, "dy_rows_at": 2 * length,
            "dy_in_at": copies[1] * length * max(axis.kernel, least), "dy_spectrum_at": length * dy_pitch,
        },
        lanes,
    )  # fmt: skip
    shared = {
        "bands": len(best.bands), "channels": 1, "images": spec.batch,
        "multiplier": spec.out_channels // spec.in_channels,
        "out_c": spec.taps, "out_y": axis.outputs, "out_x": 1, "out_width": axis.outputs,
        "put_width": max(axis.outputs, least), "put_vectors": vectors, "copy_out": copy_out, "out_pitch": out_pitch,
        "taps": axis.taps, "w_pitch": dy_pitch,
        **fft.shares(vectors, fft.tiles_of(lanes, plan.machine.registers)), **places,
    }  # fmt: skip
    of_input = {
        "bands_at": tables.add([*rows, 0, 0, 0, spec.kernel_size[0]]),
        "in_n": x[0], "in_c": x[1], "in_y": x[2], "in_x": x[3], "width": axis.size, "read_width": max(axis.size, least),
        "copy_in": copies[0], "from_tap": margin - axis.before, "pitch": pitch, "spectrum_c": length * pitch,
        "margin": margin, "vectors": -(-axis.size // lanes),
    }  # fmt: skip
    of_dy = {
        "bands_at": tables.add(dy_rows),
        "in_n": y[0], "in_c": y[1], "in_y": y[2], "in_x": y[3], "width": axis.kernel,
        "read_width": max(axis.kernel, least), "copy_in": copies[1], "from_tap": axis.first, "pitch": dy_pitch,
        "spectrum_c": length * dy_pitch, "margin": 0, "vectors": -(-axis.kernel // lanes),
        "rows_at": places["dy_rows_at"], "in_at": places["dy_in_at"], "spectrum_at": places["dy_spectrum_at"],
    }  # fmt: skip
    blocks = [shared | block for block in (of_input, of_dy)]
    return tuple(block.get(name, 0) for block in blocks for name in WORDS), scratch
