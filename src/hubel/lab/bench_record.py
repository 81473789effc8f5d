"""What a bench run found, as Records: a row a layer, and means over classes of layers. Computes; draws nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hubel.lab import engines, timing
from hubel.lab.conditions import Planned
from hubel.lab.engines import Checked
from hubel.lab.shapes import Case
from hubel.lab.timing import Rounds
from hubel.records import Cell, Column, Record, Uncovered, Value

# Contenders that are no engines: fused multiply-adds only, and reading only.
PEAK, TRAFFIC = "fma peak", "memory"
# Behind the names of those that ran in a process that keeps its memory.
PAGES_KEPT = ", pages kept"
# All engines for inference together; the best of them is a rival, too.
ALL_PEERS = "peers"
# The same ratio with what they spend on converting layouts left aside.
UNCONVERTED = "x peers, conversions aside"

LAYOUTS = {"same NCHW": "", "same channels-last": " channels-last"}


@dataclass
class Layer:
    """What was found out about one case. peak_flops, traffic_bytes: what a call of the two that are no engines does.

    kept: the rounds of torch and Hubel in a process that keeps its memory, where that matters.
    layer_shares: of contenders that convert layouts, the share of their time that the layer itself takes.
    """

    case: Case
    checked: dict[str, Checked]
    taken: Rounds
    declined: dict[str, str]
    planned: Planned = field(default_factory=lambda: Planned("", 0))
    peak_flops: float = 0.0
    traffic_bytes: float = 0.0
    kept: Rounds | None = None
    layer_shares: dict[str, float] = field(default_factory=dict)

    def best(self, library: str) -> str | None:
        """The fastest contender of a library (or of "peers"); None if it has none that is right and precise."""
        among = engines.PEERS if library == ALL_PEERS else [library]
        names = [name for one in among for name in engines.ENGINES[one]]
        timed = [name for name in names if self.taken.samples.get(name) and self.checked[name].counts]
        return self.taken.best(timed) if timed else None

    def pair(self, rival: str) -> tuple[str, str] | None:
        """The fastest contender of a rival, and the one of Hubel's that it is compared with."""
        slow, fast = self.best(rival), self.best(compared_with(rival))
        return (slow, fast) if slow and fast else None

    def unconverted(self) -> Value | None:
        """The fastest peer over Hubel's prepared call, the peers' conversions between layouts left aside."""
        fast = self.best(engines.PREPARED)
        names = [name for peer in engines.PEERS for name in engines.ENGINES[peer]]
        timed = [name for name in names if self.taken.samples.get(name) and self.checked[name].counts]
        if fast is None or not timed:
            return None
        found = [timing.scaled(self.taken.ratio(name, fast), self.layer_shares.get(name, 1.0)) for name in timed]
        return min(found, key=lambda ratio: ratio.value or math.inf)

    def clean_rounds(self, rivals: Sequence[str]) -> int:
        """Of the ratios against these rivals, the one from the fewest clean rounds: how many it has."""
        pairs = [pair for pair in map(self.pair, rivals) if pair]
        return min((len(self.taken.clean_rounds(pair)) for pair in pairs), default=len(self.taken.clean_rounds()))

    def ratios(self, rival: str) -> list[float]:
        """How many times faster Hubel is than a rival, round by round, each in its fastest layout."""
        pair = self.pair(rival)
        return self.taken.ratios(*pair) if pair else []

    def peak_shares(self, library: str) -> list[float]:
        """The library's rate over the rate of the peak kernel in the same round."""
        fast = self.best(library)
        if fast is None or not self.taken.samples.get(PEAK):
            return []
        scale = self.case.flops / self.peak_flops
        return [ratio * scale for ratio in self.taken.ratios(PEAK, fast)]

    def limit(self) -> str | None:
        """Whether "arithmetic" or "memory" allows the less; None if that was not timed."""
        peak, traffic = self.taken.samples.get(PEAK), self.taken.samples.get(TRAFFIC)
        if not peak or not traffic:
            return None
        arithmetic = self.planned.flops / self.peak_flops * (self.taken.seconds(PEAK).value or 0.0)
        memory = self.case.bytes / self.traffic_bytes * (self.taken.seconds(TRAFFIC).value or 0.0)
        return "arithmetic" if arithmetic >= memory else "memory"

    def roof_shares(self, library: str) -> list[float]:
        """The least time for arithmetic (after the algorithm's own reduction) or for memory, over the time taken."""
        fast = self.best(library)
        if fast is None or not (self.taken.samples.get(PEAK) and self.taken.samples.get(TRAFFIC)):
            return []
        arithmetic = self.planned.flops / self.peak_flops
        memory = self.case.bytes / self.traffic_bytes
        samples, names = self.taken.samples, (PEAK, TRAFFIC, fast)
        # Disturbed rounds would have the roof down: without a clean one there is no share.
        return [
            max(samples[PEAK][r].seconds * arithmetic, samples[TRAFFIC][r].seconds * memory) / samples[fast][r].seconds
            for r in self.taken.clean_rounds(names)
        ]


