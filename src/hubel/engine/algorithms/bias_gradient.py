"""Bias gradients: the output gradient, summed over images and pixels; a job beside any weight gradient."""

from __future__ import annotations

from math import prod

from hubel.engine.algorithms.edges import number
from hubel.engine.algorithms.geometry import one_run, three
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, vector_of
from hubel.engine.ir.rows import gather_row
from hubel.engine.ir.tile import horizontal_sums
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, PlannedJob
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec


def bias_name(problem: Problem, machine: Machine) -> str:
    """The name of the kernel that makes bias gradients."""
    return f"bias_gradient_{number(problem)}_{machine.isa}"


def bias_job(plan: Plan, spec: ConvSpec, y: tuple[int, ...]) -> PlannedJob:
    """The job of the bias gradient, for an output gradient with strides y and sizes as `spec` says."""
    sizes, steps = three(spec.output_size, 1), three(y[2:], 0)
    run = one_run(spec.output_size, y[2:])
    if run is not None:
        sizes, steps = (1, 1, prod(sizes)), (0, 0, run)
    words = (spec.out_channels, spec.batch, *sizes, y[0], y[1], *steps)
    return PlannedJob(plan.kernels[-1], -(-spec.out_channels // plan.tile.lanes), words)


BIAS_WORDS = (
    "channels", "images", "size_z", "size_y", "size_x", "stride_n", "stride_c", "stride_z", "stride_y", "stride_x",
)  # fmt: skip


def bias_function(lanes: int, stored: Pointer = PTR) -> Function:
    """The bias gradients of a vector of channels a work item: dy of a channel, summed image by image, pixel i in sum i
    modulo the lanes, whatever the layout. stored: how dy is.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    dy, target = f.word(args, 1, "dy", stored), f.word(args, 2, "db", PTR)
    a = job_words(f, BIAS_WORDS)
    one, many = _channel_function(lanes, stored), _channels_function(lanes, stored)
    with f.loop("vector", f.arg("begin"), f.arg("end")) as vector:
        first = vector.index * lanes
        count = f.minimum(a["channels"] - first, lanes)
        # One row of pixels each of which has its channels side by side: a vector a pixel.
        beside = a["stride_c"].equals(1) & (a["size_z"] * a["size_y"]).equals(1) & count.equals(lanes)
        with f.when(beside, "beside"):
            f.call(many, args, dy + first, target + first)
        with f.when(f.negate(beside), "apart"), f.loop("c", first, first + count) as c:
            f.call(one, args, dy + c.index * a["stride_c"], target + c.index, f.arg("scratch"))
    f.ret()
    return f


def _channels_function(lanes: int, stored: Pointer) -> Function:
    """channels(args, dy, target): those of a vector, where a pixel has them side by side."""
    f = Function("channels", [("args", PTR), ("dy", stored), ("target", PTR)], private=True)
    a, vector = job_words(f, BIAS_WORDS), vector_of(lanes)
    zero = f.constant(0.0, vector)
    whole = a["size_x"] // lanes * lanes
    with f.loop("n", 0, a["images"], carry=[zero]) as n:
        image = f.arg("dy") + n.index * a["stride_n"]
        with f.loop("x", 0, whole, lanes, carry=[zero] * lanes) as x:
            place, sums = image + x.index * a["stride_x"], []
            for total in x.carried:
                sums.append(total + f.load(place, vector))
                place = place + a["stride_x"]
            x.carry(*sums)
        with f.loop("rest", whole, a["size_x"], carry=[zero]) as rest:
            rest.carry(rest.carried[0] + f.load(image + rest.index * a["stride_x"], vector))
        sums, half = x.results, lanes // 2
        while half:
            sums, half = [sums[i] + sums[i + half] for i in range(half)], half // 2
        n.carry(n.carried[0] + (sums[0] + rest.results[0]))
    f.store(n.results[0], f.arg("target"))
    f.ret()
    return f


def _channel_function(lanes: int, stored: Pointer) -> Function:
    """channel(args, dy, target, scratch): one of them, in any layout."""
    f = Function("channel", [("args", PTR), ("dy", stored), ("target", PTR), ("scratch", PTR)], private=True)
    a, vector, none = job_words(f, BIAS_WORDS), vector_of(lanes), f.constant(0.0, F32)
    contiguous = a["stride_x"].equals(1)
    whole = a["size_x"] // lanes * lanes
    loaded = f.select(contiguous, whole, 0, "loaded")
    with f.loop("n", 0, a["images"], carry=[none]) as n:
        image = f.arg("dy") + n.index * a["stride_n"]
        with f.loop("z", 0, a["size_z"], carry=[f.constant(0.0, vector), none]) as z:
            with f.loop("y", 0, a["size_y"], carry=z.carried) as y:
                row = image + z.index * a["stride_z"] + y.index * a["stride_y"]
                with f.loop("x", 0, loaded, lanes, carry=[y.carried[0]]) as x:
                    x.carry(x.carried[0] + f.load(row + x.index, vector))
                with f.loop("apart", loaded, whole, lanes, carry=x.results) as apart:
                    start = row + apart.index * a["stride_x"]
                    gather_row(f, f.arg("scratch"), start, f.constant(lanes), a["stride_x"])
                    apart.carry(apart.carried[0] + f.load(f.arg("scratch"), vector))
                with f.loop("rest", whole, a["size_x"], carry=[y.carried[1]]) as rest:
                    rest.carry(rest.carried[0] + f.load(row + rest.index * a["stride_x"], F32))
                y.carry(apart.results[0], rest.results[0])
            z.carry(*y.results)
        lane_sums = f.lane(horizontal_sums(f, [z.results[0]], lanes)[0], 0)
        n.carry(n.carried[0] + (lane_sums + z.results[1]))
    f.store(n.results[0], f.arg("target"))
    f.ret()
    return f
