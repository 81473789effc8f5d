"""Comparing running times on a machine that others use too: interleaved rounds, clean samples, medians with intervals.

    for each round                      until every contender was clean often enough, beside the first of them
        for each contender, shuffled    nobody always runs on the caches and the clock rate another one left behind
                                        (library by library: a pause lies between them while idle threads spin)
            one call, not timed         wakes its threads, brings its data back (left out where calls are long)
            `repeat` calls, timed       one Sample

Two figures of different rounds say little about each other, two of the same round much: ratios are taken within rounds.
The median is quoted because noise on a machine only ever adds; its interval is the one of order statistics, which
assumes nothing about the distribution: the k-th smallest and k-th largest of n samples enclose the median with the
probability 1 - 2 P(Binomial(n, 1/2) < k).  (David and Nagaraja, Order Statistics, 3rd ed., section 7.1)
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import random
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubel.records import Value

# A sample is clean if the threads of this process waited in the run queue for less than this share of it.
CLEAN_SHARE = 0.04
# With 15 samples the interval of the median runs from the 4th to the 12th: a few per cent on a quiet machine.
CLEAN_ROUNDS = 15
# On a machine that never falls quiet, stop here and say so.
MOST_ROUNDS_FACTOR = 4
# ... or after this long, once there are enough rounds for an interval of the median at all.
BUDGET_SECONDS = 60.0
FEWEST_ROUNDS = 6
# Long against the clock's resolution and a thread's wake-up (50 us), short against a shared machine's quiet spells.
SAMPLE_SECONDS = 0.003
# Idle threads of one library spin for milliseconds on the cores that the next one needs: between two libraries lies a
# pause until nothing of this process has worked for a step of it, or so long.
PAUSE_SECONDS = 0.03
PAUSE_STEP = 0.004
# The share of a step that the process may work and still count as resting: the sleeping thread's own.
RESTING_SHARE = 0.1
# Calls tried before a sample's length is settled; one alone may have been interrupted.
_GUESSES = 3
_MOST_REPEATS = 10_000
# A sample is made of so many stretches, and ends early after so many times its length: somebody else has the cores,
# which makes it no clean one, and a longer one would be no cleaner.
_STRETCHES, _PATIENCE = 4, 4
# Just below glibc's largest threshold, 32 MiB.
_LARGEST_KEPT = 33_200_000
# A call this long does not notice the state in which another engine left threads and caches.
_LONG_SECONDS = 0.2


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: `call` does the work once, inside the context that `enter` returns (not timed).

    family: the library whose threads do the work; between contenders of different families goes the
    pause of the first: as long as its threads spin, and `pause` seconds at most.
    read: makes torch's tensors of what `call` returns, for the check; not timed. None: it returns them.
    layer_share: measures the share of a call that the layer itself takes, conversions between layouts left aside.
    None: it converts nothing.
    """

    name: str
    call: Callable[[], object]
    enter: Callable[[], AbstractContextManager[object]] = nullcontext
    family: str = "torch"
    read: Callable[[Any], tuple[torch.Tensor, ...]] | None = None
    pause: float = PAUSE_SECONDS
    layer_share: Callable[[], float] | None = None


@dataclass(frozen=True)
class Sample:
    """One timed stretch: seconds a call, the share of it spent waiting for a core, page faults a call."""

    seconds: float
    waited: float = 0.0
    faults: float = 0.0

    @property
    def clean(self) -> bool:
        return self.waited < CLEAN_SHARE