@dataclass
class Taken:
    """A run: the libraries that took part, and what was found layer by layer."""

    libraries: list[str]
    layers: list[Layer] = field(default_factory=list)
    status: Literal["complete", "interrupted"] = "complete"
    seconds: float = 0.0

    @property
    def ours(self) -> str:
        return self.libraries[0]

    @property
    def rivals(self) -> list[str]:
        """Whom Hubel is compared with; all peers together, too, where there are any."""
        found = [name for name in self.libraries if engines.rival_of(name)]
        return found + ([ALL_PEERS] if any(name in engines.PEERS for name in found) else [])


def compared_with(rival: str) -> str:
    return engines.PREPARED if rival == ALL_PEERS else engines.rival_of(rival)


def layers(result: Taken, rounds: int) -> Record:
    """The record "bench": a row a layer."""
    contenders = [name for library in result.libraries for name in engines.ENGINES[library]]
    columns: list[Column] = [column(f"x {rival}", "ratio", "up") for rival in result.rivals]
    if "torch" in result.libraries:
        columns += [column(f"x torch, {layout}", "ratio", "up") for layout in LAYOUTS]
    if ALL_PEERS in result.rivals:
        columns.append(column(UNCONVERTED, "ratio", "up"))
    columns += [column("rate", "GFLOP/s", "up"), column("share of peak", "1", "up"), column("peak", "GFLOP/s", None)]
    columns += [column(f"{ours} share of roof", "1", "up") for ours in _doors(result)]
    for name in contenders:
        columns += [column(f"{name} ms", "ms", "down"), column(f"{name} error", "1", "down")]
        columns += [column(f"{name} page faults", "a call", "down")]
    if any(layer.kept for layer in result.layers):
        columns.append(column(f"x torch{PAGES_KEPT}", "ratio", "up"))
        for name in [*engines.ENGINES["hubel"], *engines.ENGINES["torch"]]:
            columns.append(column(f"{name}{PAGES_KEPT} ms", "ms", "down"))
            columns.append(column(f"{name}{PAGES_KEPT} page faults", "a call", "down"))
    columns += [column("clean rounds", "rounds", "up"), column("rounds", "rounds", None)]
    rows, uncovered, labels = [], [], {}
    for layer in result.layers:
        rows.append({"target": layer.case.target} | _cells(layer, result))
        uncovered += [Uncovered(target=layer.case.target, reason=f"{n}: {r}") for n, r in layer.declined.items()]
        labels[layer.case.target] = _label(layer, result)
    return Record(
        id="bench",
        kind="bench",
        level="layer",
        columns=columns,
        rows=rows,
        uncovered=uncovered,
        seconds=result.seconds,
        method={
            "name": "interleaved rounds, shuffled; medians of clean samples",
            "params": {
                "layers": labels,
                "rounds": rounds,
                "clean share": timing.CLEAN_SHARE,
                "sample seconds": timing.SAMPLE_SECONDS,
                "pause seconds": timing.PAUSE_SECONDS,
                "engines": {library: list(engines.ENGINES[library]) for library in result.libraries},
            },
            "source": "order statistics: David and Nagaraja (2003), 7.1",
        },
    )


def _label(layer: Layer, result: Taken) -> dict[str, Any]:
    """What the words of a layer's row are: everything that is no number."""
    return {
        "name": layer.case.name,
        "kind": layer.case.kind,
        "work": layer.case.work,
        "batch": layer.case.spec.batch,
        "algorithm": layer.planned.algorithm,
        "fastest": {library: best for library in result.libraries if (best := layer.best(library))},
        "limit": layer.limit(),
        "best peer": layer.best(ALL_PEERS) if ALL_PEERS in result.rivals else None,
        "handed back": [name for name, found in layer.checked.items() if not found.native],
        "imprecise": [name for name, found in layer.checked.items() if not found.counts and not found.reason],
    }


def _doors(result: Taken) -> list[str]:
    """Hubel's own libraries that take part."""
    return [name for name in result.libraries if name in ("hubel", engines.PREPARED)]


