"""Writes docs/numerics.md from runs of `hubel bench --errors`:

    hubel bench dense3x3 pointwise ... --errors -o benchmarks/results
    python benchmarks/numerics.py benchmarks/results/*errors-of*.json > docs/numerics.md

Every number comes from the documents. A later document replaces rows that an earlier one has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hubel.records import Document

HEAD = """\
# Rounding errors, measured

How far Hubel's float32 results lie from float64, over every shape list under `benchmarks/shapes/`, for the forward pass
and both gradients, at each accuracy level. On N(0, 1) data, out against ref computed in float64:

- **rms**: ‖out − ref‖ ∕ ‖ref‖
- **largest**: max |out − ref| ∕ √(mean ref²), the worst single number on the same scale

both in units of u = 3e-7 · max(1, √(K ∕ 2304)) for sums of K terms: a sum of 2304 products or fewer has u = 3e-7, one
of 9216 has 6e-7. The levels promise an rms error of at most 2 u (*strict*), 6 u (*default*) and 20 u (*fast*); each
plan states its own bound (`hubel plan`), which may be smaller, and *of the bound* says how much of it was used.
*strict* keeps to sums as they are written down; *default* adds algorithms that multiply less and round more. About the
largest error nothing is promised; the tables show how far above the rms error it lies.

`torch.testing.assert_close`'s 1.3e-6 is not met by such an algorithm where a result is close to zero. Use *strict*
there.
"""


def main(paths: list[str]) -> None:
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    sources = []
    for path in sorted(paths):
        document = Document.from_json(Path(path).read_text(encoding="utf-8"))
        record = document.record("errors")
        labels = record.method["params"]["layers"]
        rows |= {row["target"]: (row, labels[row["target"]]) for row in record.rows}
        machine = document.machine
        sources.append(
            f"- {document.created[:10]}, {machine['name']} ({machine['cpu']}, {machine['lanes']} lanes): "
            f"[{document.model['name'].removeprefix('bench: ')}](../benchmarks/results/{Path(path).name})"
        )
    print(HEAD)
    for work, title in (
        ("forward", "Forward"),
        ("transposed", "Transposed convolutions"),
        ("input_gradient", "Input gradient"),
        ("weight_gradient", "Weight gradient"),
    ):
        found = [(row, label) for row, label in rows.values() if label["work"] == work]
        if found:
            print(f"## {title}\n\n{table(found)}\n")
    kept = sum(row["kept"] for row, _ in rows.values())
    print(f"{kept} of {len(rows)} results keep both their level's promise and their plan's bound.\n")
    print("## Where it comes from\n\n`python benchmarks/numerics.py` wrote this page from\n\n" + "\n".join(sources))


def table(found: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """A line a class of layers, algorithm and level: the worst of its layers."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row, label in found:
        groups.setdefault((label["kind"], label["level"], label["algorithm"]), []).append(row)
    lines = [
        "| layers | level | algorithm | how many | rms, worst | in u | promised | of the bound | largest | in u |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {"strict": 0, "default": 1, "fast": 2}
    for kind, level, algorithm in sorted(groups, key=lambda key: (key[0], order[key[1]], key[2])):
        rows = groups[kind, level, algorithm]
        rms, largest = max(row["rms in u"] for row in rows), max(row["largest in u"] for row in rows)
        used = max(row["rms in u"] / row["plan's bound in u"] for row in rows)
        lines.append(
            f"| {kind} | {level} | {algorithm} | {len(rows)} | {max(row['rms'] for row in rows):.1e} | {rms:.2f} | "
            f"{rows[0]['promised in u']:.0f} | {used:.0%} | "
            f"{max(row['largest'] for row in rows):.1e} | {largest:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
