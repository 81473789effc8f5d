"""1×1 convolution with stride 1 and no padding, forward and input gradient: a matrix product over one long row of
pixels.

    out[m, pixel]  =  Σ_c weight[m, c] · in[c, pixel]

The loops and the kernel are those of `direct`, with one tap. What differs: the image is one row, so tiles never run
over a row's end, and whole tiles are read where they lie and stored straight into the output. The first tile of
output channels keeps the pixels it reads in a panel of scratch for the others: channels lie apart, on more pages than
the TLB holds. The panel costs stores only, where a copy beforehand took a sixth of the time (64 channels at 56²,
Cascade Lake, 2026-11).
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
