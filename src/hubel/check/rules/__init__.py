"""RULES, written out: adding one is one file and one line here. A rule reads Facts and yields Findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hubel.check.finding import Facts
from hubel.check.rules.bn_collapsed import bn_collapsed
from hubel.check.rules.checkerboard import checkerboard
from hubel.check.rules.denormal import denormal
from hubel.check.rules.duplicate import duplicate
from hubel.check.rules.labels_misaligned import labels_misaligned
from hubel.check.rules.never_active import never_active
from hubel.check.rules.not_enough_data import not_enough_data
from hubel.check.rules.weight_dead import weight_dead
from hubel.records import Finding

Rule = Callable[[Facts], Iterator[Finding]]

RULES: dict[str, Rule] = {
    "HB101": weight_dead,
    "HB102": bn_collapsed,
    "HB103": never_active,
    "HB201": denormal,
    "HB301": duplicate,
    "HB401": checkerboard,
    "HB901": labels_misaligned,
    "HB902": not_enough_data,
}
# The Records that the rules read.
READS = ("dead_kernels", "redundancy", "checkerboard")

__all__ = ["RULES", "READS", "Rule"]
