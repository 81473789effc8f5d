"""The words of a job as a kernel reads them: sizes, strides and addresses of tables behind the base pointers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from hubel.engine.ir import I64, PTR, Function, Value
from hubel.engine.threads import RESERVED_WORDS

Words: TypeAlias = dict[str, Value]

# Words that are addresses of tables; all others are numbers.
TABLES = frozenset({"bands_at", "held", "masks", "offsets", "parts_at", "phase_table", "places", "taps_at"})


def job_words(f: Function, order: Sequence[str], *names: str) -> Words:
    """Words of a job by name, all loaded here, in a function that has `args`: those named, or all.

    order: the names of the words of such jobs, as `bind` lines them up.
    """
    args = f.arg("args")
    return {n: f.word(args, RESERVED_WORDS + order.index(n), n, PTR if n in TABLES else I64) for n in names or order}
