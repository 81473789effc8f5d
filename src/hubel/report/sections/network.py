"""The network as a strip of layers: what each costs, upwards, and what the answers owe to it, downwards."""

from __future__ import annotations

from typing import NamedTuple

from hubel.records import Document, Record
from hubel.report.atlas import addresses
from hubel.report.html import Html, join, tag
from hubel.report.parts import find, section
from hubel.report.text import NBSP, count, number, percent, point

# At most so high are the bars, in rem.
_HEIGHT = 5.0


class Bar(NamedTuple):
    """A layer's share of the cost and of the importance, between 0 and 1, and both in words."""

    address: str
    cost: float
    cost_words: str
    weight: float | None
    weight_words: str


def network(document: Document) -> Html | None:
    layers = addresses(document)
    bars = _bars(document, layers)
    if len(layers) < 2 or not bars:
        return None
    top, bottom = max(b.cost for b in bars), max((b.weight or 0.0 for b in bars), default=0.0)
    items = [tag("li", _bar(b, top, bottom)) for b in bars]
    record = find(document, "cost")
    measured = record is not None and any(row.get("ms") is not None for row in record.rows)
    what = "the time it takes" if measured else "its multiply-adds (computed)"
    lead = [f"Every convolution, from the input to the answer. Up: {what}"]
    if bottom:
        lead.append(
            ", as a share of all of them. Down: what the answers owe to its kernels, estimated (Taylor), likewise"
        )
    lead.append(". Each leads to a page of its own; there, every kernel has one.")
    strip = tag("ol", *items, class_="network" if bottom else "network flat")
    scroller = tag("div", strip, class_="scroll", role="region", aria_label="The layers", tabindex="0")
    return section("network", "The network", tag("p", *lead, class_="lead"), scroller, _sums(record), _against(record))


def _bars(document: Document, layers: list[str]) -> list[Bar]:
    record, weights = find(document, "cost"), document.record("kernels").method["params"]["layers"]
    rows = {row["target"]: row for row in record.rows} if record is not None else {}
    costs: dict[str, tuple[float, str]] = {}
    for address in layers:
        row = rows.get(address, {})
        ms, macs = point(row.get("ms")), row.get("macs")
        if ms is not None:
            costs[address] = ms, f"{number(ms)}{NBSP}ms"
        elif macs is not None:
            costs[address] = float(macs), f"{number(macs / 1e6)} million multiply-adds"
    if not costs:
        return []
    owed = _owed(find(document, "taylor") or find(document, "importance"))
    total, whole = sum(c for c, _ in costs.values()), sum(owed.values())
    bars = []
    for address, (value, words) in costs.items():
        share = owed.get(address, 0.0) / whole if whole else None
        owes = f"; {percent(share)} of what the answers owe to kernels" if share is not None else ""
        kernels = count(weights[address]["shape"][0], "kernel")
        spoken = f"{kernels}, {words}, {percent(value / total)} of all convolutions"
        bars.append(Bar(address, value / total, spoken, share, owes))
    return bars


def _owed(record: Record | None) -> dict[str, float]:
    """Of each layer, the sum over its kernels of their estimated importance."""
    sums: dict[str, float] = {}
    for row in record.rows if record is not None else []:
        value = point(row.get("taylor"))
        if value is not None:
            address = row["target"].rpartition(":")[0]
            sums[address] = sums.get(address, 0.0) + value
    return sums


def _bar(bar: Bar, top: float, bottom: float) -> Html:
    up = tag("i", class_="up", style=f"height:{_HEIGHT * bar.cost / top:.2f}rem")
    parts = [tag("span", up, class_="half")]
    if bottom and bar.weight is not None:
        parts.append(tag("span", tag("i", class_="down", style=f"height:{_HEIGHT * bar.weight / bottom:.2f}rem")))
    words = f"{bar.address}: {bar.cost_words}{bar.weight_words}"
    return tag("a", *parts, tag("span", words, class_="sr"), href=f"#{bar.address}", title=words)


def _against(record: Record | None) -> Html | None:
    """Cost against importance: beside the time of the slowest layers, how many of their kernels can go together."""
    rows = [row for row in record.rows if point(row.get("removable")) is not None] if record is not None else []
    if record is None or not rows:
        return None
    params = record.method["params"]
    slowest = max(point(row["ms"]) or 0.0 for row in rows)
    lines = []
    for row in rows:
        ms, removable = point(row["ms"]) or 0.0, point(row["removable"]) or 0.0
        cells = [
            tag("td", _share_bar(ms / slowest if slowest else 0.0), f"{number(ms)}{NBSP}ms", class_="track"),
            tag("td", _share_bar(removable), percent(removable), class_="track"),
        ]
        lines.append(tag("tr", tag("th", tag("a", row["target"], href=f"#{row['target']}"), scope="row"), *cells))
    limit = "one point of accuracy" if params["measure"] == "accuracy" else f"a KL of {number(params['limit'])}"
    heads = [tag("th", head, scope="col") for head in ("layer", "time", "of its kernels can go")]
    text = (
        f"Cost against importance, of {count(len(rows), 'layer')}, the slowest: the largest share of kernels, the "
        f"least important first, that cost less than {limit} when all are put at their means; on "
        f"{count(params['measuring'], 'image')}."
    )
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="against plain")
    return join(tag("h3", "What could go"), tag("p", text, class_="size wide"), table)


def _share_bar(share: float) -> Html:
    return tag("span", class_="bar", style=f"--share:{100 * share:.1f}%", aria_hidden="true")


def _sums(record: Record | None) -> Html | None:
    """The time of the whole network beside the sum of its convolutions: what is not in the strip."""
    if record is None:
        return None
    whole = next((point(row.get("ms")) for row in record.rows if row["target"] == "(end to end)"), None)
    parts = sum(point(row.get("ms")) or 0.0 for row in record.rows if not row["target"].startswith("("))
    if not whole:
        return None
    params = record.method["params"]
    text = (
        f"{number(whole)}{NBSP}ms for {count(params['batch'], 'image')} from end to end, {number(parts)}{NBSP}ms of it "
    )
    text += f"in convolutions; engine {params['engine']}, {count(params['threads'], 'thread')}."
    return join(tag("p", text, class_="size wide"))
