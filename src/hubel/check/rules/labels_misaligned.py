"""HB901: answers no better than chance."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.check.finding import Facts, finding
from hubel.records import Effect, Finding, Value

# With fewer images chance may look like anything.
DECIDES = 50
REMEDY = (
    "Compare the order of the classes: a folder's are alphabetical, a network's are those of its training data "
    "(--classes names them). Check --preprocess and --output, too. Until then, results that need labels are withheld."
)


def labels_misaligned(facts: Facts) -> Iterator[Finding]:
    """The interval of the accuracy reaches down to what always naming the commonest class would give."""
    for row in facts.rows("alignment"):
        share, chance = row["accuracy"], row["chance"]
        if isinstance(share, Value) and share.lo is not None and share.lo <= chance:
            yield finding(
                facts,
                "HB901",
                "labels-misaligned",
                "error",
                ["model"],
                f"Labels and outputs may not be aligned: {share.value:.1%} of {share.n} images are right, and always "
                f"naming the commonest class would give {chance:.1%}.",
                record="alignment",
                column="accuracy",
                remedy=REMEDY,
                rank=2.0,
                decided=(share.n or 0) >= DECIDES,
                effect=Effect(accuracy=share, how="measured"),
            )
