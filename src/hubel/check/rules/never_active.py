"""HB103: kernels that were silent on every image."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, by_layer, finding, listed, nothing
from hubel.records import Finding

# Decided where the images leave at most this rate of exceptions open: from 299 images on.
OPEN = 0.01
REMEDY = (
    "If these images are like those that the network will see, remove the kernels. Otherwise show it more, and others: "
    "a kernel may wait for something that is not among them."
)


def never_active(facts: Facts) -> Iterator[Finding]:
    """Zero at every place of every image, for another reason than its weights or its norm (HB101, HB102)."""
    images = facts.images("dead_kernels")
    for address, rows in by_layer(facts.rows("dead_kernels")).items():
        hit = [r for r in rows if r["never_active"] and not r["weight_dead"] and not r["bn_collapsed"]]
        targets = [row["target"] for row in hit]
        if targets:
            bound = max(row["bound"] or 0.0 for row in hit)
            yield finding(
                facts,
                "HB103",
                "never-active",
                "warning",
                targets,
                f"{len(targets)} of {len(rows)} kernels of {address} were zero at every place of all {images} images "
                f"({listed(targets)}); they may still fire in up to {bound:.1%} of images like these.",
                record="dead_kernels",
                column="never_active",
                remedy=REMEDY,
                rank=len(targets) / len(rows),
                decided=bound <= OPEN,
                effect=nothing(images) if all(row["dead"] == 1 for row in hit) else None,
            )
