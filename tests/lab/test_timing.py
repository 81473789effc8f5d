"""The statistics of comparing times, on a clock that the tests wind by hand: nothing here measures anything."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest

from hubel.lab import timing
from hubel.lab.timing import Contender, Meter, Rounds, Sample, geometric_mean, measure, median


class FakeMeter(Meter):
    """A clock that moves only when a contender's call moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue = 0.0
        self.paused: list[float] = []
        self.spinning = 0.0
        self.worked_for = 0.0
        self.pages = 0

    def seconds(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Meanwhile idle threads spin, `spinning` seconds of every pause."""
        self.paused.append(seconds)
        spun = min(seconds, self.spinning)
        self.worked_for += spun
        self.spinning -= spun

    def worked(self) -> float:
        return self.worked_for

    def waited(self) -> float:
        return self.queue

    def faults(self) -> int:
        return self.pages

    def call(self, name: str, seconds: float, waits: float = 0.0, log: list[str] | None = None, **options) -> Contender:
        """A contender whose call takes `seconds`, of which its threads wait the share `waits`."""

        def call() -> None:
            self.now += seconds
            self.queue += seconds * waits
            self.pages += 3
            if log is not None:
                log.append(name)

        return Contender(name, call, **options)


def rounds_of(**seconds: list[float]) -> Rounds:
    return Rounds({name: [Sample(s) for s in values] for name, values in seconds.items()})


def test_each_round_visits_everyone_once_and_in_changing_order():
    meter = FakeMeter()
    contenders = [meter.call(name, 0.001) for name in "abcd"]
    taken = measure(contenders, rounds=20, meter=meter)
    assert len(taken.order) == 20
    assert all(sorted(order) == list("abcd") for order in taken.order)
    assert len({tuple(order) for order in taken.order}) > 5
    assert all(len(samples) == 20 for samples in taken.samples.values())


def test_the_order_is_drawn_from_the_seed():
    def order(seed: int) -> list[list[str]]:
        meter = FakeMeter()
        return measure([meter.call(name, 0.001) for name in "abc"], rounds=8, seed=seed, meter=meter).order

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_samples_are_seconds_a_call_and_calls_fill_a_sample():
    meter, log = FakeMeter(), []
    taken = measure([meter.call("a", 0.0005, log=log)], rounds=1, sample_seconds=0.003, meter=meter)
    assert taken.samples["a"][0].seconds == pytest.approx(0.0005)
    assert taken.samples["a"][0].faults == 3
    # One first call and the guesses, then a warm one and the six that are timed.
    assert len(log) == 1 + timing._GUESSES + 1 + 6


def test_a_slow_call_is_timed_alone():
    meter, log = FakeMeter(), []
    measure([meter.call("a", 0.1, log=log)], rounds=1, meter=meter)
    # The first, two guesses, a warm one, and one that is timed.
    assert len(log) == 5


def test_a_very_slow_call_is_neither_guessed_at_nor_warmed_up_for_long():
    meter, log = FakeMeter(), []
    measure([meter.call("a", 2.0, log=log)], rounds=3, meter=meter)
    assert len(log) == 1 + 1 + 3


def test_calls_happen_inside_the_context_and_leave_it():
    meter, inside = FakeMeter(), []

    @contextmanager
    def enter():
        inside.append(True)
        yield
        inside.pop()

    def call() -> None:
        assert inside == [True]
        meter.now += 0.001

    measure([Contender("a", call, enter), meter.call("b", 0.001)], rounds=3, meter=meter)
    assert inside == []


def test_a_sample_is_clean_below_four_per_cent_of_waiting():
    assert Sample(1.0, waited=0.039).clean
    assert not Sample(1.0, waited=0.04).clean


def test_unclean_rounds_are_repeated_up_to_the_limit():
    meter = FakeMeter()
    taken = measure([meter.call("b", 0.001, waits=0.5), meter.call("a", 0.001)], rounds=5, meter=meter)
    assert len(taken.order) == 20
    assert taken.clean_rounds() == []
    assert taken.clean_rounds(["a"]) == list(range(20))


def test_the_budget_ends_a_run_that_has_enough_for_an_interval():
    meter = FakeMeter()
    taken = measure([meter.call("a", 1.0)], rounds=50, budget=0.5, meter=meter)
    assert len(taken.order) == timing.FEWEST_ROUNDS


def test_an_engine_that_is_never_clean_is_not_waited_for_for_ever():
    meter = FakeMeter()
    taken = measure([meter.call("a", 0.001), meter.call("b", 0.001, waits=0.5)], rounds=10, meter=meter)
    assert len(taken.order) == 20
    taken = measure([meter.call("b", 0.001, waits=0.5), meter.call("a", 0.001)], rounds=10, meter=meter)
    assert len(taken.order) == 40, "the first one is what all are compared with"


def test_a_pause_lies_between_families_only():
    meter = FakeMeter()
    measure([meter.call("a", 0.001), meter.call("b", 0.001)], rounds=10, meter=meter)
    assert meter.paused == []
    measure([meter.call("a", 0.001), meter.call("c", 0.001, family="other")], rounds=10, meter=meter)
    assert len(meter.paused) >= 10
    assert set(meter.paused) == {timing.PAUSE_STEP}


@pytest.mark.parametrize(
    ("spins", "longest", "steps"), [(0.0, 0.03, 1), (0.009, 0.03, 4), (9.0, 0.03, 8), (9.0, 0.5, 125)]
)
def test_a_pause_ends_when_idle_threads_have_stopped_to_spin(spins: float, longest: float, steps: int):
    """Or where it is as long as they are given: 9 ms fall into three steps of 4, and the next is quiet."""
    meter = FakeMeter()
    meter.spinning = spins
    timing._pause(longest, meter)
    assert meter.paused == [timing.PAUSE_STEP] * steps


def test_a_sample_ends_early_where_somebody_else_has_the_cores():
    meter, log = FakeMeter(), []
    slow = iter([0.001] * (1 + timing._GUESSES + 1) + [0.1] * 99)

    def call() -> None:
        log.append(1)
        meter.now += next(slow)

    taken = measure([Contender("a", call)], rounds=1, sample_seconds=0.04, meter=meter)
    # A quarter of the 40 calls was asked for, and took longer than four samples may.
    assert len(log) == 1 + timing._GUESSES + 1 + 10
    assert taken.samples["a"][0].seconds == pytest.approx(0.1)


def test_names_must_differ():
    meter = FakeMeter()
    with pytest.raises(ValueError, match="different names"):
        measure([meter.call("a", 1.0), meter.call("a", 1.0)], meter=meter)


def test_a_call_that_is_interrupted_propagates():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([Contender("a", interrupted)], meter=FakeMeter())


def test_ratios_are_taken_within_rounds():
    # The machine slowed down fourfold in the second round; the ratio did not change.
    taken = rounds_of(slow=[2.0, 8.0, 2.0], fast=[1.0, 4.0, 1.0])
    assert taken.ratios("slow", "fast") == [2.0, 2.0, 2.0]
    assert taken.ratio("slow", "fast").value == 2.0


def test_ratios_leave_out_rounds_in_which_either_waited():
    taken = rounds_of(a=[2.0, 20.0, 2.0], b=[1.0, 1.0, 1.0])
    taken.samples["a"][1] = Sample(20.0, waited=0.5)
    assert taken.ratios("a", "b") == [2.0, 2.0]
    assert taken.ratios("a", "b", clean_only=False) == [2.0, 20.0, 2.0]
    assert taken.seconds("a").n == 2


def test_with_no_clean_round_all_count():
    taken = Rounds({"a": [Sample(2.0, 0.5), Sample(4.0, 0.5)], "b": [Sample(1.0), Sample(1.0)]})
    assert taken.ratios("a", "b") == [2.0, 4.0]
    assert taken.seconds("a").value == 3.0


def test_disturbed_rounds_decide_nothing():
    samples = {"a": [Sample(2.0 + i / 10, 0.5) for i in range(20)], "b": [Sample(1.0)] * 20}
    assert Rounds(samples).ratio("a", "b").decided is False
    assert Rounds(samples).ratio("a", "b", clean_only=False).decided is True


def test_best_is_the_smallest_median():
    assert rounds_of(a=[1.0, 9.0, 9.0], b=[2.0, 2.0, 2.0]).best(["a", "b"]) == "b"


# Ranks and coverages as tables of the sign test have them.
@pytest.mark.parametrize(
    ("n", "rank", "level"), [(6, 1, 0.96875), (9, 2, 0.9609), (15, 4, 0.9648), (20, 6, 0.9586), (60, 22, 0.9727)]
)
def test_the_interval_of_the_median_is_that_of_order_statistics(n, rank, level):
    value = median([float(i) for i in range(1, n + 1)])
    assert value.value == (n + 1) / 2
    assert (value.lo, value.hi) == (rank, n + 1 - rank)
    assert value.level == pytest.approx(level, abs=1e-4)
    assert (value.n, value.of) == (n, "rounds")


@pytest.mark.parametrize(("n", "level"), [(2, 0.5), (3, 0.75), (5, 0.9375)])
def test_few_values_give_their_range_and_decide_nothing(n, level):
    value = median([10.0 + i for i in range(n)], against=1.0)
    assert (value.lo, value.hi) == (10.0, 9.0 + n)
    assert value.level == pytest.approx(level)
    assert value.decided is False


def test_one_value_has_no_interval_and_none_has_no_median():
    assert median([3.0]).lo is None
    assert median([3.0], against=1.0).decided is False
    assert median([]).value is None


def test_decided_means_that_the_interval_excludes_the_other():
    assert median([1.1 + i / 100 for i in range(20)], against=1.0).decided is True
    assert median([0.9 + i / 100 for i in range(20)], against=1.0).decided is False
    assert median([1.0 + i for i in range(20)]).decided is None


def test_the_geometric_mean_is_that_of_the_layers_medians():
    value = geometric_mean({"a": [2.0] * 15, "b": [8.0] * 15})
    assert value.value == pytest.approx(4.0)
    assert value.lo == pytest.approx(4.0)
    assert value.hi == pytest.approx(4.0)
    assert value.decided is True


def test_the_geometric_means_interval_widens_with_the_noise():
    quiet = geometric_mean({"a": [1.9, 2.0, 2.1] * 5, "b": [7.9, 8.0, 8.1] * 5})
    noisy = geometric_mean({"a": [1.0, 2.0, 4.0] * 5, "b": [4.0, 8.0, 16.0] * 5})
    assert quiet.value == pytest.approx(noisy.value)
    assert noisy.lo is not None
    assert quiet.lo is not None
    assert noisy.lo < quiet.lo <= 4.0
    assert geometric_mean({"a": [1.9, 2.0, 2.1] * 5, "b": [7.9, 8.0, 8.1] * 5}) == quiet


def test_no_layers_have_no_mean():
    assert geometric_mean({}).value is None
    assert geometric_mean({"a": []}).value is None


def test_scaling_keeps_the_interval_around_the_value():
    value = timing.scaled(median([float(i) for i in range(1, 16)]), 1e3)
    assert (value.value, value.lo, value.hi) == (8000, 4000, 12000)


def test_the_real_meter_counts_up():
    meter = Meter()
    first = meter.waited()
    assert first >= 0
    assert meter.waited() >= first
    assert math.isfinite(meter.seconds())
    assert meter.faults() > 0
