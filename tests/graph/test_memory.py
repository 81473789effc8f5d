"""The arena: what is alive at once never shares memory, and what is not does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubel.graph.memory import ALIGNMENT, Life, arena

LIVES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 5)).map(lambda t: Life(t[0], t[1], t[1] + t[2])),
    max_size=25,
)


@given(LIVES)
def test_what_lives_at_once_lies_apart(lives: list[Life]) -> None:
    places, size = arena(lives)
    for i, (first, at) in enumerate(zip(lives, places, strict=True)):
        assert at % ALIGNMENT == 0 and at + first.bytes <= size
        for second, other in zip(lives[:i], places[:i], strict=True):
            if first.meets(second):
                assert at + first.bytes <= other or other + second.bytes <= at
    # Never more than each in a place of its own, never less than what is alive at once.
    assert size <= sum(-(-life.bytes // ALIGNMENT) * ALIGNMENT for life in lives)
    for step in range(18):
        assert size >= sum(life.bytes for life in lives if life.first <= step <= life.last)


def test_a_chain_takes_two_places() -> None:
    lives = [Life(64 * 100, i, i + 1) for i in range(20)]
    assert arena(lives)[1] == 2 * 64 * 100


def test_nothing_takes_nothing() -> None:
    assert arena([]) == ([], 0)
