"""HB301: kernels that say the same."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, by_layer, finding
from hubel.records import Effect, Finding, Value

# As good as equal, by weights and by activations.
SAME = 0.999
# What merging may cost.
MOST_KL = 0.01
REMEDY = (
    "Keep one of each pair and add the weights that read the other to those that read it, scaled. Across sums, "
    "concatenations and groups that cannot be done."
)


def duplicate(facts: Facts) -> Iterator[Finding]:
    """Cosine of the weights and correlation of the activations both above 0.999 (weights alone without images).
    Decided where merging was measured to cost a KL below 0.01 at the upper end of its interval."""
    pairs = [row for row in facts.rows("redundancy") if "~" in row["target"]]
    for address, rows in by_layer(pairs).items():
        hit = [r for r in rows if (r["cosine"] or 0) >= SAME and (r["correlation"] is None or r["correlation"] >= SAME)]
        if not hit:
            continue
        costs = [row["merge_kl"] for row in hit if isinstance(row["merge_kl"], Value)]
        measured = len(costs) == len(hit) and all(cost.hi is not None and cost.hi < MOST_KL for cost in costs)
        kernels = sorted(
            {part for row in hit for part in row["target"].split("~")}, key=lambda t: int(t.rpartition(":")[2])
        )
        named = ", ".join(
            " and ".join(":" + part.rpartition(":")[2] for part in row["target"].split("~")) for row in hit[:3]
        )
        found = finding(
            facts,
            "HB301",
            "duplicate",
            "warning",
            kernels,
            f"{len(hit)} pair{'s' if len(hit) > 1 else ''} of kernels of {address} say the same ({named}"
            + (f" and {len(hit) - 3} more" if len(hit) > 3 else "")
            + (")." if measured else "); what merging them costs was not measured or is not small."),
            record="redundancy",
            column="cosine",
            remedy=REMEDY,
            rank=0.5 * len(kernels) / max(len(kernels), 8),
            decided=measured,
            effect=Effect(kl=max(costs, key=lambda cost: cost.value or 0.0), how="measured") if costs else None,
        )
        for entry, row in zip(found.evidence, hit, strict=False):
            entry["target"] = row["target"]
        found.evidence = found.evidence[: len(hit)]
        yield found
