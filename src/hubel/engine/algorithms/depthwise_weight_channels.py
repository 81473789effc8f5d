"""Weight gradient of a depthwise convolution of channels-last tensors: channels in the lanes of a vector.

    for every share of the pieces (a band of rows of an image each), every block of channels:       one work item
        for pieces, for strips of columns, for rows of dy, for tiles of it along the row, for vectors of channels:
            load the tile's pixels of dy
            for rows of the kernel that lie in the image:                                           the register tile
                sum[tap] = Σ dy[pixel] · x[pixel·stride + tap]
                add the taps' sums to those in memory, which the L1 cache holds of all channels of the block

No lanes are added up. Columns that lie outside, and pixels of dy that another tile counts, are read from a vector of
zeros. Vectors of channels come innermost, though sums then leave their registers with every tile: the other way round
each of them goes through all pixels, every one in a page of its own, and few pages are known at a time (960 channels,
16 images at 7×7: 452 µs on one thread, 278 this way; Zen 3, 2026-11).

The number of shares depends on the problem alone; where there are several, a second job adds them in their order.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.depthwise_channels import (
    MOST_COLUMNS,
    REACHED,
    ROWS_HELD,
    TILE,
    asks_ahead,
    box_of,
    patterns_of,
    units_of_tile,
)
from hubel.engine.algorithms.depthwise_weight_channels_kernels import (
    REDUCE_WORDS,
    WORDS,
    correlation_function,
    reduce_function,
)
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import sums, three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "depthwise_weight_channels"
ANY_EDGES = True
CHANNELS_LAST = True
# Work items wanted, on however many threads.
ITEMS = 32


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for channels-last tensors with one input and one output channel a group, in one or two dimensions."""
    spec = problem.spec
    reason = _declined(problem, machine)
    if reason:
        return Refusal(NAME, reason)
    forward = Problem(spec, layout=problem.layout)
    (part,) = sums(forward)
    pixels = units_of_tile(part.outputs[2], 1)
    vectors = -(-spec.in_channels // machine.lanes)
    block, strip, _ = box_of(forward, [part], pixels, machine, machine.l2 * ROWS_HELD, 1)
    height = part.outputs[1]
    others = spec.batch * -(-vectors // block)
    bands = max(1, min(height // max(8, spec.kernel_size[0]), -(-ITEMS // others)))
    band = -(-height // bands)
    pieces = spec.batch * -(-height // band)
    shares = max(1, min(pieces, -(-ITEMS // -(-vectors // block))))
    tiles = spec.batch * vectors * height * -(-part.outputs[2] // pixels)
    computed = 2 * machine.lanes * pixels * tiles * spec.taps
    cycles = computed / (4 * machine.lanes * REACHED) + 2 * TILE * tiles
    shape = f"k{spec.kernel_size[-1]}s{spec.stride[-1]}d{spec.dilation[-1]}p{spec.padding[-1]}_{pixels}"
    shape += "_ahead" if asks_ahead(problem, machine) else ""
    return Plan(
        problem, machine, policy, NAME, Tile(pixels, 1, machine.lanes),
        kernels=(
            f"depthwise_weight_gradient_{number(problem)}_channels_{shape}_{machine.isa}",
            f"depthwise_weight_gradient_f32_reduce_channels_{machine.isa}",
            bias_name(problem, machine),
        ),
        channel_block=1, box=(1, band, strip), row_tiles=block, partial_sums=shares,
        estimate=Estimate(spec.flops, computed, problem.bytes(), cycles / policy.threads),
        error_bound=error_bound(problem), reason="one channel a group, next to each other: channels in lanes",
    )  # fmt: skip


def _declined(problem: Problem, machine: Machine) -> str:
    spec = problem.spec
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return "does weight gradients only"
    if problem.layout != "channels_last":
        return "reads channels that are next to each other"
    if spec.ndim > 2:
        return "has one or two dimensions"
    if spec.groups == 1 or spec.in_channels != spec.groups or spec.out_channels != spec.groups:
        return "needs one input and one output channel a group"
    if spec.in_channels < machine.lanes:
        return f"needs {machine.lanes} channels to fill its lanes"
    if spec.kernel_size[-1] > MOST_COLUMNS:
        return f"needs a kernel of up to {MOST_COLUMNS} columns"
    if not spec.batch:
        return "there are no images to add up"
    return ""


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel that the plan runs, by name."""
    problem, machine = plan.problem, plan.machine
    (pattern,) = patterns_of(Problem(problem.spec))
    main, reduce, bias = plan.kernels
    lanes, of, ahead = machine.lanes, stored(problem), asks_ahead(problem, machine)
    sources = {
        main: lambda: module_text(
            correlation_function(pattern, plan.tile.rows, lanes, machine.registers, of, ahead), lanes
        )
    }
    if plan.partial_sums > 1:
        sources[reduce] = lambda: module_text(reduce_function(lanes), lanes)
    if problem.bias:
        sources[bias] = lambda: module_text(bias_function(lanes, of), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, lanes, shares, tables = plan.problem.spec, plan.machine.lanes, plan.partial_sums, Tables()
    (_, x_y, x_x), (_, dy_y, dy_x) = three(x[2:], 0), three(y[2:], 0)
    (_, height, width), (_, dy_height, dy_width) = three(spec.input_size, 1), three(spec.output_size, 1)
    (_, step_y, step_x), (_, pad_y, pad_x) = three(spec.stride, 1), three(spec.padding, 0)
    (_, rows, _), (_, apart_y, _) = three(spec.kernel_size, 1), three(spec.dilation, 1)
    vectors, block, (_, band, strip) = -(-spec.in_channels // lanes), plan.row_tiles, plan.box
    blocks, bands = -(-vectors // block), -(-dy_height // band)
    pieces = spec.batch * bands
    sums_at = -(-lanes // 16) * 16
    words = {
        "channels": spec.in_channels, "vectors": vectors, "block": block, "blocks": blocks,
        "pieces": pieces, "share": -(-pieces // shares), "bands": bands, "per_band": band,
        "strips": -(-dy_width // strip), "strip": strip, "taps": spec.taps, "rows": rows,
        "lead_y": -pad_y, "apart_y": apart_y, "lead_x": -pad_x, "step_y": step_y, "step_x": step_x,
        "height": height, "width": width, "dy_height": dy_height, "dy_width": dy_width,
        "x_n": x[0], "x_y": x_y, "x_x": x_x, "dy_n": y[0], "dy_y": dy_y, "dy_x": dy_x,
        "partial": int(shares > 1), "zeros_at": 0, "sums_at": sums_at,
    }  # fmt: skip
    jobs = [PlannedJob(plan.kernels[0], blocks * shares, tuple(words[name] for name in WORDS))]
    if shares > 1:
        of = {"channels": spec.in_channels, "vectors": vectors, "taps": spec.taps, "shares": shares}
        jobs.append(
            PlannedJob(plan.kernels[1], vectors, tuple(of[name] for name in REDUCE_WORDS), max(1, vectors // 8))
        )
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    size = spec.taps * lanes
    shared = shares * vectors * size if shares > 1 else 0
    return Bound(tuple(jobs), (), 0, (), sums_at + block * size + 2 * lanes, shared, tables.keep())
