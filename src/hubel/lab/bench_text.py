"""The table of a bench run, as plain text. Only renders: every number comes from the Document."""

from __future__ import annotations

from typing import Any

from hubel.lab import bench_tables
from hubel.lab.text_table import interval, number, table
from hubel.records import Document, Record


def render_text(document: Document) -> str:
    """A run of `bench`, `step_time` or `overhead`, whole: what was measured on what, and the tables of its records."""
    parts = [_heading(document)]
    for record in document.records:
        if record.id == "bench":
            parts += _bench(record, document.record("classes"))
        elif record.id == "targets":
            parts.append("bounds\n" + bench_tables.bounds(record, document.record("bench").method["params"]["layers"]))
        elif record.id in _SINGLE:
            parts.append(_SINGLE[record.id](record))
    return "\n\n".join(parts) + "\n"


def _bench(bench: Record, classes: Record) -> list[str]:
    """Tables a direction, means by class, what has no figure and why, and how to read it all."""
    params = bench.method["params"]
    labels: dict[str, dict[str, Any]] = params["layers"]
    parts = []
    for work in dict.fromkeys(label["work"] for label in labels.values()):
        rows = [row for row in bench.rows if labels[row["target"]]["work"] == work]
        parts += [f"{work.replace('_', ' ')}{title}\n{text}" for title, text in bench_tables.of(rows, params)]
    if classes.rows:
        parts.append("means: geometric, over the layers of a class\n" + bench_tables.classes(classes, labels))
    if bench.uncovered:
        parts.append("no figure\n" + bench_tables.no_figure(bench, labels))
    return [*parts, bench_tables.legend(params["engines"])]


def _step(record: Record) -> str:
    """Training steps, an engine a line."""
    head = ["training step", "ms", "95 %", "5th..95th percentile", "x torch", "95 %", "slower in"]
    lines = []
    for row in record.rows:
        spread = f"{row['p5 ms']:.2f}..{row['p95 ms']:.2f}"
        line = [row["target"], number(row["ms"], ".2f"), interval(row["ms"]), spread]
        line += [number(row.get("x torch"), ".2f"), interval(row.get("x torch")), number(row.get("slower"), ".0%")]
        lines.append(line)
    params = record.method["params"]
    note = f"x torch: {params['torch']} over hubel, median of {params['rounds']} rounds, slower steps included"
    return f"{table(head, lines)}\n\n{note}; {params['clean rounds']} rounds were clean."


def _overhead(record: Record) -> str:
    """Microseconds a call, a contender a line."""
    lines = [
        [
            r["target"],
            number(r["us"], ".2f"),
            interval(r["us"]),
            number(r.get("overhead"), ".2f"),
            interval(r.get("overhead")),
        ]
        for r in record.rows
    ]
    params = record.method["params"]
    note = f"above empty: above the same override returning torch.empty; clean rounds {params['clean rounds']}"
    return f"{table(['call', 'us', '95 %', 'above empty', '95 %'], lines)}\n\n{note}/{params['rounds']}."


def _cold(record: Record) -> str:
    """Milliseconds of first calls, a layer a line, by what they are made of; medians and 95th percentiles below."""
    params = record.method["params"]
    parts = [*params["parts"], "other"]
    columns = (
        [f"cold {part}" for part in ("cost", *parts)] + [f"warm {part}" for part in ("cost", *parts)] + ["cold call"]
    )
    head = ["layer", "cold: ms", *parts, "warm: ms", *parts, "a later call"]
    lines = [[params["names"][row["target"]], *(number(row[title], ".2f") for title in columns)] for row in record.rows]
    for name in ("median", "p95"):
        lines.append([name, *(number(params["summary"][title][name], ".2f") for title in columns)])
    return (
        f"{table(head, lines)}\n\nfirst call of a new layer minus a later call; cold: nothing in the cache; warm: all."
    )


def _errors(record: Record) -> str:
    """Errors against float64, a problem and level a line."""
    labels = record.method["params"]["layers"]
    head = ["layer", "direction", "level", "algorithm", "rms", "in u", "promised", "plan's", "largest", "in u", "kept"]
    lines = []
    for row in record.rows:
        label = labels[row["target"]]
        line = [label["name"], label["work"].replace("_", " "), label["level"], label["algorithm"]]
        line += [number(row["rms"], ".1e"), number(row["rms in u"], ".2f"), number(row["promised in u"], ".0f")]
        line += [number(row["plan's bound in u"], ".2f"), number(row["largest"], ".1e")]
        line += [number(row["largest in u"], ".1f"), "yes" if row["kept"] else "NO"]
        lines.append(line)
    declined = [f"  {one['target']}: {one['reason']}" for one in record.uncovered]
    return "\n".join([table(head, lines, left=4), *(["", "no figure", *declined] if declined else [])])


_SINGLE = {"step": _step, "overhead": _overhead, "cold": _cold, "errors": _errors}


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
        f"threads {settings['threads']}, accuracy {settings['accuracy']}, seed {settings['seed']}",
        *([machine["held"]] if machine.get("held") else []),
        versions,
    ]
    return "\n".join(lines)
