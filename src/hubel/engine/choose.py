"""Which algorithm does a problem: every one is asked, the cheapest Plan is kept, and every Refusal with it.

An image must get the same bits whatever else is in its batch and however many threads work on it. So the order of
summation is decided first, for one image on one thread; then, among the plans that sum in this order, the one that is
cheapest for the batch and the threads there are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod
from types import ModuleType

from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.geometry import of_usual_batch
from hubel.engine.ir.storage import POINTERS
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.problem import Direction, Policy, Problem
from hubel.errors import UnsupportedError

# Cycles to read, or to write, a number of a channels-last tensor by itself, for an algorithm with pixels in the lanes:
# its channel's neighbours lie in other cache lines (128 channels at 56×56 depthwise: 6.5; 1×1 64→256: 3.4; Zen 4).
GATHERED = 4.0
# Cycles of an activation on a number by itself, which is how algorithms with pixels in the lanes finish channels-last
# outputs (96→384 at 56×56 with GELU: 16 a number, 4.4 ms in place of the 1.0 of `pointwise_channels`).
ALONE = {"gelu": 16.0, "gelu_tanh": 16.0, "silu": 16.0, "sigmoid": 16.0, "tanh": 16.0}
# Half a unit in the last place of what is stored: the relative error of rounding sums once.
STORED_ERRORS = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@lru_cache(maxsize=4096)
def choose(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan that takes the fewest cycles for this problem on this machine, by estimate.

    Raises UnsupportedError if every algorithm declines (another dtype than float32), with all their reasons.
    """
    plans, refusals = candidates(problem, machine, policy)
    best = plans[0]
    others = tuple(Refusal(plan.algorithm, _why_not(plan, best)) for plan in plans[1:])
    return best.with_refusals(refusals + others)


def candidates(problem: Problem, machine: Machine, policy: Policy) -> tuple[list[Plan], tuple[Refusal, ...]]:
    """All plans, the chosen one first, then those with its order of summation, cheapest first; and all refusals.

    Raises UnsupportedError as `choose`.
    """
    if problem.dtype not in POINTERS:
        raise UnsupportedError(
            f"kernels store {', '.join(POINTERS)}. Received: dtype={problem.dtype}. torch's own kernel does it."
        )
    if problem.dtype == "float16" and machine.isa == "sse":
        raise UnsupportedError(
            "float16 needs the conversions of F16C, which this machine lacks. torch's kernel does it."
        )
    answers = _answers(problem, machine, policy)
    refusals = tuple(answer for answer in answers if isinstance(answer, Refusal))
    plans = [answer for answer in answers if isinstance(answer, Plan)]
    if not plans:
        reasons = "; ".join(f"{refusal.algorithm}: {refusal.reason}" for refusal in refusals)
        raise UnsupportedError(f"no algorithm does {problem}. {reasons}. torch's own kernel does it.")
    # Most layers have plans of one order only; asking for it would plan them a second time.
    one_order = len({plan.order for plan in plans}) == 1
    order = plans[0].order if one_order else _order(problem, machine, policy)
    return sorted(plans, key=lambda plan: (plan.order != order, plan.cost)), refusals


def equivalent(problem: Problem, machine: Machine, policy: Policy) -> list[Plan]:
    """What measuring may choose from: the chosen plan first, then other plans, and other cuts of each, that give the
    same bits; without determinism, any.
    """
    plans, _ = candidates(problem, machine, policy)
    same = [plan for plan in plans if plan.order == plans[0].order or not policy.deterministic]
    found = list(same)
    for plan in same:
        found += getattr(ALGORITHMS[plan.algorithm], "alternatives", _alone)(plan)
    return list(dict.fromkeys(found))


def _alone(plan: Plan) -> list[Plan]:
    return [plan]


def _order(problem: Problem, machine: Machine, policy: Policy) -> str:
    """The order of summation, whatever batch the problem has: that which is the cheapest for the usual one on one
    thread. A weight gradient is a sum over the images, too: there the batch belongs to it.
    """
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        problem = of_usual_batch(problem)
    answers = _answers(problem, machine, replace(policy, threads=1))
    return min((answer for answer in answers if isinstance(answer, Plan)), key=lambda plan: plan.cost).order


@lru_cache(maxsize=1024)
def _answers(problem: Problem, machine: Machine, policy: Policy) -> tuple[Plan | Refusal, ...]:
    """What every algorithm says. Kept, for a problem of the usual batch on one thread is asked for its order, too."""
    return tuple(_asked(algorithm, problem, machine, policy) for algorithm in ALGORITHMS.values())


def _why_not(plan: Plan, best: Plan) -> str:
    if plan.order == best.order:
        return f"{plan.cost / best.cost:.2f} times the cost of {best.algorithm}"
    images = of_usual_batch(best.problem).spec.batch
    usual = "one image" if images == 1 else f"{images} images"
    return f"{best.algorithm} costs less for {usual} on one thread, and any batch has the same bits"


def _asked(algorithm: ModuleType, problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """The algorithm's answer, the error of rounding what is stored added to its bound, and the cycles of gathering to
    its estimate where it has no way of its own to read channels-last tensors.
    """
    if (problem.dtype != "float32" or problem.epilogue) and not getattr(algorithm, "ANY_EDGES", False):
        return Refusal(algorithm.NAME, "reads and writes float32, without an epilogue")
    answer = algorithm.propose(problem, machine, policy)
    rounding = STORED_ERRORS[problem.dtype] if problem.direction is not Direction.WEIGHT_GRADIENT else 0.0
    gathers = problem.layout == "channels_last" and not getattr(algorithm, "CHANNELS_LAST", False)
    activation = problem.epilogue.activation if problem.epilogue else ""
    if isinstance(answer, Refusal) or not (gathers or rounding):
        return answer
    estimate = answer.estimate
    if gathers:
        inputs, outputs = prod(problem.spec.input_shape), prod(problem.spec.output_shape)
        cycles = GATHERED * (inputs + outputs) + ALONE.get(activation, 0.0) * outputs
        estimate = replace(estimate, cycles=estimate.cycles + cycles / policy.threads)
    return replace(answer, estimate=estimate, error_bound=answer.error_bound + rounding)
