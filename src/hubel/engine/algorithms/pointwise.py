"""1×1 convolution with stride 1 and no padding, forward and input gradient: a matrix product over one long row of pixels.

    out[m, pixel]  =  Σ_c weight[m, c] · in[c, pixel]

The loops and the kernel are those of `direct`, with one tap. What differs: the image is one row, so tiles never run over a row's end,
and whole tiles are stored straight into the output; small planes are read in place, larger ones pass through scratch, because rows of
64 channels lie on more pages than the TLB holds; and while a box is computed, the lines of the next are asked for.
"""

from __future__ import annotations

from hubel.engine.algorithms import direct
from hubel.engine.algorithms.geometry import flattened
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.spec import Direction, Policy, Problem

NAME = "pointwise"


def applies(problem: Problem) -> bool:
    """Whether the convolution is a matrix product over pixels as they lie in memory."""
    return flattened(problem) is not problem.spec and problem.direction is not Direction.WEIGHT_GRADIENT


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    if not applies(problem):
        return Refusal(NAME, "needs a 1×1 kernel, stride 1, no padding, and pixels that follow each other in memory")
    return direct.plan_sums(NAME, problem, machine, policy, "1×1: a matrix product over one long row of pixels")


emit = direct.emit
bind = direct.bind