def _cells(layer: Layer, result: Taken) -> dict[str, Cell]:
    taken, ours = layer.taken, result.ours
    cells: dict[str, Cell] = {}
    for rival in result.rivals:
        pair = layer.pair(rival)
        cells[f"x {rival}"] = taken.ratio(*pair) if pair else None
    if ALL_PEERS in result.rivals:
        cells[UNCONVERTED] = layer.unconverted()
    for layout, suffix in LAYOUTS.items():
        slow, fast = "torch" + suffix, "hubel" + suffix
        if taken.samples.get(slow) and taken.samples.get(fast):
            cells[f"x torch, {layout}"] = taken.ratio(slow, fast)
    fastest = layer.best(ours)
    if fastest:
        cells["rate"] = rate(layer.case.flops, taken.seconds(fastest))
    shares = layer.peak_shares(ours)
    cells["share of peak"] = timing.median(shares) if shares else None
    for door in _doors(result):
        shares = layer.roof_shares(door)
        cells[f"{door} share of roof"] = timing.median(shares) if shares else None
    if taken.samples.get(PEAK):
        cells["peak"] = rate(layer.peak_flops, taken.seconds(PEAK))
    for name, found in layer.checked.items():
        cells[f"{name} error"] = found.error if math.isfinite(found.error) else None
        if taken.samples.get(name):
            cells[f"{name} ms"] = timing.scaled(taken.seconds(name), 1e3)
            cells[f"{name} page faults"] = taken.faults(name)
    if layer.kept is not None:
        cells |= _kept_cells(layer.kept)
    cells["clean rounds"], cells["rounds"] = layer.clean_rounds(result.rivals), len(taken.order)
    return cells


def _kept_cells(kept: Rounds) -> dict[str, Cell]:
    """The cells of torch and Hubel where memory is kept, each name with PAGES_KEPT behind it."""
    cells: dict[str, Cell] = {}
    names = [name for name in kept.samples if name not in (PEAK, TRAFFIC) and kept.samples[name]]
    for name in names:
        cells[f"{name}{PAGES_KEPT} ms"] = timing.scaled(kept.seconds(name), 1e3)
        cells[f"{name}{PAGES_KEPT} page faults"] = kept.faults(name)
    sides = [[name for name in names if name in engines.ENGINES[library]] for library in ("torch", "hubel")]
    if all(sides):
        cells[f"x torch{PAGES_KEPT}"] = kept.ratio(kept.best(sides[0]), kept.best(sides[1]))
    return cells


def classes(result: Taken) -> Record:
    """The record "classes": geometric means over the layers of a class and direction, and the worst layer in it."""
    columns = [column("layers", "layers", None), column("unsettled", "layers", "down")]
    for rival in result.rivals:
        columns += [column(f"x {rival}", "ratio", "up"), column(f"worst x {rival}", "ratio", "up")]
    columns += [column("share of peak", "1", "up"), column("worst share of peak", "1", "up")]
    rows, worst = [], {}
    for name, members in groups(result.layers).items():
        row: dict[str, Any] = {"target": name, "layers": len(members)}
        row["unsettled"] = sum(layer.clean_rounds(result.rivals) < timing.CLEAN_ROUNDS for layer in members)
        found = {f"x {rival}": {y.case.target: y.ratios(rival) for y in members} for rival in result.rivals}
        found["share of peak"] = {layer.case.target: layer.peak_shares(result.ours) for layer in members}
        for title, ratios in found.items():
            ratios = {target: rounds for target, rounds in ratios.items() if rounds}
            if not ratios:
                continue
            row[title] = timing.geometric_mean(ratios)
            slowest = min(ratios, key=lambda target: timing.median(ratios[target]).value or 0.0)
            row[f"worst {title}"] = timing.median(ratios[slowest], against=1.0)
            worst.setdefault(name, {})[title] = slowest
        rows.append(row)
    method = {"name": "geometric mean over layers of the median ratio", "params": {"worst": worst}, "source": ""}
    return Record(id="classes", kind="bench", columns=columns, rows=rows, method=method)  # type: ignore[arg-type]


def groups(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers by direction and class, and all of a direction where it has several classes."""
    found: dict[str, list[Layer]] = {}
    for work in dict.fromkeys(layer.case.work for layer in layers):
        here = [layer for layer in layers if layer.case.work == work]
        kinds = dict.fromkeys(layer.case.kind for layer in here)
        for kind in kinds:
            found[f"{work} {kind}"] = [layer for layer in here if layer.case.kind == kind]
        if len(kinds) > 1:
            found[f"{work} all"] = here
    return found


def rate(flops: float, seconds: Value) -> Value:
    """GFLOP/s from a time; its interval is the time's, turned round."""
    value, lo, hi = (None if t is None else flops * 1e-9 / t for t in (seconds.value, seconds.hi, seconds.lo))
    return dataclasses.replace(seconds, value=value, lo=lo, hi=hi)


def column(name: str, unit: str, better: Any) -> Column:
    return Column(name=name, unit=unit, better=better)
