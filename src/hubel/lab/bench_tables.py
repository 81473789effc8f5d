"""The tables of a comparison of engines. Only renders: every number comes from the Document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hubel.lab.text_table import interval, number, ratio, table, time
from hubel.records import Record

UNSETTLED = "~"
IMPRECISE = "!"
# A share of the roof from which on a row says so: what bounds are replaced by.
NEAR_ROOF = 0.92
PAGES_KEPT = ", pages kept"
PREPARED, FLOAT32 = "hubel prepared", "hubel's float32"
SHORT = {
    "channels-last": "cl",
    "hubel's float32": "float32",
    "onnxruntime": "ort",
    "hubel prepared": "prepared",
    PAGES_KEPT: " kept",
}

Row = dict[str, Any]


def of(rows: list[Row], params: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The tables of one direction, each with what its title adds: torch; peers; memory kept; errors."""
    engines: dict[str, list[str]] = params["engines"]
    peers = peers_of(engines)
    yield (" against torch" if peers else "", _torch(rows, params)) if "torch" in engines else ("", "")
    if peers:
        yield " against engines for inference", _peers(rows, params, peers)
    large = [row for row in rows if f"x torch{PAGES_KEPT}" in row]
    if large:
        yield (
            " with outputs above 32 MB, with memory given back on every call and with memory kept",
            _kept(large, params),
        )
    if peers:
        yield ": errors against float64", _errors(rows, params)


def peers_of(engines: dict[str, list[str]]) -> list[str]:
    return [name for name in engines if not name.startswith(("hubel", "torch"))]


def _names(engines: dict[str, list[str]], libraries: list[str], rows: list[Row]) -> list[str]:
    """The contenders of these libraries that have a figure in one of the rows."""
    names = [name for library in libraries for name in engines.get(library, [])]
    return [name for name in names if any(row.get(f"{name} ms") is not None for row in rows)]


def _short(name: str) -> str:
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name


def _milliseconds(row: Row, name: str, label: Row) -> str:
    # Handed back to torch: the figure is torch's own kernel's, behind our dispatch.
    mark = "t" if name in label["handed back"] else IMPRECISE if name in label["imprecise"] else ""
    return time(row.get(f"{name} ms")) + mark


def _roof(row: Row, door: str) -> str:
    share = row.get(f"{door} share of roof")
    text = number(share, ".0%")
    return f"{text}*" if share is not None and (share.value or 0.0) >= NEAR_ROOF else text


def _rounds(row: Row, wanted: int) -> tuple[str, str]:
    """The column, and the mark of figures from too few clean rounds."""
    clean = int(row["clean rounds"])
    return f"{clean}/{row['rounds']}", UNSETTLED if clean < wanted else ""


def _torch(rows: list[Row], params: dict[str, Any]) -> str:
    shown = _names(params["engines"], ["hubel", FLOAT32, "torch"], rows)
    head = ["layer", "problem", "algorithm", *(f"{_short(name)} ms" for name in shown)]
    narrow = any(row.get(f"x {FLOAT32}") for row in rows)
    head += ["x float32", "95 %", "limit"] if narrow else []
    head += ["x torch", "95 %", "GFLOP/s", "of peak", "of roof", "error", "rounds"]
    lines = []
    for row in rows:
        label = params["layers"][row["target"]]
        rounds, unsettled = _rounds(row, params["rounds"])
        line = [label["name"], row["target"].split("/")[0], label["algorithm"] or "-"]
        line += [_milliseconds(row, name, label) for name in shown]
        other = row.get(f"x {FLOAT32}")
        line += [ratio(other), interval(other), label["limit"] or "-"] if narrow else []
        line += [ratio(row.get("x torch")) + unsettled, interval(row.get("x torch"))]
        line += [number(row.get("rate"), ".0f"), number(row.get("share of peak"), ".0%"), _roof(row, "hubel")]
        line += [number(row.get(f"{label['fastest'].get('hubel')} error"), ".0e"), rounds]
        lines.append(line)
    return table(head, lines, left=3)


def _peers(rows: list[Row], params: dict[str, Any], peers: list[str]) -> str:
    shown = _names(params["engines"], [PREPARED, *peers], rows)
    head = ["layer", "algorithm", *(_short(name) for name in shown)]
    head += ["x peers", "95 %", "best peer", "aside", "of roof", "rounds"]
    lines = []
    for row in rows:
        label = params["layers"][row["target"]]
        rounds, unsettled = _rounds(row, params["rounds"])
        line = [label["name"], label["algorithm"] or "-", *(_milliseconds(row, name, label) for name in shown)]
        line += [ratio(row.get("x peers")) + unsettled, interval(row.get("x peers"))]
        line += [_short(label["best peer"] or "-"), ratio(row.get("x peers, conversions aside"))]
        line += [_roof(row, PREPARED), rounds]
        lines.append(line)
    return "milliseconds\n" + table(head, lines, left=2)


