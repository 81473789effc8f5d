"""How a rule makes its Findings: one for each layer, with the evidence that it read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hubel.records import Effect, Evidence, Finding, Record, Remedy, fingerprint

_NAMED = 4


@dataclass(frozen=True)
class Facts:
    """What rules read. records: by id, only those that are there. structure: of the model, for fingerprints."""

    records: Mapping[str, Record]
    structure: str

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a record; none if it is not there or did not apply."""
        record = self.records.get(name)
        return record.rows if record is not None and record.status == "ok" else []

    def images(self, name: str) -> int:
        """How many images a record was made of; 0 if it is not there or was not made."""
        record = self.records.get(name)
        return 0 if record is None else record.method["params"].get("images", 0)


def by_layer(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of kernels ("conv1:3") under their layers, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["target"].partition("~")[0].rpartition(":")[0], []).append(row)
    return found


def finding(
    facts: Facts,
    code: str,
    name: str,
    severity: Literal["error", "warning", "note"],
    targets: Sequence[str],
    message: str,
    *,
    record: str,
    column: str,
    remedy: str,
    rank: float,
    decided: bool = True,
    effect: Effect | None = None,
) -> Finding:
    """rank: larger comes first; about the share of the network that is concerned."""
    return Finding(
        code=code,
        name=name,
        severity=severity,
        decided=decided,
        targets=list(targets),
        message=message,
        evidence=[Evidence(record=record, target=target, column=column) for target in targets],
        effect=effect,
        remedy=Remedy(text=remedy, fix=None, tried=None),
        fingerprint=fingerprint(code, targets, facts.structure),
        rank=rank,
        docs=f"docs/methods.md#{code.lower()}",
    )


def listed(targets: Sequence[str]) -> str:
    """ ":3, :7, :9 and 12 more" of addresses of one layer."""
    short = [":" + target.rpartition(":")[2] for target in targets[:_NAMED]]
    more = len(targets) - len(short)
    return ", ".join(short) + (f" and {more} more" if more else "")


def nothing(images: int) -> Effect:
    """Outputs were equal in every bit without them, on so many images."""
    del images
    return Effect(accuracy=0, kl=0, how="measured")
