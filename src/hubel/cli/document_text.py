"""A Document as plain text: a heading, then a table a record. Draws what is there and computes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len

from hubel.records import Cell, Document, Record, Value

# A long table says less than its first rows and their number.
MOST_ROWS = 24


def render_text(document: Document) -> str:
    """Everything but the pictures; ends with a newline."""
    return "\n".join([*_heading(document), *(line for record in document.records for line in _record(record))]) + "\n"


def _heading(document: Document) -> Iterator[str]:
    model, data, settings = document.model, document.data, document.settings
    weights = "RANDOM weights" if model["weights"] == "random" else "weights from a file"
    yield f"{model['name']}: {model['params']:,} parameters, {weights}"
    yield f"data: {data['name']}, {data['sample']['n']} images" if data else "data: none"
    yield f"preprocess: {model['preprocess']}, threads: {settings['threads']}, accuracy: {settings['accuracy']}"
    if document.status != "complete":
        yield f"status: {document.status}"


def _record(record: Record) -> Iterator[str]:
    yield ""
    yield f"{record.id}" + (f": {record.status}, {record.reason}" if record.status != "ok" else "")
    names = [column["name"] for column in record.columns]
    units = [f"{column['name']} ({column['unit']})" if column["unit"] else column["name"] for column in record.columns]
    shown = record.rows[:MOST_ROWS]
    body = [[str(row["target"]), *(_cell(row.get(name)) for name in names)] for row in shown]
    if body:
        table = [[record.level, *units], *body]
        widths = [max(cell_len(line[i]) for line in table) for i in range(len(table[0]))]
        for line in table:
            first = line[0] + " " * (widths[0] - cell_len(line[0]))
            rest = (" " * (width - cell_len(cell)) + cell for cell, width in zip(line[1:], widths[1:], strict=True))
            yield "  ".join(["  " + first, *rest])
    if len(record.rows) > len(shown):
        yield f"  and {len(record.rows) - len(shown)} more; --json has all"
    for item in record.uncovered:
        yield f"  {item['target']}: {item['reason']}"


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Value):
        return str(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
