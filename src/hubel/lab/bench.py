"""`hubel bench`: how fast the convolutions are against other engines, and how near to what the machine can do.

A layer at a time: draw its data, compute the right answer in float64, let every engine show that it gets it, and only
then time them against each other in interleaved rounds (`timing`), together with a kernel that does nothing but fused
multiply-adds: the peak of the machine as it was in those rounds, not as it was on some better day.

    run(["resnet"], backward=True) -> Document     records: "bench" (a row a problem), "classes" (a row a class)
    render_text(document) -> str                   its tables, as plain text
    save(document, folder)                         a JSON file and the rendered text, named by date; nothing is replaced

Each engine may lay its tensors out as it likes best: `x torch` is the fastest layout of torch over the fastest of
Hubel, the median of the rounds; the figures of every layout stand beside it.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hubel.errors import DataError, UnsupportedError, unknown
from hubel.lab import conditions, engines, shapes, timing
from hubel.lab.bench_text import render_text
from hubel.lab.engines import Checked, Tensors
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender, Rounds
from hubel.records import Cell, Column, Document, Record, Uncovered, Value, write_atomically

__all__ = ["measure_case", "render_text", "run", "save"]

PEAK = "fma peak"

Progress = Callable[[int, int, str], None]


@dataclass
class Layer:
    """What was found out about one case."""

    case: Case
    checked: dict[str, Checked]
    taken: Rounds
    declined: dict[str, str]
    peak_flops: float = 0.0
    algorithm: str = ""

    def best(self, library: str) -> str | None:
        """The fastest contender of a library; None if it has none that was right."""
        names = [name for name in engines.ENGINES[library] if name in self.taken.samples]
        return self.taken.best(names) if names and all(self.taken.samples[name] for name in names) else None

    def ratios(self, library: str, against: str) -> list[float]:
        """How many times faster `library` is than `against`, round by round, each in its fastest layout."""
        fast, slow = self.best(library), self.best(against)
        return self.taken.ratios(slow, fast) if fast and slow else []

    def peak_shares(self, library: str) -> list[float]:
        """The library's rate over the rate of the peak kernel in the same round."""
        fast = self.best(library)
        if fast is None or not self.taken.samples.get(PEAK):
            return []
        scale = self.case.flops / self.peak_flops
        return [ratio * scale for ratio in self.taken.ratios(PEAK, fast)]


@dataclass
class _Run:
    libraries: list[str]
    layers: list[Layer] = field(default_factory=list)
    status: str = "complete"
    seconds: float = 0.0


