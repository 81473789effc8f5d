"""How firm the network is: when the image moves by some pixels, and how alike its layers are."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record, Value
from hubel.report import pictures
from hubel.report.html import Html, tag
from hubel.report.parts import find, head_row, image, scroller, section
from hubel.report.text import NBSP, count, fixed, interval, number, percent


def firmness(document: Document) -> Html | None:
    moved, alike = find(document, "shift"), find(document, "similarity")
    parts = [_shift(moved) if moved is not None and moved.rows else None]
    parts.append(_similarity(alike) if alike is not None and alike.rows else None)
    shown = [part for part in parts if part is not None]
    return section("firmness", "How firm it is", tag("div", *shown, class_="two")) if shown else None


def _shift(record: Record) -> Html:
    """Consistency by the size of the shift, with its interval, beside accuracy and the margin."""
    rows = []
    labelled = any(row.get("accuracy") is not None for row in record.rows)
    for row in record.rows:
        cells = [tag("th", f"{number(row['shift'])}{NBSP}px", scope="row"), _share(row["consistency"])]
        cells += [_share(row.get("accuracy"))] if labelled else []
        rows.append(tag("tr", *cells, tag("td", _middle(row.get("margin_change")), class_="num")))
    head = head_row("moved by", "same answer", *(["accuracy"] if labelled else []), "margin moves by")
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="plain")
    what = (
        "The same crop, moved: how often the answer stays (95 % interval). A stride can make it depend on a pixel; "
        "every cut of the image changes what is in it, too."
    )
    body = [tag("h3", "When the image moves"), tag("p", what, class_="size"), scroller(table, "Consistency by shift")]
    return tag("figure", *body)


def _share(cell: object) -> Html:
    if not isinstance(cell, Value) or cell.value is None:
        return tag("td", "–", class_="num")
    bounds = ""
    if cell.lo is not None and cell.hi is not None:
        bounds = f" ({interval(100 * cell.lo, 100 * cell.hi, lambda v: fixed(v, 0))})"
    return tag("td", percent(cell.value), tag("small", bounds), class_="num")


def _middle(cell: object) -> str:
    value = cell.value if isinstance(cell, Value) else cell
    return number(value) if isinstance(value, (int, float)) else "–"


def _similarity(record: Record) -> Html:
    table, names = record.arrays["cka"].data, [str(name) for name in record.arrays["layers"].data]
    n = record.method["params"]["images"]
    nearest = max(
        ((float(table[i, j]), i, j) for i in range(len(names)) for j in range(i)),
        default=(0.0, 0, 0),
        key=lambda t: t[0],
    )
    alt = f"Similarity of {count(len(names), 'layer')}, from the first, top left, to the last; "
    alt += f"most alike are {names[nearest[2]]} and {names[nearest[1]]}: {fixed(nearest[0])}"
    cell = max(2, 240 // max(len(names), 1))
    picture = image(pictures.signed(np.asarray(table), 1.0, cell=cell, marks=False), alt, "map")
    what = (
        f"Every layer against every other (unbiased linear CKA over {count(n, 'image')}; 1, full orange, is alike, "
        f"blank is nothing in common), from the first, top left, to the last. {alt.rpartition('; ')[2].capitalize()}."
    )
    return tag("figure", tag("h3", "How alike its layers are"), tag("p", what, class_="size"), picture)
