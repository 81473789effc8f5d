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

## NaN and infinity

*strict* sends them where the definition does: to the outputs that read them, and no others, as torch does. The
algorithms that *default* and *fast* add compute several outputs from common terms, and spread them a little further:

- **winograd**: over the tiles that read the number, of 4×4 outputs or whatever form the plan names, so that they reach
  m + k − 2 pixels at most along an axis whose tiles have m outputs and whose kernel has k taps: 5 for F(4×4, 3×3).
  With stride 2, even and odd inputs have filters of half the taps, so that k is the longer half's: 4 for F(4×4, 3×3)
  forward, and as many of the even and of the odd pixels of an input gradient.
- **fft**: over the rows of the bands that read it, in those columns whose kernels do; the plan says how many rows.
- **winograd_weight_gradient**, **fft_weight_gradient**: over all taps of the kernels of the channel that has it.

Nothing reaches another image, nor another channel but through the weights. `hubel plan` says it of each layer that it
concerns.
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
    """A line a class of layers and algorithm, the worst of its layers; levels that give the same share a line."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row, label in found:
        groups.setdefault((label["kind"], label["algorithm"], label["level"]), []).append(row)
    levels: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    order = ("strict", "default", "fast")
    for kind, algorithm, level in sorted(groups, key=lambda key: (key[0], key[1], order.index(key[2]))):
        rows = groups[kind, algorithm, level]
        used = max(row["rms in u"] / row["plan's bound in u"] for row in rows)
        worst = [max(row[title] for row in rows) for title in ("rms", "rms in u", "largest", "largest in u")]
        cells = f"{worst[0]:.1e} | {worst[1]:.2f} | {used:.0%}", f"{worst[2]:.1e} | {worst[3]:.1f}"
        key = kind, algorithm, str(len(rows)), *cells
        levels.setdefault(key, []).append((level, rows[0]["promised in u"]))
    lines = [
        "| layers | algorithm | levels | how many | rms, worst | in u | of the bound | promised, u | largest | in u |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, algorithm, count, rms, largest), same in levels.items():
        names, promised = ", ".join(name for name, _ in same), ", ".join(f"{limit:.0f}" for _, limit in same)
        lines.append(f"| {kind} | {algorithm} | {names} | {count} | {rms} | {promised} | {largest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
