"""Which algorithm does a problem: every one is asked, the cheapest Plan is kept, and every Refusal with it."""

from __future__ import annotations

from functools import lru_cache

from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.spec import Policy, Problem
from hubel.errors import UnsupportedError


@lru_cache(maxsize=4096)
def choose(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan with the least work for this problem on this machine.

    Raises UnsupportedError if every algorithm declines (another dtype than float32), with all their reasons.
    """
    if problem.dtype != "float32":
        raise UnsupportedError(f"kernels are float32. Received: dtype={problem.dtype}. torch's own kernel does it.")
    answers = [algorithm.propose(problem, machine, policy) for algorithm in ALGORITHMS.values()]
    refusals = tuple(answer for answer in answers if isinstance(answer, Refusal))
    plans = [answer for answer in answers if isinstance(answer, Plan)]
    if not plans:
        reasons = "; ".join(f"{refusal.algorithm}: {refusal.reason}" for refusal in refusals)
        raise UnsupportedError(f"no algorithm does {problem}. {reasons}. torch's own kernel does it.")
    best = min(plans, key=lambda plan: plan.cost)
    declined = tuple(
        Refusal(plan.algorithm, f"{plan.cost / best.cost:.2f} times the cost of {best.algorithm}")
        for plan in plans
        if plan is not best
    )
    return best.with_refusals(refusals + declined)
