"""hubel export: a network as a file that others run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubel.cli.models import Arch, InputSize, Model, Weights, image_shape, load
from hubel.cli.terminal import console
from hubel.cli.work import Seed


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: .onnx, .pt2 or .hubel.")],
    arch: Arch = None,
    weights: Weights = None,
    input_size: InputSize = None,
    seed: Seed = 0,
) -> None:
    """Write a network to a file, once what was written gives the same in onnxruntime, torch or a Session."""
    from hubel import convert
    from hubel.convert.writers import WRITERS
    from hubel.errors import unknown

    if out.suffix not in WRITERS:
        # before a large network is built
        raise unknown("ending of an exported file", out.suffix, WRITERS)
    loaded = load(model, arch, weights, seed)
    written = convert.export(loaded.network, image_shape(loaded, input_size), out, batch=loaded.batch, seed=seed)
    console().print(str(written), soft_wrap=True)
