"""HB201: weights so small that most CPUs slow down on them."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, by_layer, finding, listed
from hubel.records import Effect, Finding

REMEDY = (
    "Set them to zero: w[w.abs() < torch.finfo(w.dtype).tiny] = 0. Hubel's kernels flush them when weights are packed "
    "(except under strict accuracy); torch.set_flush_denormal(True) does it for torch's on one thread."
)


def denormal(facts: Facts) -> Iterator[Finding]:
    """0 < |w| < 2⁻¹²⁶ (float32), counted on bit patterns."""
    for address, rows in by_layer(facts.rows("dead_kernels")).items():
        hit = [row for row in rows if row["denormal"]]
        targets, count = [row["target"] for row in hit], sum(row["denormal"] for row in hit)
        if targets:
            yield finding(
                facts,
                "HB201",
                "denormal",
                "warning",
                targets,
                f"{address} has {count:,} denormal weight{'s' if count > 1 else ''} in {len(targets)} of {len(rows)} "
                f"kernels ({listed(targets)}): numbers that change nothing, and can make it many times slower.",
                record="dead_kernels",
                column="denormal",
                remedy=REMEDY,
                rank=0.5 + 0.5 * len(targets) / len(rows),
                effect=Effect(accuracy=0, how="computed"),
            )
