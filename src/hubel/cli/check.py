"""hubel check: what is wrong with a network, as a linter says it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hubel.cli.failures import FOUND, INTERRUPTED, OK
from hubel.cli.models import (
    Arch,
    Classes,
    Data,
    Engine,
    InputSize,
    Model,
    Preprocess,
    Scores,
    Weights,
    any_batch,
    class_names,
    load,
    picture_size,
    running,
)
from hubel.cli.terminal import Stages, console
from hubel.cli.work import Seed, Threads, set_threads
from hubel.convert.preprocess import preprocessing
from hubel.records import Finding


def check(
    model: Model,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    select: Annotated[str | None, typer.Option(help="Only these codes (or their beginnings), comma between.")] = None,
    ignore: Annotated[str | None, typer.Option(help="Not these codes (or their beginnings).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Undecided findings count, too.")] = False,
    arch: Arch = None,
    weights: Weights = None,
    input_size: InputSize = None,
    preprocess: Preprocess = "unit",
    classes: Classes = None,
    output: Scores = None,
    images: Annotated[int, typer.Option(min=1, help="At most so many are drawn from the data.")] = 500,
    engine: Engine = "hubel",
    seed: Seed = 0,
    threads: Threads = None,
) -> int:
    """Look for what is wrong with a network. Exits: 0 clean, 1 decided findings, 2 it could not be checked."""
    from hubel.check.run import chosen, run

    set_threads(threads)
    select_, ignore_ = _words(select), _words(ignore) or []
    chosen(select_, ignore_)  # a wrong code is told before anything is loaded
    loaded = load(model, arch, weights, seed)
    if data is not None:
        any_batch(loaded)
    with running(engine), Stages() as stages:
        found = run(
            loaded.network,
            data,
            preprocess=preprocessing(preprocess),
            classes=class_names(classes),
            input_size=None if data is None else picture_size(loaded, input_size),
            output=output,
            select=select_,
            ignore=ignore_,
            images=images,
            random_weights=loaded.weights == "random",
            seed=seed,
            progress=stages,
        )
    if as_json:
        body = {"findings": [asdict(f) for f in found.findings], "unchecked": found.unchecked, "status": found.status}
        console().print(json.dumps(body, indent=1, ensure_ascii=False), soft_wrap=True, markup=False, highlight=False)
    else:
        for line in _lines(found.findings, found.unchecked, found.undecided):
            console().print(line, soft_wrap=True, markup=False, highlight=False)
    if found.status == "interrupted":
        return INTERRUPTED
    return FOUND if found.failed(strict) else OK


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",")] if text else None


def _lines(findings: list[Finding], unchecked: dict[str, str], undecided: int) -> list[str]:
    lines = []
    for f in findings:
        lines.append(f"{f.code} {f.severity}{'' if f.decided else ' (undecided)'}: {f.message}")
        if f.remedy is not None:
            lines.append(f"      {f.remedy['text']}")
    lines += [f"not checked: {name}: {reason}" for name, reason in unchecked.items()]
    counts = [f"{sum(f.severity == s for f in findings)} {s}s" for s in ("error", "warning", "note")]
    return [*lines, ", ".join(counts) + f"; {undecided} undecided"]