def _kept(rows: list[Row], params: dict[str, Any]) -> str:
    engines = params["engines"]
    names = [*engines["hubel"], *engines["torch"]]
    shown = [*_names(engines, ["hubel", "torch"], rows), *(f"{name}{PAGES_KEPT}" for name in names)]
    head = [
        "layer",
        *(f"{_short(name)} ms" for name in shown),
        "x torch",
        "x torch kept",
        "95 %",
        "pages a call",
        "kept",
    ]
    lines = []
    for row in rows:
        label = params["layers"][row["target"]]
        title = f"x torch{PAGES_KEPT}"
        line = [label["name"], *(_milliseconds(row, name, label) for name in shown)]
        line += [ratio(row.get("x torch")), ratio(row.get(title)), interval(row.get(title))]
        line += [number(row.get("torch page faults"), ".0f"), number(row.get(f"torch{PAGES_KEPT} page faults"), ".0f")]
        lines.append(line)
    return table(head, lines)


def _errors(rows: list[Row], params: dict[str, Any]) -> str:
    names = [name for library in params["engines"].values() for name in library]
    shown = [name for name in names if any(row.get(f"{name} error") is not None for row in rows)]
    lines = [
        [params["layers"][row["target"]]["name"], *(number(row.get(f"{name} error"), ".1e") for name in shown)]
        for row in rows
    ]
    return table(["layer", *map(_short, shown)], lines)


def classes(classes: Record, labels: dict[str, Any]) -> str:
    """Means and worst layers by class, a group of columns a rival; of the peers only all together."""
    worst = classes.method["params"]["worst"]
    shown = ("x torch", f"x {FLOAT32}", "x peers", "share of peak")
    titles = [column["name"] for column in classes.columns if column["name"] in shown]
    head, lines = ["class", "layers"], []
    for title in titles:
        head += ["of peak" if title == "share of peak" else _short(title), "95 %", "worst", "which"]
    for row in classes.rows:
        unsettled = f" ({row['unsettled']}{UNSETTLED})" if row["unsettled"] else ""
        line = [row["target"].replace("_", " "), f"{row['layers']}{unsettled}"]
        for title in titles:
            style = ".0%" if title == "share of peak" else ".2f"
            which = worst.get(row["target"], {}).get(title)
            line += [number(row.get(title), style), interval(row.get(title), style)]
            line += [number(row.get(f"worst {title}"), style), labels[which]["name"] if which else "-"]
        lines.append(line)
    return table(head, lines)


def bounds(record: Record, labels: dict[str, Any]) -> str:
    """Each class beside what it is held to."""
    words = record.method["params"]["words"]
    columns = [column["name"] for column in record.columns]
    titles = [title for title in columns if title.startswith("x ") and "," not in title]
    head, lines = ["class", "layers"], []
    for title in titles:
        head += [_short(title), "bound", "met", "worst", "bound", "met", "which"]
    for row in record.rows:
        line = [row["target"], str(row["layers"])]
        for title in titles:
            which = words[row["target"]].get(f"{title}, worst")
            at_roof = "*" if words[row["target"]].get(f"{title}, roof") else ""
            line += [ratio(row.get(title)), ratio(row.get(f"{title}, bound")) + at_roof, _met(row, title)]
            worst = f"worst {title}"
            line += [ratio(row.get(worst)), ratio(row.get(f"{worst}, bound")), _met(row, worst)]
            line += [labels[which]["name"] if which else "-"]
        lines.append(line)
    params = record.method["params"]
    note = f"*: the bounds of some of its layers are {params['roof']:.0%} of their roof, which is less."
    slow = [f"{labels[one['target']]['name']} ({one['ratio']:.2f}, {one['layout']})" for one in params["slow"]]
    below = f"below {params['least']} of torch in the caller's own layout, by the median or its interval: "
    return "\n".join([table(head, lines), note, below + (", ".join(slow) or "none")])


def _met(row: Row, title: str) -> str:
    return {1: "yes", 0: "NO"}.get(row.get(f"{title}, met", -1), "-")


def no_figure(bench: Record, labels: dict[str, Any]) -> str:
    """A line a reason, with the layers it was given for."""
    layers: dict[str, list[str]] = {}
    for item in bench.uncovered:
        layers.setdefault(item["reason"], []).append(labels[item["target"]]["name"])
    every = len(bench.rows)
    return "\n".join(
        f"  {reason}  ({_some(list(dict.fromkeys(names))) if len(names) < every else 'every layer'})"
        for reason, names in layers.items()
    )


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def legend(engines: dict[str, list[str]]) -> str:
    """How to read it all."""
    lines = [
        "x torch: the fastest layout of torch over the fastest of hubel, median of the ratios within rounds,",
        "95 % interval by order statistics; cl: channels-last. Gradients re-pack their weights on every call.",
        "of peak: against fused multiply-adds on registers, timed in the same rounds. error: against float64.",
        "of roof: the least time for the algorithm's own arithmetic at that peak, or for reading the layer's bytes",
        f"once (timed in the same rounds), over the time taken; *: at least {NEAR_ROOF:.0%}, little is left to win.",
        f"rounds: clean/all, of the ratio with the fewest; {UNSETTLED}: fewer than asked for, no figure to quote.",
        "t: handed to torch.",
    ]
    if peers_of(engines):
        lines += [
            "x peers: the fastest engine for inference, conversions of its own included, over hubel's prepared call,",
            "each in its best layout. aside: the same with the peers' conversions between layouts left aside, by",
            "their own profilers, or timed on tensors that lie as they want them.",
            f"{IMPRECISE}: errs by more than 1e-5, shown and not counted as the best.",
        ]
    return "\n".join(lines)