class Meter:
    """What the operating system knows about this process. Tests put a fake in its place."""

    def seconds(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def waited(self) -> float:
        """Seconds that the threads of this process were ready to run and had no core, all together.

        0 where the kernel does not tell (not Linux): every sample passes for clean, and `watches` says so.
        """
        total = 0
        for path in Path("/proc/self/task").glob("*/schedstat"):
            # A thread may end between being listed and being read.
            with contextlib.suppress(OSError, IndexError, ValueError):
                total += int(path.read_text().split()[1])
        return total * 1e-9

    def worked(self) -> float:
        """Seconds that the threads of this process have had a core, all together."""
        return time.process_time()

    def faults(self) -> int:
        """Pages that were mapped on first touch so far: what fresh large outputs cost on every call."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    @property
    def watches(self) -> bool:
        return Path("/proc/self/schedstat").exists()


@dataclass
class Rounds:
    """The samples of each contender, round by round: `samples[name][r]` was taken in round r."""

    samples: dict[str, list[Sample]]
    order: list[list[str]] = field(default_factory=list)

    def clean_rounds(self, names: Iterable[str] | None = None) -> list[int]:
        """The rounds in which every sample (of `names`) was clean."""
        names = list(self.samples if names is None else names)
        return [r for r in range(self._rounds()) if all(self.samples[name][r].clean for name in names)]

    def seconds(self, name: str, *, clean_only: bool = True) -> Value:
        """The median time of a call, in seconds."""
        kept = [s.seconds for s in self.samples[name] if s.clean or not clean_only]
        return median(kept or [s.seconds for s in self.samples[name]], decided=None)

    def ratio(self, slow: str, fast: str, *, clean_only: bool = True) -> Value:
        """How many times faster `fast` is than `slow`: the median over rounds of slow/fast.

        decided: the interval excludes 1, and (with `clean_only`) it comes from clean rounds.
        """
        value = median(self.ratios(slow, fast, clean_only=clean_only), against=1.0)
        if clean_only and not self.clean_rounds((slow, fast)):
            return dataclasses.replace(value, decided=False)
        return value

    def ratios(self, slow: str, fast: str, *, clean_only: bool = True) -> list[float]:
        """slow/fast of each round in which both were clean; of every round if there is no such round."""
        kept = self.clean_rounds((slow, fast)) if clean_only else []
        rounds = kept or range(self._rounds())
        return [self.samples[slow][r].seconds / self.samples[fast][r].seconds for r in rounds]

    def faults(self, name: str) -> float:
        """Page faults a call, the median."""
        return float(np.median([s.faults for s in self.samples[name]]))

    def best(self, names: Sequence[str]) -> str:
        """The fastest of `names`, by the median; the first of equals."""
        return min(names, key=lambda name: self.seconds(name).value or math.inf)

    def _rounds(self) -> int:
        return min((len(samples) for samples in self.samples.values()), default=0)


def measure(
    contenders: Sequence[Contender],
    *,
    rounds: int = CLEAN_ROUNDS,
    most: int | None = None,
    budget: float = BUDGET_SECONDS,
    sample_seconds: float = SAMPLE_SECONDS,
    seed: int = 0,
    meter: Meter | None = None,
) -> Rounds:
    """Time the contenders against each other until each has `rounds` rounds in which it and the first contender were
    clean, with `most` rounds at most (4 times as many).

    Every round visits every contender once, in an order drawn from `seed`: the families', and that of the contenders of
    each. budget: seconds after which no further round begins, `FEWEST_ROUNDS` excepted.
    """
    meter = meter or Meter()
    most = max(rounds, MOST_ROUNDS_FACTOR * rounds if most is None else most)
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names):
        raise ValueError(f"Contenders have different names. Received: {names}.")
    _settle_heap()
    guesses = {contender.name: _guess(contender, meter) for contender in contenders}
    taken = Rounds({name: [] for name in names})
    shuffle, last = random.Random(seed), contenders[-1] if contenders else None
    clean, end = dict.fromkeys(names, 0), meter.seconds() + budget
    while len(taken.order) < most and not _settled(list(clean.values()), len(taken.order), rounds):
        if len(taken.order) >= FEWEST_ROUNDS and meter.seconds() > end:
            break
        order = _order(contenders, shuffle)
        this_round = {}
        for contender in order:
            if last is not None and contender.family != last.family:
                _pause(last.pause, meter)
            last = contender
            this_round[contender.name] = _sample(contender, guesses[contender.name], sample_seconds, meter)
        # Ctrl-C inside a round leaves the rounds before it whole.
        for name, sample in this_round.items():
            taken.samples[name].append(sample)
        taken.order.append([contender.name for contender in order])
        for name, sample in this_round.items():
            clean[name] += sample.clean and this_round[names[0]].clean
    return taken


def _settle_heap() -> None:
    """Give one large block of memory back. glibc hands blocks to the system, whose pages are then faulted in anew, that
    are larger than any it has seen freed, up to 32 MB: until then the order of calls decides who pays for that.
    """
    torch.empty(_LARGEST_KEPT // 4).fill_(0)


def _settled(clean: list[int], taken: int, rounds: int) -> bool:
    """Whether every contender, the first of them first, was clean often enough.

    An engine whose own threads stand in each other's way is hardly ever clean, and not waited for for ever: only until
    twice the rounds are taken, if it was clean in less than a third of those in which the first contender was.
    """
    return all(count >= rounds or (taken >= 2 * rounds and 3 * count < clean[0]) for count in clean)


def _pause(longest: float, meter: Meter) -> None:
    """Sleep until the threads of this process rest, for at most so many seconds."""
    slept = 0.0
    while slept < longest:
        before = meter.worked()
        meter.sleep(PAUSE_STEP)
        slept += PAUSE_STEP
        if meter.worked() - before < RESTING_SHARE * PAUSE_STEP:
            return


def _order(contenders: Sequence[Contender], shuffle: random.Random) -> list[Contender]:
    """The families in an order newly drawn, and so the contenders of each."""
    families: dict[str, list[Contender]] = {}
    for contender in contenders:
        families.setdefault(contender.family, []).append(contender)
    drawn = shuffle.sample(list(families), len(families))
    return [contender for family in drawn for contender in shuffle.sample(families[family], len(families[family]))]


def _guess(contender: Contender, meter: Meter) -> float:
    """About how many seconds a call takes. The first call may compile; the fastest of the next is the guess."""
    times = []
    with contender.enter():
        contender.call()
        while len(times) < _GUESSES and sum(times) < _LONG_SECONDS:
            start = meter.seconds()
            contender.call()
            times.append(meter.seconds() - start)
    return max(min(times), 1e-9)


def _sample(contender: Contender, guess: float, sample_seconds: float, meter: Meter) -> Sample:
    repeat = max(1, min(_MOST_REPEATS, math.ceil(sample_seconds / guess)))
    call, stretch, done = contender.call, range(-(-repeat // _STRETCHES)), 0
    collecting = gc.isenabled()
    with contender.enter():
        if guess < _LONG_SECONDS:
            call()
        gc.disable()
        try:
            faults, waited, start = meter.faults(), meter.waited(), meter.seconds()
            seconds = 0.0
            while not done or (done < repeat and seconds < _PATIENCE * sample_seconds):
                for _ in stretch:
                    call()
                done += len(stretch)
                seconds = meter.seconds() - start
            waited, faults = meter.waited() - waited, meter.faults() - faults
        finally:
            if collecting:
                gc.enable()
    return Sample(seconds / done, waited / max(seconds, 1e-12), faults / done)


def median(values: Sequence[float], *, against: float | None = None, decided: bool | None = None) -> Value:
    """The median with an interval of at least 95 %, by order statistics; `level` is the coverage it really has.

    Fewer than 6 values cannot give 95 %: the interval is their range, at the level that it has.
    against: what the median is compared with; `decided` = the interval is a 95 % one and excludes it.
    """
    if not values:
        return Value(None, n=0, of="rounds", how="median, order statistics", decided=decided)
    ordered = sorted(values)
    n, how = len(ordered), "median, order statistics"
    rank, level = _interval_rank(n)
    if n == 1:
        return Value(ordered[0], n=1, of="rounds", how=how, decided=decided if against is None else False)
    lo, hi = ordered[rank - 1], ordered[n - rank]
    if against is not None:
        decided = level >= 0.95 and not lo <= against <= hi
    return Value(float(np.median(ordered)), lo, hi, level, n, "rounds", how, decided)


def time_share(part: Callable[[], object], whole: Callable[[], object], *, rounds: int = CLEAN_ROUNDS) -> float:
    """The time of `part` over that of `whole`, 1 at most: the median of rounds in which they take turns."""
    part()
    whole()
    shares = []
    for _ in range(rounds):
        times = []
        for call in (part, whole):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        shares.append(times[0] / times[1])
    return min(1.0, float(np.median(shares)))


def scaled(value: Value, scale: float) -> Value:
    """The same estimate in another unit."""
    middle, lo, hi = (None if number is None else number * scale for number in (value.value, value.lo, value.hi))
    return dataclasses.replace(value, value=middle, lo=lo, hi=hi)


def _interval_rank(n: int, level: float = 0.95) -> tuple[int, float]:
    """The largest k whose k-th smallest and largest of n enclose the median at `level` or more, and what they reach."""
    tail, k, best = 0.0, 0, 0.0
    while k < (n + 1) // 2:
        tail += math.comb(n, k) / 2**n
        if k and 1 - 2 * tail < level:
            break
        k, best = k + 1, max(0.0, 1 - 2 * tail)
    return k, best


def geometric_mean(layers: Mapping[str, Sequence[float]], *, resamples: int = 400, seed: int = 0) -> Value:
    """The geometric mean over layers of their median ratio, from the ratios of their rounds.

    The interval says how far the rounds may have moved it (rounds drawn anew within each layer, percentile bootstrap);
    it says nothing about layers that are not in the list.
    """
    rows = [np.asarray(ratios, dtype=np.float64) for ratios in layers.values() if len(ratios)]
    if not rows:
        return Value(None, n=0, of="rounds", how="geometric mean of medians", decided=None)
    point = math.exp(float(np.mean([math.log(np.median(row)) for row in rows])))
    draw = np.random.default_rng(seed)
    logs = np.zeros(resamples)
    for row in rows:
        logs += np.log(np.median(draw.choice(row, (resamples, len(row))), axis=1))
    lo, hi = np.exp(np.quantile(logs / len(rows), [0.025, 0.975]))
    fewest = min(len(row) for row in rows)
    how = "geometric mean of medians, bootstrap over rounds"
    return Value(point, float(lo), float(hi), 0.95, fewest, "rounds", how, not lo <= 1.0 <= hi)
