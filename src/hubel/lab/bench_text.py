"""The table of a bench run, as plain text. Only renders: every number comes from the Document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubel.records import Cell, Document, Record, Value

UNSETTLED = "~"
RULE = "-"


def render_text(document: Document) -> str:
    """A run of `bench`, `step_time` or `overhead`, whole: what was measured on what, and the tables of its records."""
    parts = [_heading(document)]
    for record in document.records:
        if record.id == "bench":
            parts += _bench(record, document.record("classes"))
        elif record.id in _SINGLE:
            parts.append(_SINGLE[record.id](record))
    return "\n\n".join(parts) + "\n"


def _bench(bench: Record, classes: Record) -> list[str]:
    """A table a direction, means by class, what has no figure and why, and how to read it all."""
    engines: dict[str, list[str]] = bench.method["params"]["engines"]
    parts = []
    labels: dict[str, dict[str, Any]] = bench.method["params"]["layers"]
    for work in dict.fromkeys(label["work"] for label in labels.values()):
        rows = [row for row in bench.rows if labels[row["target"]]["work"] == work]
        parts.append(f"{work.replace('_', ' ')}\n" + _layers(rows, labels, engines, bench.method["params"]["rounds"]))
    if classes.rows:
        parts.append("means: geometric, over the layers of a class\n" + _classes(classes, list(engines)[1:], labels))
    if bench.uncovered:
        parts.append("no figure\n" + _no_figure(bench, labels))
    return [*parts, _legend(engines)]


def _step(record: Record) -> str:
    """Training steps, an engine a line."""
    head = ["training step", "ms", "95 %", "5th..95th percentile", "x torch", "95 %", "slower in"]
    lines = []
    for row in record.rows:
        spread = f"{row['p5 ms']:.2f}..{row['p95 ms']:.2f}"
        line = [row["target"], _number(row["ms"], ".2f"), _interval(row["ms"]), spread]
        line += [_ratio(row.get("x torch")), _interval(row.get("x torch")), _number(row.get("slower"), ".0%")]
        lines.append(line)
    params = record.method["params"]
    note = f"x torch: {params['torch']} over hubel, median of {params['rounds']} rounds, slower steps included"
    return f"{table(head, lines)}\n\n{note}; {params['clean rounds']} rounds were clean."


def _overhead(record: Record) -> str:
    """Microseconds a call, a contender a line."""
    lines = [
        [
            r["target"],
            _number(r["us"], ".2f"),
            _interval(r["us"]),
            _number(r.get("overhead"), ".2f"),
            _interval(r.get("overhead")),
        ]
        for r in record.rows
    ]
    params = record.method["params"]
    note = f"above empty: above the same override returning torch.empty; clean rounds {params['clean rounds']}"
    return f"{table(['call', 'us', '95 %', 'above empty', '95 %'], lines)}\n\n{note}/{params['rounds']}."


_SINGLE = {"step": _step, "overhead": _overhead}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` aligned left, numbers right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), line([RULE * width for width in widths]), *map(line, rows)])


def _heading(document: Document) -> str:
    machine, settings = document.machine, document.settings
    versions = ", ".join(f"{name} {number}" for name, number in document.versions.items())
    quiet = [f"load {machine['load'][0]}"] if machine.get("load") else []
    if machine.get("stolen") is not None:
        quiet.append(f"{machine['stolen']:.1%} taken by other guests")
    lines = [
        f"{document.model['name']}   {document.created}   {document.status}",
        f"{machine.get('name', 'unknown machine')}, {machine.get('cores', '?')} cores, {machine.get('cpu', '?')} "
        f"({machine.get('lanes', '?')} lanes); {', '.join(quiet)}",
        f"threads {settings['threads']}, float32, accuracy {settings['accuracy']}, seed {settings['seed']}",
        *([machine["held"]] if machine.get("held") else []),
        versions,
    ]
    return "\n".join(lines)


def _layers(rows: list[dict[str, Any]], labels: dict[str, Any], engines: dict[str, list[str]], wanted: int) -> str:
    ours, *rivals = engines
    names = [name for library in engines.values() for name in library]
    shown = [name for name in names if any(row.get(f"{name} ms") is not None for row in rows)]
    short = {name: name.replace("channels-last", "cl") for name in shown}
    head = ["layer", "problem", "algorithm", *(f"{short[name]} ms" for name in shown)]
    head += [f"x {rival}" for rival in rivals] + ["95 %", "GFLOP/s", "of peak", "error", "rounds"]
    lines = []
    for row in rows:
        label = labels[row["target"]]
        line = [label["name"], row["target"].split("/")[0], label["algorithm"] or "-"]
        # Handed back to torch: the figure is torch's own kernel's, behind our dispatch.
        line += [_time(row.get(f"{n} ms")) + ("t" if n in label["handed back"] else "") for n in shown]
        clean = int(row["clean rounds"])
        unsettled = UNSETTLED if clean < wanted else ""
        line += [_ratio(row.get(f"x {rival}")) + unsettled for rival in rivals]
        line += [_interval(row.get(f"x {rivals[0]}")) if rivals else "-"]
        line += [_number(row.get("rate"), ".0f"), _number(row.get("share of peak"), ".0%")]
        line += [_number(row.get(f"{label['fastest'].get(ours)} error"), ".0e")]
        line += [f"{clean}/{row['rounds']}"]
        lines.append(line)
    return table(head, lines, left=3)


def _classes(classes: Record, rivals: list[str], labels: dict[str, Any]) -> str:
    worst = classes.method["params"]["worst"]
    head, lines = ["class", "layers"], []
    for rival in rivals:
        head += [f"x {rival}", "95 %", "worst", "which"]
    head += ["of peak", "95 %", "worst", "which"]
    for row in classes.rows:
        unsettled = f" ({row['unsettled']}{UNSETTLED})" if row["unsettled"] else ""
        line = [row["target"].replace("_", " "), f"{row['layers']}{unsettled}"]
        for column, style in [*((f"x {rival}", ".2f") for rival in rivals), ("share of peak", ".0%")]:
            which = worst.get(row["target"], {}).get(column)
            line += [_number(row.get(column), style), _interval(row.get(column), style)]
            line += [_number(row.get(f"worst {column}"), style), labels[which]["name"] if which else "-"]
        lines.append(line)
    return table(head, lines)


def _no_figure(bench: Record, labels: dict[str, Any]) -> str:
    """A line a reason, with the layers it was given for."""
    layers: dict[str, list[str]] = {}
    for item in bench.uncovered:
        layers.setdefault(item["reason"], []).append(labels[item["target"]]["name"])
    return "\n".join(f"  {reason}  ({_some(list(dict.fromkeys(names)))})" for reason, names in layers.items())


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _legend(engines: dict[str, list[str]]) -> str:
    ours = next(iter(engines))
    return "\n".join(
        [
            f"x torch: the fastest layout of torch over the fastest of {ours}, median of the ratios within rounds,",
            "95 % interval by order statistics; cl: channels-last. Gradients re-pack their weights on every call.",
            "of peak: against fused multiply-adds on registers, timed in the same rounds. error: against float64.",
            f"rounds: clean/all; {UNSETTLED}: fewer clean ones than asked for, no figure to quote. t: handed to torch.",
        ]
    )


def _middle(cell: Cell) -> float | None:
    return cell.value if isinstance(cell, Value) else cell


def _number(cell: Cell, style: str) -> str:
    number = _middle(cell)
    return "-" if number is None else format(number, style)


def _ratio(cell: Cell) -> str:
    return _number(cell, ".2f")


def _time(cell: Cell) -> str:
    """Milliseconds to three digits."""
    number = _middle(cell)
    if number is None:
        return "-"
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _interval(cell: Cell, style: str = ".2f") -> str:
    if not isinstance(cell, Value) or cell.lo is None or cell.hi is None:
        return "-"
    return f"{format(cell.lo, style)}..{format(cell.hi, style)}"
