"""Each class of layers beside the ratios it is held to: met or not.

The ratios are data: a TOML file, `benchmarks/targets.toml`, which says how to read it. A ratio may ask for more than a
layer's roof allows. With r the measured ratio and s the share of the roof that was reached, a layer at the share `roof`
would have the ratio r·roof/s: where the bound is larger than that, that is the layer's bound. The bound of a class is
the geometric mean of its layers' bounds.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubel.errors import DataError
from hubel.lab.bench_record import ALL_PEERS, LAYOUTS, column, compared_with
from hubel.lab.engines import FLOAT32
from hubel.records import Cell, Method, Record, Value

RIVALS = ("torch", FLOAT32, ALL_PEERS)
# How the file calls them.
KEYS = {"torch": "torch", FLOAT32: "float32", ALL_PEERS: "peers"}
# The only batch that has bounds of its own beside 1.
SCALED_BATCH = 16


@dataclass(frozen=True)
class ClassBounds:
    """name: for people. rows: of the record "classes", or a direction alone for all its classes. limits: by rival,
    (geometric mean, worst layer or None).

    batch: the batch size the bounds are for. limit: only layers limited by "arithmetic", or by "memory"; "": all.
    """

    name: str
    rows: tuple[str, ...]
    limits: dict[str, tuple[float, float | None]]
    batch: int = 1
    limit: str = ""


@dataclass(frozen=True)
class Bounds:
    """roof, batch_16, least: as the file says; classes in its order."""

    roof: float
    batch_16: float
    least: float
    classes: tuple[ClassBounds, ...] = field(default=())


def load(path: Path) -> Bounds:
    """The bounds of a file. Raises DataError for one that holds none."""
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
        classes = tuple(
            ClassBounds(
                one["name"],
                tuple(one["rows"]),
                {rival: _pair(one[key]) for rival, key in KEYS.items() if key in one},
                one.get("batch", 1),
                one.get("limit", ""),
            )
            for one in read["class"]
        )
        return Bounds(read["roof"], read["batch_16"], read["least"], classes)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"Bounds are a TOML file like benchmarks/targets.toml. Received: {path} ({error}).") from None


def _pair(numbers: list[float]) -> tuple[float, float | None]:
    return numbers[0], numbers[1] if len(numbers) > 1 else None


def shipped() -> Path:
    """The file of this folder's `benchmarks`, or of the checkout hubel runs from."""
    roots = (Path.cwd(), Path(__file__).resolve().parents[3])
    found = [root / "benchmarks" / "targets.toml" for root in roots]
    for path in found:
        if path.is_file():
            return path
    raise DataError(f"--targets needs benchmarks/targets.toml, here or in a checkout of Hubel. Looked for: {found[0]}.")


def record(bench: Record, bounds: Bounds) -> Record:
    """The record "targets": a row a class that was run: what it reached, what it must reach, and whether it did."""
    labels: dict[str, dict[str, Any]] = bench.method["params"]["layers"]
    rows, words = [], {}
    for wanted in bounds.classes:
        members = [row for row in bench.rows if _belongs(labels[row["target"]], wanted)]
        scales = {_scale(labels[row["target"]]["batch"], wanted, bounds) for row in members}
        # Batches that nothing is said about, or several at once: no bound applies.
        if not members or len(scales) != 1 or (scale := scales.pop()) is None:
            continue
        cells: dict[str, Cell] = {"layers": len(members)}
        words[wanted.name] = {}
        for rival, limits in wanted.limits.items():
            cells |= _judged(members, rival, limits, scale, bounds.roof, words[wanted.name])
        rows.append({"target": wanted.name} | cells)
    columns = [column("layers", "layers", None)]
    taken = [rival for rival in RIVALS if any(f"x {rival}" in row for row in rows)]
    for rival in taken:
        for kind in (f"x {rival}", f"worst x {rival}"):
            columns += [column(kind, "ratio", "up"), column(f"{kind}, bound", "ratio", None)]
            columns += [column(f"{kind}, met", "1", "up")]
    slow = _below(bench, bounds.least)
    params = {"words": words, "slow": slow, "least": bounds.least, "roof": bounds.roof}
    method = Method(name="geometric mean of the layers' median ratios", params=params, source="")
    return Record(id="targets", kind="bench", columns=columns, rows=rows, method=method)


def _belongs(label: dict[str, Any], wanted: ClassBounds) -> bool:
    if wanted.limit and label["limit"] != wanted.limit:
        return False
    return label["work"] in wanted.rows or f"{label['work']} {label['kind']}" in wanted.rows


def _scale(batch: int, wanted: ClassBounds, bounds: Bounds) -> float | None:
    """What share of the bounds a layer of this batch is held to; None if nothing is said about it."""
    if batch == wanted.batch:
        return 1.0
    return bounds.batch_16 if (batch, wanted.batch) == (SCALED_BATCH, 1) else None


def _judged(
    members: list[dict[str, Any]],
    rival: str,
    limits: tuple[float, float | None],
    scale: float,
    roof: float,
    words: dict[str, Any],
) -> dict[str, Cell]:
    """The cells of a class against one rival; `words` learns the worst layer and which layers' bounds the roof set."""
    title, door = f"x {rival}", compared_with(rival)
    ratios = {row["target"]: _middle(row.get(title)) for row in members}
    ratios = {target: ratio for target, ratio in ratios.items() if ratio}
    if not ratios:
        return {}
    shares = {row["target"]: _middle(row.get(f"{door} share of roof")) for row in members}
    reachable = {t: ratio * roof / share if (share := shares[t]) else math.inf for t, ratio in ratios.items()}
    mean, least = limits
    held = {target: min(mean * scale, reachable[target]) for target in ratios}
    reached, bound = _geometric(list(ratios.values())), _geometric(list(held.values()))
    cells: dict[str, Cell] = {title: reached, f"{title}, bound": bound, f"{title}, met": int(reached >= bound)}
    # Where the roof, not the number in the file, is what a layer is held to.
    words[f"{title}, roof"] = [target for target in held if held[target] < mean * scale]
    # The worst layer is the one that is farthest below what it is held to.
    lowest = {target: min((least or 0.0) * scale, reachable[target]) for target in ratios}
    worst = min(ratios, key=lambda target: ratios[target] / (lowest[target] or 1.0))
    words[f"{title}, worst"] = worst
    cells[f"worst {title}"] = ratios[worst]
    if least is not None:
        cells[f"worst {title}, bound"] = lowest[worst]
        cells[f"worst {title}, met"] = int(ratios[worst] >= lowest[worst])
    return cells


def _below(bench: Record, least: float) -> list[dict[str, Any]]:
    """Layers slower than `least` of torch in one of the caller's layouts, by the median or by its interval."""
    found = []
    for row in bench.rows:
        for layout in LAYOUTS:
            ratio = row.get(f"x torch, {layout}")
            if not isinstance(ratio, Value) or ratio.value is None:
                continue
            if min(ratio.value, ratio.value if ratio.lo is None else ratio.lo) < least:
                found.append({"target": row["target"], "layout": layout, "ratio": ratio.value, "lo": ratio.lo})
    return found


def _geometric(numbers: list[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def _middle(cell: Cell) -> float | None:
    return cell.value if isinstance(cell, Value) else cell
