"""A training run as plain text for the terminal: what was reached, for which classes, and where it is kept."""

from __future__ import annotations

from pathlib import Path

from hubel.records import Document, Record, Value

# More classes than this make a confusion matrix that no terminal shows; the worst classes are shown instead.
SHOWN = 20


def render_text(document: Document, path: Path | None) -> str:
    """The run, told in the order a reader asks: how good, after what, for which class, mistaken for what, where."""
    curves, accuracy, classes = (document.record(name) for name in ("curves", "accuracy", "classes"))
    assert document.data is not None
    params, row = curves.method["params"], accuracy.row("held out")
    epochs = len([epoch for epoch in curves.rows if epoch["train_loss"] is not None])
    stopped = {True: f", stopped: {curves.reason}", False: ", interrupted"}[bool(curves.reason)]
    lines = [
        f"{document.model['name']} on {document.data['name']}: {_percent(row['accuracy'])} of {row['images']:,} "
        "held-out images are right",
        f"  after {epochs} of {params['epochs']} epochs in {curves.seconds:.1f} s on {document.settings['engine']}'s "
        f"kernels{stopped if document.status == 'interrupted' else ''}",
        "",
        *_class_table(classes),
    ]
    if len(classes.rows) <= SHOWN:
        lines += ["", "  true class down, what the network said across:", *_confusion(classes)]
    if path is not None:
        lines += ["", f"kept in {path}"]
    return "\n".join(lines)


def _class_table(record: Record) -> list[str]:
    width = max(5, *(len(row["target"]) for row in record.rows))
    rows = record.rows
    if len(rows) > SHOWN:
        rows = sorted(rows, key=lambda row: row["f1"] or 0.0)[:SHOWN]
    head = f"  {'class':<{width}}  images  {'precision':<24}  {'recall':<24}  F1"
    return [head] + [
        f"  {row['target']:<{width}}  {row['images']:>6}  {_percent(row['precision']):<24}  "
        f"{_percent(row['recall']):<24}  {'n/a' if row['f1'] is None else format(row['f1'], '.3f')}"
        for row in rows
    ]


def _confusion(record: Record) -> list[str]:
    counts, names = record.arrays["confusion"].data, [row["target"][:5] for row in record.rows]
    cell = max(4, *(len(name) + 1 for name in names), len(str(counts.max())) + 1)
    width = max(len(name) for name in names)
    lines = [" " * (width + 2) + "".join(f"{name:>{cell}}" for name in names)]
    for name, row in zip(names, counts, strict=True):
        # A dot for zero: the eye finds the mistakes.
        lines.append(f"  {name:<{width}}" + "".join(f"{count or '·':>{cell}}" for count in row))
    return lines


def _percent(value: Value | float | None) -> str:
    if isinstance(value, Value) and value.value is not None and value.lo is not None and value.hi is not None:
        return f"{value.value:.1%} [{value.lo:.1%}, {value.hi:.1%}]"
    number = value.value if isinstance(value, Value) else value
    return "n/a" if number is None else f"{number:.1%}"
