"""Which algorithm does a problem: every one is asked, the cheapest Plan is kept, and every Refusal with it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import ModuleType

from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.ir.storage import POINTERS
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.spec import Direction, Policy, Problem
from hubel.errors import UnsupportedError

# Half a unit in the last place of what is stored: the relative error of rounding sums once.
STORED_ERRORS = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@lru_cache(maxsize=4096)
def choose(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan with the least work for this problem on this machine.

    Raises UnsupportedError if every algorithm declines (another dtype than float32), with all their reasons.
    """
    if problem.dtype not in POINTERS:
        raise UnsupportedError(
            f"kernels store {', '.join(POINTERS)}. Received: dtype={problem.dtype}. torch's own kernel does it."
        )
    if problem.dtype == "float16" and machine.isa == "sse":
        raise UnsupportedError(
            "float16 needs the conversions of F16C, which this machine lacks. torch's kernel does it."
        )
    answers = [_asked(algorithm, problem, machine, policy) for algorithm in ALGORITHMS.values()]
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


def _asked(algorithm: ModuleType, problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """The algorithm's answer, the error of rounding what is stored added to its bound."""
    if (problem.dtype != "float32" or problem.epilogue) and not getattr(algorithm, "ANY_EDGES", False):
        return Refusal(algorithm.NAME, "reads and writes float32, without an epilogue")
    answer = algorithm.propose(problem, machine, policy)
    rounding = STORED_ERRORS[problem.dtype] if problem.direction is not Direction.WEIGHT_GRADIENT else 0.0
    return replace(answer, error_bound=answer.error_bound + rounding) if isinstance(answer, Plan) else answer
