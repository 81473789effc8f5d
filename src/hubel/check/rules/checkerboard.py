"""HB401: enlarging layers that paint a pattern."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, finding
from hubel.records import Finding

# Of the phases' mean size: below this a pattern is not seen.
VISIBLE = 0.1
REMEDY = (
    "Use a kernel size that the stride divides, or resize and convolve instead (Odena et al. 2016); with even overlap, "
    "initialise the weights to be equal in every phase."
)


def checkerboard(facts: Facts) -> Iterator[Finding]:
    """A transposed convolution whose answer to ones varies with the phase by more than a tenth, in half of its
    kernels."""
    for row in facts.rows("checkerboard"):
        if row["transposed"] and row["variation"] > VISIBLE:
            uneven = (
                "its kernel is no multiple of its stride" if row["kernel_mod_stride"] else "its weights differ by phase"
            )
            yield finding(
                facts,
                "HB401",
                "checkerboard",
                "warning",
                [row["target"]],
                f"{row['target']} enlarges, and {uneven}: flat inputs come out with a pattern of "
                f"{row['variation']:.0%} of their size (median over kernels).",
                record="checkerboard",
                column="variation",
                remedy=REMEDY,
                rank=min(1.0, row["variation"]),
            )
