"""The engine: a convolution becomes machine code. Knows numpy and llvmlite, never torch."""

from hubel.engine.choose import choose
from hubel.engine.invoke import Invocation, kernel_text, prepare
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec

__all__ = [
    "ConvSpec", "Direction", "Invocation", "Machine", "Plan", "Policy", "Problem", "Refusal",
    "choose", "kernel_text", "prepare",
]  # fmt: skip
