"""HB101: kernels without weights."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, by_layer, finding, listed, nothing
from hubel.records import Finding

REMEDY = (
    "Remove them from this layer and from what reads it, or train them again: weight decay with a ReLU that never "
    "fires leaves such kernels. Do not fold the batch norm behind them without a bound on its scale."
)


def weight_dead(facts: Facts) -> Iterator[Finding]:
    """A layer whose kernels have a norm of zero, or a millionth of their neighbours'."""
    for address, rows in by_layer(facts.rows("dead_kernels")).items():
        targets = [row["target"] for row in rows if row["weight_dead"]]
        if targets:
            dead = all(row["dead"] == 1 for row in rows if row["weight_dead"])
            yield finding(
                facts,
                "HB101",
                "weight-dead",
                "warning",
                targets,
                f"{len(targets)} of {len(rows)} kernels of {address} have no weights ({listed(targets)})"
                + (
                    ": without them the outputs are the same bits." if dead else "; what remains of them is a constant."
                ),
                record="dead_kernels",
                column="weight_dead",
                remedy=REMEDY,
                rank=len(targets) / len(rows),
                effect=nothing(0) if dead else None,
            )