def run(
    targets: Sequence[str] = (),
    *,
    against: Sequence[str] = ("torch",),
    backward: bool = False,
    threads: int | None = None,
    batch: int | None = None,
    rounds: int = timing.CLEAN_ROUNDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """Compare Hubel with the engines `against` on the convolutions that `targets` name (none: a quick list).

    targets: problems' texts, networks of the zoo, shape lists or their files (`shapes.resolve`).
    backward: gradients instead of the forward pass: weights', input's, both. threads: of every engine; torch's number
    by default. batch: replaces the batch sizes. rounds: how many clean ones a layer needs.
    progress: called with (cases done, cases in all, what comes next).

    Ctrl-C ends the run after the layers it has; the document says `interrupted`.
    Raises SpecError, DataError or UnknownNameError for targets that name nothing, and for unknown engines.
    """
    libraries = ["hubel", *dict.fromkeys(name for name in against if name != "hubel")]
    for name in libraries:
        if name not in engines.ENGINES:
            raise unknown("engine", name, engines.ENGINES)
    if rounds < 1:
        raise DataError(f"rounds must be at least 1. Received: {rounds}. {timing.CLEAN_ROUNDS} are the default.")
    cases = shapes.resolve(targets, batch=batch, backward=backward)
    threads_before = torch.get_num_threads()
    threads = threads or threads_before
    watch = conditions.Watch()
    result = _Run(libraries)
    start = time.perf_counter()
    torch.set_num_threads(threads)
    try:
        for done, case in enumerate(cases):
            if progress:
                progress(done, len(cases), f"{case.name} ({case.work})")
            result.layers.append(measure_case(case, libraries, threads=threads, rounds=rounds, seed=seed))
        if progress:
            progress(len(cases), len(cases), "done")
    except KeyboardInterrupt:
        result.status = "interrupted"
    finally:
        torch.set_num_threads(threads_before)
    result.seconds = time.perf_counter() - start
    names = list(targets) or ["quick"]
    return _document(result, names, threads=threads, rounds=rounds, seed=seed, machine=watch.machine(threads))


def measure_case(case: Case, libraries: Sequence[str], *, threads: int, rounds: int, seed: int = 0) -> Layer:
    """Check every engine on a case, then time the ones that are right."""
    tensors = Tensors.of(case, seed)
    with torch.no_grad():
        candidates, declined = engines.contenders(case, libraries, tensors)
        reference = engines.float64(case, tensors)
        checked: dict[str, Checked] = {}
        timed: list[Contender] = []
        for contender in candidates:
            library = next(name for name in libraries if contender.name in engines.ENGINES[name])
            bound = engines.error_bound(case, conditions.accuracy(), library)
            checked[contender.name] = found = engines.check(contender, case, reference, bound)
            if found.reason:
                declined[contender.name] = found.reason
            else:
                timed.append(contender)
        del reference
        peak = conditions.peak(threads)
        if peak:
            timed.append(Contender(PEAK, peak.call))
        taken = timing.measure(timed, rounds=rounds, seed=seed)
    algorithm = conditions.algorithm(case, threads)
    return Layer(case, checked, taken, declined, peak.flops if peak else 0.0, algorithm)


def _document(
    result: _Run, names: list[str], *, threads: int, rounds: int, seed: int, machine: dict[str, Any]
) -> Document:
    layers = result.layers
    bench = _bench_record(result, rounds)
    classes = _class_record(result)
    parameters = {layer.case.spec: layer.case.spec.parameters for layer in layers}
    return Document(
        model={
            "name": f"bench: {', '.join(Path(name).stem if name.endswith('.txt') else name for name in names)}",
            "sha256": None,
            "weights": "random",
            "params": sum(parameters.values()),
            "input": {"shape": [], "dtype": "float32"},
            "preprocess": None,
            "classes": None,
            "output": None,
        },
        data=None,
        machine=machine,
        settings={
            "profile": "bench",
            "seed": seed,
            "accuracy": conditions.accuracy(),
            "threads": threads,
            "engine": ", ".join(result.libraries),
        },
        records=[bench, classes],
        status="interrupted" if result.status == "interrupted" else "complete",
    )


def _bench_record(result: _Run, rounds: int) -> Record:
    rivals = result.libraries[1:]
    contenders = [name for library in result.libraries for name in engines.ENGINES[library]]
    columns: list[Column] = [_column(f"x {library}", "ratio", "up") for library in rivals]
    columns += [_column(f"x {library}, {layout}", "ratio", "up") for library in rivals for layout in LAYOUTS]
    columns += [_column("rate", "GFLOP/s", "up"), _column("share of peak", "1", "up"), _column("peak", "GFLOP/s", None)]
    for name in contenders:
        columns += [_column(f"{name} ms", "ms", "down"), _column(f"{name} error", "1", "down")]
        columns += [_column(f"{name} page faults", "a call", "down")]
    columns += [_column("clean rounds", "rounds", "up"), _column("rounds", "rounds", None)]
    rows, uncovered, labels = [], [], {}
    for layer in result.layers:
        rows.append({"target": layer.case.target} | _cells(layer, result.libraries))
        uncovered += [Uncovered(target=layer.case.target, reason=f"{n}: {r}") for n, r in layer.declined.items()]
        labels[layer.case.target] = {
            "name": layer.case.name,
            "kind": shapes.kind(layer.case.spec),
            "work": layer.case.work,
            "algorithm": layer.algorithm,
            "fastest": {library: layer.best(library) for library in result.libraries},
            "handed back": [name for name, found in layer.checked.items() if not found.native],
        }
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
                "engines": {library: list(engines.ENGINES[library]) for library in result.libraries},
            },
            "source": "order statistics: David and Nagaraja (2003), 7.1",
        },
    )


LAYOUTS = {"same NCHW": "", "same channels-last": " channels-last"}


