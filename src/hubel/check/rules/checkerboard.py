"""HB401: enlarging layers that paint a pattern."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, finding
from hubel.records import Finding

# Of the phases' mean size: below this a pattern is not seen.
VISIBLE = 0.1
REMEDY = "Use a kernel size that the stride divides, or resize and convolve instead (Odena et al. 2016)."


def checkerboard(facts: Facts) -> Iterator[Finding]:
    """A transposed convolution whose overlap is uneven, and whose weights do not make up for it: the answer to ones
    varies with the phase by more than a tenth in half of its kernels. (Where the overlap is even, kernels that differ
    by phase are what learning to draw looks like.)"""
    for row in facts.rows("checkerboard"):
        if row["transposed"] and row["overlap_variation"] > 0 and row["variation"] > VISIBLE:
            yield finding(
                facts,
                "HB401",
                "checkerboard",
                "warning",
                [row["target"]],
                f"{row['target']} enlarges with a kernel that is no multiple of its stride, and its weights do not "
                f"make up for it: flat inputs come out with a pattern of {row['variation']:.0%} of their size "
                "(median over kernels).",
                record="checkerboard",
                column="variation",
                remedy=REMEDY,
                rank=min(1.0, row["variation"]),
            )
