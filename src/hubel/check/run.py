"""A network and data become Findings: the analyses that rules read, then the rules, ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel import data as datasets
from hubel.check.finding import Facts
from hubel.check.rules import READS, RULES
from hubel.errors import DataError, ModelError, unknown
from hubel.inspect.effects import wilson
from hubel.inspect.layers import layers_of
from hubel.inspect.look import Look, look
from hubel.inspect.running import Output, scores
from hubel.inspect.store import structure_of
from hubel.records import Column, Finding, Record

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

Progress = Callable[[float, float, str], None]


@dataclass
class Checked:
    """findings: the most important first. records: what they rest on. unchecked: rules that had nothing to read."""

    findings: list[Finding]
    records: list[Record] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    status: str = "complete"

    @property
    def undecided(self) -> int:
        """Errors and warnings that the data did not decide."""
        return sum(not f.decided and f.severity != "note" for f in self.findings)

    def failed(self, strict: bool = False) -> bool:
        """Whether there is a decided error or warning (strict: or an undecided one): exit code 1."""
        return any(f.severity != "note" and (f.decided or strict) for f in self.findings)


def check(net: nn.Module, data: Any = None, **options: Any) -> list[Finding]:
    """What is wrong with a network, the most important first; see `run` for the options."""
    return run(net, data, **options).findings


def run(
    net: nn.Module,
    data: Any = None,
    *,
    preprocess: str | Callable[[Tensor], Tensor] = "unit",
    classes: Sequence[str] | None = None,
    input_size: tuple[int, int] | None = None,
    output: Output = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    images: int = 500,
    profile: str = "quick",
    random_weights: bool = False,
    keep: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Checked:
    """Run the rules whose codes begin with one of `select` (all by default) and with none of `ignore`.

    data: see `hubel.data.load`; None: the rules that read weights only. random_weights: labels mean nothing then.
    keep: whether analyses are read from and written to the cache. Raises UnknownNameError for a code that no rule has.
    """
    if not isinstance(net, nn.Module):
        raise ModelError(f"A check is of a torch.nn.Module. Received: {type(net).__name__}. Pass the network itself.")
    if not layers_of(net) and not any(p.ndim >= 3 for p in net.parameters()):
        raise ModelError(f"A network to check has convolutions. Received: {type(net).__name__}, which has none.")
    codes = chosen(select, ignore)
    x = y = dataset = None
    if data is not None:
        dataset = datasets.load(
            data, size=input_size, channels=channels_of(net, data), classes=classes, limit=images, seed=seed
        )
        x, y = prepared(dataset.images, preprocess), dataset.labels
    records: dict[str, Record] = {}
    if x is not None and y is not None and not random_weights:
        alignment = alignment_of(net, x, y, output)
        records["alignment"] = alignment
        row = alignment.rows[0] if alignment.rows else None
        if row is None or row["accuracy"].lo is None or row["accuracy"].lo <= row["chance"]:
            y = None  # what rests on labels would rest on nothing
    elif random_weights:
        y = None
    found: Look = look(net, x, y, only=READS, profile=profile, output=output, keep=keep, seed=seed, progress=progress)
    records |= {record.id: record for record in found.records}
    findings = conclude(records, net, codes)
    unchecked = {
        name: record.reason or ""
        for name, record in records.items()
        if record.status != "ok" and name != "checkerboard"  # no stride, no pattern: that was checked
    }
    if x is None:
        unchecked["images"] = "none were given: what kernels answer was not looked at; --data names a folder"
    return Checked(findings, list(records.values()), unchecked, found.status)


def conclude(records: Mapping[str, Record], net: nn.Module, codes: Sequence[str] = tuple(RULES)) -> list[Finding]:
    """What the rules say of Records by their ids, the most important first. A rule without its Record says nothing."""
    facts = Facts(dict(records), structure_of(net))
    findings = [finding for code in codes for finding in RULES[code](facts)]
    return sorted(findings, key=lambda finding: (-finding.rank, finding.code, finding.targets))


def chosen(select: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    """The codes that begin with a word of `select` and with none of `ignore`; every word must begin some code."""
    for word in [*(select or ()), *ignore]:
        if not word or not any(code.startswith(word.upper()) for code in RULES):
            raise unknown("rule", word, RULES)
    wanted = [code for code in RULES if select is None or any(code.startswith(w.upper()) for w in select)]
    return [code for code in wanted if not any(code.startswith(w.upper()) for w in ignore)]


def alignment_of(net: nn.Module, x: Tensor, y: Tensor, output: Output = None) -> Record:
    """How many answers are those of the labels, beside always naming the commonest class."""
    record = Record(
        "alignment",
        "alignment",
        [
            Column(name="accuracy", unit="share of images", better="up"),
            Column(name="chance", unit="share of the commonest class", better=None),
        ],
    )
    try:
        answers = scores(net, x, output)
    except (DataError, LookupError) as error:
        record.status, record.reason = "not_applicable", str(error)
        return record
    labels = y.cpu().numpy()
    if len(labels) and labels.max() >= answers.shape[1]:
        record.status = "not_applicable"
        record.reason = f"the labels name {labels.max() + 1} classes and the network gives {answers.shape[1]} scores"
        return record
    right = int((answers.argmax(1).numpy() == labels).sum())
    most = int(np.bincount(labels).max()) if len(labels) else 0
    cells = {"accuracy": wilson(right, len(labels)), "chance": most / max(len(labels), 1)}
    record.rows.append({"target": "model", **cells})
    return record


def prepared(images: Tensor, preprocess: str | Callable[[Tensor], Tensor]) -> Tensor:
    """Images as the network takes them. DataError where ImageNet's numbers do not fit, UnknownNameError for a word."""
    if callable(preprocess):
        return preprocess(images)
    if preprocess == "unit":
        return images
    if preprocess != "imagenet":
        raise unknown("preprocessing", preprocess, ["unit", "imagenet"])
    if images.shape[1] != 3:
        raise DataError(
            f"'imagenet' preprocessing is for 3 channels. Received: images with {images.shape[1]}. "
            "Use 'unit' or your own function."
        )
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
    return (images - mean) / deviation


def channels_of(net: nn.Module, data: Any) -> int | None:
    """Grey or colour, where the data is read from files and the first convolution tells."""
    first = next(iter(layers_of(net).values()), None)
    return first.channels if first is not None and first.channels in (1, 3) and isinstance(data, str) else None