def _cells(layer: Layer, libraries: Sequence[str]) -> dict[str, Cell]:
    taken, ours = layer.taken, libraries[0]
    cells: dict[str, Cell] = {}
    for library in libraries[1:]:
        best, theirs = layer.best(ours), layer.best(library)
        cells[f"x {library}"] = taken.ratio(theirs, best) if best and theirs else None
        for layout, suffix in LAYOUTS.items():
            slow, fast = library + suffix, ours + suffix
            if taken.samples.get(slow) and taken.samples.get(fast):
                cells[f"x {library}, {layout}"] = taken.ratio(slow, fast)
    fastest = layer.best(ours)
    if fastest:
        cells["rate"] = rate(layer.case.flops, taken.seconds(fastest))
    shares = layer.peak_shares(ours)
    cells["share of peak"] = timing.median(shares) if shares else None
    if taken.samples.get(PEAK):
        cells["peak"] = rate(layer.peak_flops, taken.seconds(PEAK))
    for name, found in layer.checked.items():
        cells[f"{name} error"] = found.error if math.isfinite(found.error) else None
        if taken.samples.get(name):
            cells[f"{name} ms"] = timing.scaled(taken.seconds(name), 1e3)
            cells[f"{name} page faults"] = taken.faults(name)
    cells["clean rounds"], cells["rounds"] = len(taken.clean_rounds()), len(taken.order)
    return cells


def _class_record(result: _Run) -> Record:
    """Geometric means over the layers of a class and direction, and the worst layer in it."""
    ours, rivals = result.libraries[0], result.libraries[1:]
    groups = _groups(result.layers)
    columns = [_column("layers", "layers", None), _column("unsettled", "layers", "down")]
    for library in rivals:
        columns += [_column(f"x {library}", "ratio", "up"), _column(f"worst x {library}", "ratio", "up")]
    columns += [_column("share of peak", "1", "up"), _column("worst share of peak", "1", "up")]
    rows, worst = [], {}
    for name, layers in groups.items():
        row: dict[str, Any] = {"target": name, "layers": len(layers)}
        row["unsettled"] = sum(len(layer.taken.clean_rounds()) < timing.CLEAN_ROUNDS for layer in layers)
        found = {f"x {library}": {y.case.target: y.ratios(ours, library) for y in layers} for library in rivals}
        found["share of peak"] = {layer.case.target: layer.peak_shares(ours) for layer in layers}
        for column, ratios in found.items():
            ratios = {target: rounds for target, rounds in ratios.items() if rounds}
            if not ratios:
                continue
            row[column] = timing.geometric_mean(ratios)
            slowest = min(ratios, key=lambda target: timing.median(ratios[target]).value or 0.0)
            row[f"worst {column}"] = timing.median(ratios[slowest], against=1.0)
            worst.setdefault(name, {})[column] = slowest
        rows.append(row)
    method = {"name": "geometric mean over layers of the median ratio", "params": {"worst": worst}, "source": ""}
    return Record(id="classes", kind="bench", columns=columns, rows=rows, method=method)  # type: ignore[arg-type]


def _groups(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers by direction and class, and all of a direction where it has several classes."""
    groups: dict[str, list[Layer]] = {}
    for work in dict.fromkeys(layer.case.work for layer in layers):
        here = [layer for layer in layers if layer.case.work == work]
        kinds = dict.fromkeys(shapes.kind(layer.case.spec) for layer in here)
        for kind in kinds:
            groups[f"{work} {kind}"] = [layer for layer in here if shapes.kind(layer.case.spec) == kind]
        if len(kinds) > 1:
            groups[f"{work} all"] = here
    return groups


def save(document: Document, folder: str | Path) -> Path:
    """Write the run to `folder` as JSON and as text, under a name that no run before had; returns the JSON's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = [document.created, document.model["name"].removeprefix("bench: "), f"{document.settings['threads']}t"]
    stem = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)
    taken = {path.stem for path in folder.iterdir()}
    name = next(name for name in _numbered(stem[:100]) if name not in taken)
    write_atomically(folder / f"{name}.txt", render_text(document).encode())
    write_atomically(folder / f"{name}.json", document.to_json().encode())
    return folder / f"{name}.json"


def rate(flops: float, seconds: Value) -> Value:
    """GFLOP/s from a time; its interval is the time's, turned round."""
    value, lo, hi = (None if t is None else flops * 1e-9 / t for t in (seconds.value, seconds.hi, seconds.lo))
    return dataclasses.replace(seconds, value=value, lo=lo, hi=hi)


def _column(name: str, unit: str, better: Any) -> Column:
    return Column(name=name, unit=unit, better=better)


def _numbered(stem: str) -> Iterable[str]:
    yield stem
    for number in range(2, 10_000):
        yield f"{stem}-{number}"
    raise UnsupportedError(f"{stem} has 9999 results already. Choose another folder.")
