"""hubel report: what a network has learned, on one page, in the terminal, or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hubel.cli.document_text import render_text
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
    is_run,
    load,
    load_run,
    picture_size,
    running,
)
from hubel.cli.terminal import Stages, console
from hubel.cli.work import Seed, Threads, set_threads
from hubel.convert.models import Loaded
from hubel.convert.preprocess import preprocessing
from hubel.convert.weights import as_named_by, read_state_dict
from hubel.records import Document


def report(
    model: Model,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    only: Annotated[str | None, typer.Option(help="Analyses, comma between: kernels,feature_maps.")] = None,
    profile: Annotated[str, typer.Option(help="How much is looked at: quick or full.")] = "quick",
    time_budget: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no further analysis is begun.")
    ] = None,
    arch: Arch = None,
    weights: Weights = None,
    before: Annotated[
        Path | None, typer.Option(help="An earlier checkpoint of the same run: kernels then and now, side by side.")
    ] = None,
    input_size: InputSize = None,
    preprocess: Preprocess = "unit",
    classes: Classes = None,
    output: Scores = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many are drawn; by default the profile's number."),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Keep every image, and maps of it, out.")] = False,
    blur: Annotated[bool, typer.Option("--blur", help="Images go in blurred, and none whole.")] = False,
    engine: Engine = "hubel",
    seed: Seed = 0,
    text: Annotated[bool, typer.Option("--text", help="Print the numbers instead of writing a page.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the Document instead of writing a page.")] = False,
    threads: Threads = None,
) -> int:
    """Look inside a network and write what is there as one HTML file. Ctrl-C writes what was found until then."""
    from hubel.cli.failures import INTERRUPTED, OK
    from hubel.report import build, render

    set_threads(threads)
    settings: dict[str, Any] = {
        "only": [word.strip() for word in only.split(",")] if only else None,
        "profile": profile,
        "time_budget": time_budget,
        "classes": class_names(classes),
        "preprocess": preprocessing(preprocess),
        "output": output,
        "images": images,
        "pictures": not no_images,
        "blur": blur,
        "seed": seed,
    }
    with running(engine), Stages() as stages:
        settings["progress"] = stages
        if arch is None and weights is None and is_run(model):
            # A run refuses these two, whatever they say.
            settings |= {"input_size": input_size, "before": before}
            document = build(load_run(model), data, **settings)
        else:
            document = _of_network(load(model, arch, weights, seed), data, input_size, before, settings)
    if text or json:
        console().print(document.to_json() if json else render_text(document), soft_wrap=True, end="")
    else:
        for line in _sampled(document):
            console(stderr=True).print(line, soft_wrap=True)
        console().print(str(render(document, out)), soft_wrap=True)
    return INTERRUPTED if document.status == "interrupted" else OK


def _of_network(
    loaded: Loaded, data: str | None, input_size: str | None, before: Path | None, settings: dict[str, Any]
) -> Document:
    from hubel.report import build

    if data is not None:
        any_batch(loaded)
    document = build(
        loaded.network,
        data,
        name=loaded.name,
        weights=loaded.weights,
        input_size=None if data is None else picture_size(loaded, input_size),
        before=None if before is None else as_named_by(loaded.network, read_state_dict(before)),
        **settings,
    )
    document.model["sha256"] = loaded.sha256
    return document


def _sampled(document: Document) -> list[str]:
    """What was not looked at in full, a line each."""
    record = next((record for record in document.records if record.id == "sampled"), None)
    return [] if record is None else list(record.method["params"]["sentences"])
