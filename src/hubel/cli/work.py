"""hubel demo · train · bench: the main job, training, timing."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hubel.cli.failures import INTERRUPTED, OK
from hubel.cli.terminal import Stages, console
from hubel.errors import DataError

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of every engine; torch's own number by default.")]
Seed = Annotated[int, typer.Option(help="Seed of the split, the weights and the order of the images.")]


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a new number if it exists.")] = Path(
        "hubel-demo"
    ),
    seed: Seed = 0,
    threads: Threads = None,
) -> int:
    """The main job, about a minute: train on handwritten digits, compare with PyTorch, look inside, write a report."""
    from hubel.demo import run

    set_threads(threads)
    with Stages() as stages:
        done = run(out, seed=seed, progress=stages)
    console().print(str(done), soft_wrap=True)
    if shutil.which("hubel") is None:
        console().print(f"(first: source {Path(sys.prefix) / 'bin' / 'activate'})", soft_wrap=True)
    return INTERRUPTED if done.document.status == "interrupted" else OK


def train(
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="A network of `hubel zoo`.")],
    data: Annotated[str, typer.Option(help="digits, mnist, a folder of images, or an .npz.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the run; runs/ARCH-DATA by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam or sgd")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the optimizer's usual one by default.")] = None,
    seed: Seed = 0,
    engine: Annotated[str | None, typer.Option(help="hubel or torch: whose convolutions run.")] = None,
    threads: Threads = None,
) -> int:
    """Train a network and keep the run: weights, curves, accuracy with its interval. Ctrl-C keeps what is done."""
    from hubel import lab

    set_threads(threads)
    dials = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "engine": engine}
    chosen: dict[str, Any] = {name: value for name, value in dials.items() if value is not None}
    folder = out or new_folder(Path("runs") / f"{arch}-{Path(data).stem}")
    with Stages() as stages:
        run = lab.train(arch, data, seed=seed, out=folder, progress=stages, **chosen)
    console().print(str(run), soft_wrap=True)
    console().print(f"look inside: hubel report {folder} --data {data}", soft_wrap=True)
    return INTERRUPTED if run.document.status == "interrupted" else OK


def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPEC|ARCH|FILE]...", help="Problems, networks or shape lists; none: a quick list."),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Engines to compare with, comma between: torch,openvino; all.")
    ] = "torch",
    backward: Annotated[bool, typer.Option("--backward", help="The gradients instead of the forward pass.")] = False,
    threads: Threads = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Replaces every batch size.")] = None,
    dtype: Annotated[str | None, typer.Option(help="What is stored: bfloat16 or float16 instead of float32.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Undisturbed rounds a layer needs.")] = None,
    step: Annotated[bool, typer.Option("--step", help="Whole training steps of a network, batch 64.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="What first calls of new layers cost, by part.")] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Distance from float64, every direction and level.")] = False,
    overhead: Annotated[bool, typer.Option("--overhead", help="What enable() adds to a tiny call.")] = False,
    targets_met: Annotated[bool, typer.Option("--targets", help="Classes beside benchmarks/targets.toml.")] = False,
    isa: Annotated[str | None, typer.Option(help="Hold every engine to an older instruction set: avx2.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the run in this folder, too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the Document.")] = False,
) -> int:
    """Time Hubel's convolutions against other engines, interleaved in one process, after checking every answer."""
    from hubel.lab import bench as layers
    from hubel.lab import bounds, held
    from hubel.lab import cold as first_calls
    from hubel.lab import errors as distances
    from hubel.lab import overhead as calls
    from hubel.lab import step_time as steps
    from hubel.lab.bench_text import render_text

    if isa is not None:
        if not held.is_prepared(isa):
            return held.run_again(isa)
        held.hold(isa)
    words = targets or []
    common: dict[str, Any] = {"threads": threads, "seed": seed}
    timed: dict[str, Any] = common | ({} if rounds is None else {"rounds": rounds})
    with Stages() as stages:
        if step:
            document = steps.run(_one(words, "--step", "lenet5"), batch=batch or 64, **timed)
        elif overhead:
            document = calls.run(_one(words, "--overhead", calls.TINY), **timed)
        elif cold:
            document = first_calls.run(words, backward=backward, batch=batch, progress=stages, **common)
        elif errors:
            document = distances.run(words, batch=batch, progress=stages, **common)
        else:
            limits = bounds.load(bounds.shipped()) if targets_met else None
            how: dict[str, Any] = {"backward": backward, "batch": batch, "dtype": dtype, "bounds": limits}
            document = layers.run(words, against=_names(against), progress=stages, **how, **timed)
    console().print(document.to_json() if json else render_text(document), soft_wrap=True, end="")
    if out is not None:
        console(stderr=True).print(f"kept in {layers.save(document, out)}", soft_wrap=True)
    return INTERRUPTED if document.status == "interrupted" else OK


def _names(against: str) -> list[str]:
    names = [name.strip() for name in against.split(",") if name.strip()]
    if not names:
        raise DataError(f"--against names at least one engine. Received: {against!r}. Leave it out for torch.")
    return names


def _one(words: list[str], option: str, default: str) -> str:
    if len(words) > 1:
        raise DataError(f"{option} times one thing. Received: {' '.join(words)}. Name one, or none for {default}.")
    return words[0] if words else default


def new_folder(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist: nothing is overwritten."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(folder for folder in numbered if not folder.exists())


def set_threads(threads: int | None) -> None:
    """torch's number of threads, which is Hubel's too."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
