"""What `networks.py` found, as a Record, and as files beside those of `hubel bench`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubel.lab.bench_text import render_text
from hubel.records import Column, Document, Method, Record, Uncovered
from hubel.records.codec import write_atomically

UNITS = {" ms": "ms", " error": "relative", " MiB": "MiB", " s": "s"}


def record(kind: str, rows: Sequence[dict[str, Any]], uncovered: Sequence[Any] = (), how: str = "") -> Record:
    """A row a network or engine. Units are read off the columns' names."""
    names = dict.fromkeys(key for row in rows for key in row if key != "target")
    columns = []
    for name in names:
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "ratio")
        columns.append(Column(name=name, unit=unit, better="up" if " x " in name else "down"))
    full = [dict.fromkeys(names) | row for row in rows]
    return Record(
        id=kind, kind="bench", level="model", columns=columns, rows=full,
        uncovered=[Uncovered(target=one["target"], reason=one["reason"]) for one in uncovered],
        method=Method(name=how or "interleaved rounds, medians of ratios within rounds", params={}, source=""),
    )  # fmt: skip


def save(document: Document, text: str, folder: Path | None) -> str:
    """The whole text; written with the JSON to a folder, which is made if need be."""
    whole = f"{render_text(document)}\n{text}\n"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        words = [document.created, document.model["name"].removeprefix("bench: "), f"{document.settings['threads']}t"]
        stem = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)[:100]
        write_atomically(folder / f"{stem}.txt", whole.encode())
        write_atomically(folder / f"{stem}.json", document.to_json().encode())
    return whole
