"""`hubel bench`: how fast the convolutions are against other engines, and how near to what the machine can do.

A layer at a time: draw its data, compute the right answer in float64, let every engine show that it gets it, and only
then time them against each other in interleaved rounds (`timing`). Two more take part: a kernel that does nothing but
fused multiply-adds, and one that only reads as many bytes as the layer has. They are the roof over the machine as it
was in those rounds, not as it was on some better day.

    run(["resnet"], against=["all"]) -> Document     records: "bench" (a row a problem), "classes", "targets"
    render_text(document) -> str                     its tables, as plain text
    save(document, folder)                           a JSON file and the rendered text; nothing is replaced

Each engine may lay its tensors out as it likes best: `x torch` is the fastest layout of torch over the fastest of
Hubel, the median of the rounds; `x peers` is the fastest engine for inference over Hubel's prepared call.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from hubel.errors import DataError, UnsupportedError
from hubel.lab import bench_record, conditions, engines, kept, shapes, timing
from hubel.lab import bounds as bounds_
from hubel.lab.bench_record import PEAK, TRAFFIC, Layer, Taken
from hubel.lab.bench_text import render_text
from hubel.lab.engines import Checked, Tensors
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender
from hubel.records import Document, write_atomically

__all__ = ["PEAK", "measure_case", "render_text", "run", "save"]

Progress = Callable[[int, int, str], None]


def run(
    targets: Sequence[str] = (),
    *,
    against: Sequence[str] = ("torch",),
    backward: bool = False,
    threads: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    rounds: int = timing.CLEAN_ROUNDS,
    bounds: bounds_.Bounds | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """Compare Hubel with the engines `against` on the convolutions that are named (none: a quick list).

    targets: problems' texts, networks of the zoo, shape lists or their files (`shapes.resolve`).
    against: "torch", peers (`engines.PEERS`), or "all".
    backward: gradients instead of the forward pass: weights', input's, both. threads: of every engine; torch's number
    by default. batch: replaces the batch sizes. dtype: what is stored; beside another than float32 Hubel itself takes
    part on float32. rounds: how many clean ones a layer needs. bounds: adds a table of each class beside its bounds.
    progress: called with (cases done, cases in all, what comes next).

    Ctrl-C ends the run after the layers it has; the document says `interrupted`.
    Raises SpecError, DataError or UnknownNameError for targets that name nothing, and for unknown engines.
    """
    if rounds < 1:
        raise DataError(f"rounds must be at least 1. Received: {rounds}. {timing.CLEAN_ROUNDS} are the default.")
    cases = shapes.resolve(targets, batch=batch, backward=backward, dtype=dtype)
    libraries = engines.libraries(against, {case.problem.dtype for case in cases})
    threads_before = torch.get_num_threads()
    threads = threads or threads_before
    watch = conditions.Watch()
    result = Taken(libraries)
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
    document = watch.document(
        "bench", conditions.named(targets), [bench_record.layers(result, rounds), bench_record.classes(result)],
        threads=threads, seed=seed, engine=", ".join(libraries), status=result.status,
        params=conditions.parameters(layer.case for layer in result.layers),
    )  # fmt: skip
    packages = [engines.PEERS[name] for name in libraries if name in engines.PEERS]
    document.versions |= {name: version for name in packages if (version := _version(name))}
    if bounds is not None:
        document.records.append(bounds_.record(document.record("bench"), bounds))
    return document


def measure_case(
    case: Case, libraries: Sequence[str], *, threads: int, rounds: int, seed: int = 0, keep: bool = True
) -> Layer:
    """Check every engine on a case, then time the ones that are right. keep: large outputs with memory kept, too."""
    tensors = Tensors.of(case, seed)
    with torch.no_grad():
        candidates, declined = engines.contenders(case, libraries, tensors)
        reference = engines.float64(case, tensors)
        checked: dict[str, Checked] = {}
        timed: list[Contender] = []
        for contender in candidates:
            library = next(name for name in libraries if contender.name in engines.ENGINES[name])
            bound = engines.error_bound(case, conditions.accuracy(), library)
            wrong = engines.WRONG if library in engines.PEERS else None
            checked[contender.name] = found = engines.check(contender, case, reference, bound, wrong)
            if found.reason:
                declined[contender.name] = found.reason
            else:
                timed.append(contender)
        del reference
        peak = conditions.peak(threads)
        traffic = conditions.traffic(threads, case.bytes)
        timed += [Contender(PEAK, peak.call)] if peak else []
        timed += [Contender(TRAFFIC, traffic.call)] if traffic else []
        taken = timing.measure(timed, rounds=rounds, seed=seed)
        shares = {contender.name: contender.layer_share() for contender in timed if contender.layer_share}
    through_torch = [name for name in ("hubel", "torch") if name in libraries]
    again = keep and len(through_torch) == 2 and kept.matters(case)
    return Layer(
        case, checked, taken, declined, conditions.planned(case, threads),
        peak.flops if peak else 0.0, traffic.flops if traffic else 0.0,
        kept.measure(case, through_torch, threads=threads, rounds=rounds, seed=seed) if again else None, shares,
    )  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


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


def _numbered(stem: str) -> Iterable[str]:
    yield stem
    for number in range(2, 10_000):
        yield f"{stem}-{number}"
    raise UnsupportedError(f"{stem} has 9999 results already. Choose another folder.")
