"""The linter: Records become Findings, each with its evidence, its effect and a remedy. One rule a file.

    for finding in hubel.check(net, "folder/of/images"):
        print(finding.code, finding.severity, finding.message)

    HB101 weight-dead        kernels without weights
    HB102 bn-collapsed       kernels that the batch norm after them switches off
    HB103 never-active       kernels that were silent on every image
    HB201 denormal           weights so small that most CPUs slow down on them
    HB301 duplicate          kernels that say the same
    HB401 checkerboard       enlarging layers that paint a pattern
    HB901 labels-misaligned  answers no better than chance: labels and outputs may not belong together
    HB902 not-enough-data    what so few images leave open

Only `decided` errors and warnings make `hubel check` exit with 1. The package is callable, because its name is also the
name of what it does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from hubel.check.rules import RULES, Rule
from hubel.check.run import Checked, check, run
from hubel.records import Finding

__all__ = ["RULES", "Rule", "Checked", "check", "run"]


class _Callable(ModuleType):
    def __call__(self, net: Any, data: Any = None, **options: Any) -> list[Finding]:
        return check(net, data, **options)


_Callable.__call__.__doc__ = check.__doc__
sys.modules[__name__].__class__ = _Callable
