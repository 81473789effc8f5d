"""HB102: kernels that the batch norm after them switches off."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, by_layer, finding, listed, nothing
from hubel.records import Finding

REMEDY = (
    "Remove them, and put what the norm leaves of them (a constant) into the bias of what reads them. In training, a "
    "smaller weight decay on the norm's scale keeps them alive."
)


def bn_collapsed(facts: Facts) -> Iterator[Finding]:
    """|γ| of the batch norm is zero, or a millionth of its neighbours'. A norm that is all zero is how residual
    branches begin, and is not reported."""
    for address, rows in by_layer(facts.rows("dead_kernels")).items():
        hit = [row for row in rows if row["bn_collapsed"]]
        targets = [row["target"] for row in hit]
        if targets:
            dead = all(row["dead"] == 1 for row in hit)
            yield finding(
                facts,
                "HB102",
                "bn-collapsed",
                "warning",
                targets,
                f"The batch norm after {address} scales {len(targets)} of {len(rows)} kernels by next to nothing "
                f"({listed(targets)})" + ("; without them the outputs are the same bits." if dead else "."),
                record="dead_kernels",
                column="bn_collapsed",
                remedy=REMEDY,
                rank=len(targets) / len(rows),
                effect=nothing(0) if dead else None,
            )
