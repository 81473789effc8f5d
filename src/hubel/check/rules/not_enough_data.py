"""HB902: what so few images leave open."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, finding
from hubel.inspect.effects import without_events
from hubel.records import Finding

ENOUGH = 299  # leaves a rate of 1 % open


def not_enough_data(facts: Facts) -> Iterator[Finding]:
    """Fewer than 299 images: something that no image showed may still happen in more than 1 % of them."""
    images = facts.images("dead_kernels")
    if 0 < images < ENOUGH:
        yield finding(
            facts,
            "HB902",
            "not-enough-data",
            "note",
            ["model"],
            f"{images} image{'s' if images > 1 else ''}: what none of them showed may still happen in up to "
            f"{without_events(images):.1%} of images like these. Nothing that rests on silence is decided.",
            record="dead_kernels",
            column="bound",
            remedy=f"Give {ENOUGH} images or more.",
            rank=0.0,
        )
