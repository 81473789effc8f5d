"""Kernels touch no memory beside their tensors: behind and before each lies a page that may not be touched.

What is found this way and not by canaries are reads whose values are thrown away. They run in a process of their own,
because the first of them ends it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as from_seed
from hypothesis import strategies as st

from hubel.engine import Direction, Machine, Policy, choose
from hubel.engine.invoke import Invocation, laid_out
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from tests.engine.fences import Fenced
from tests.engine.guards import OUTPUT_LAYOUTS, operands
from tests.engine.machines import OTHERS
from tests.engine.native import finish, start
from tests.strategies import integers, problems, seeds

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected as on Linux")

# More than the strategy draws: several boxes, blocks and shares, rows longer than tiles, in-place reads and stores.
LARGE = [
    "n2c20o30i33x31k3x3s1p1",
    "n2c40o24i14x14k1x1s1p0",
    "n1c8o8i1x700k1x3s1p0x1",
    "n2c16o16i30x29k3x3s2p1g16",
    "n1c6o10i5x12x13k3x3x3s1p1",
    "n3c5o4i1030k1s1p0",
    "n2c9o7i40x41k5x5s3p2d2",
    "n20c4o6i7x7k3x3s1p1",
    "n2c5o5i30x33k13x11s1p6x5g5",
]


def touch(problem: Problem, machine: Machine, seed: int, layouts: tuple[str, str, str], at_end: bool) -> None:
    """Pack and run a problem with every tensor at a fence, and those that are only read protected from writing."""
    print(f"{problem} {layouts} {machine.isa}, fences {'behind' if at_end else 'before'}", flush=True)
    spec, direction = problem.spec, problem.direction
    first, second, *bias = operands(problem, seed, layouts[:2])
    a, b = (Fenced(operand, at_end).read_only() for operand in (first, second))
    shapes = {"forward": spec.output_shape, "input_gradient": spec.input_shape, "weight_gradient": spec.weight_shape}
    contiguous = direction is Direction.WEIGHT_GRADIENT
    result = Fenced(integers(shapes[direction], layout="contiguous" if contiguous else layouts[2]), at_end)
    x, w, y = {"forward": (a, b, result), "input_gradient": (result, b, a), "weight_gradient": (a, result, b)}[
        direction
    ]
    plan = choose(laid_out(problem, x.strides, y.strides), machine, Policy())
    run = Invocation(plan, x.strides, w.strides, y.strides)
    second_address, third = b.address, 0
    if run.packed_bytes:
        packed = Fenced(np.zeros(run.packed_bytes // 4, np.float32), at_end)
        run.pack(b.address, packed.address)
        second_address = packed.read_only().address
    if bias:
        third = Fenced(bias[0], at_end).read_only().address
    elif problem.bias:
        third = Fenced(np.zeros(spec.out_channels, np.float32), at_end).address
    run(a.address, second_address, third, result.address)


def touch_many(machine_name: str, examples: int) -> None:
    """What the child process does."""
    machine = Machine.named(machine_name) if machine_name else Machine.detect()
    for text in LARGE if machine == Machine.detect() else LARGE[::2]:
        for direction in Direction:
            problem = Problem(ConvSpec.parse(text), direction, bias=direction is not Direction.INPUT_GRADIENT)
            for at_end in (True, False):
                for layout in ("contiguous", "channels_last", "sliced"):
                    touch(problem, machine, 0, (layout, layout, layout), at_end)

    layouts = st.tuples(*[st.sampled_from(OUTPUT_LAYOUTS)] * 3)

    @from_seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(problems(), seeds(), layouts, st.booleans())
    def any_problem(problem: Problem, seed: int, three: tuple[str, str, str], at_end: bool) -> None:
        touch(problem, machine, seed, three, at_end)

    any_problem()


def run_child(code: str) -> str:
    return finish(start(code, Path(os.environ.get("HUBEL_CACHE_DIR") or Path.home() / ".cache" / "hubel")))


@pytest.mark.parametrize("machine", ["", *(machine.name for machine in OTHERS)])
def test_nothing_beside_the_tensors_is_touched(machine: str) -> None:
    code = f"from tests.engine.test_bounds import touch_many; touch_many({machine!r}, 100)"
    assert run_child(code).count("\n") > 140


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["", *(machine.name for machine in OTHERS)])
def test_nothing_beside_the_tensors_is_touched_at_length(machine: str) -> None:
    run_child(f"from tests.engine.test_bounds import touch_many; touch_many({machine!r}, 2000)")


@pytest.mark.parametrize("do", ["read behind", "read before", "write"])
def test_fences_hold(do: str) -> None:
    """Reading one number too many, or one too early, ends the process; so does writing what is only read."""
    code = "import ctypes, numpy as np; from tests.engine.fences import Fenced\n"
    code += f"f = Fenced(np.ones((3, 5), np.float32), {do == 'read behind'}).read_only()\n"
    code += "at = lambda offset: ctypes.c_float.from_address(f.address + offset)\n"
    code += "assert at(0).value + at(56).value == 2\n"
    code += {"read behind": "at(60).value", "read before": "at(-4).value", "write": "at(0).value = 1"}[do]
    with pytest.raises(AssertionError, match="exit -11"):
        run_child(code)
