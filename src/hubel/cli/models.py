"""MODEL and its options, as every command that takes a network reads them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from hubel import lab, zoo
from hubel.cli.terminal import console
from hubel.convert.models import RUN_WEIGHTS, Loaded, resolve
from hubel.errors import DataError, ModelError, unknown
from hubel.ops.override import enabled
from hubel.records import DOCUMENT_FILE

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A zoo name, package.module:factory, .pt2, .onnx, .hubel, .safetensors, .pth, or a run."
    ),
]
Arch = Annotated[str | None, typer.Option(help="The zoo's network that a state dict belongs to.")]
Weights = Annotated[Path | None, typer.Option(help="A state dict for the zoo's network or the factory's.")]
InputSize = Annotated[str | None, typer.Option(help="Of one image: 224, 224x224 or 3x224x224.")]
Data = Annotated[str | None, typer.Option(help="digits, mnist, a folder of images, or an .npz.")]
Preprocess = Annotated[str, typer.Option(help="unit, imagenet, FILE.json or package.module:fn")]
Classes = Annotated[Path | None, typer.Option(help="A text file, a class name a line.")]
Scores = Annotated[
    str | None, typer.Option("--output", help="Which of several answers are the scores: a key or a number.")
]
Engine = Annotated[str, typer.Option(help="hubel or torch: whose convolutions run.")]

ENGINES: dict[str, Callable[[], AbstractContextManager[object]]] = {"hubel": enabled, "torch": nullcontext}

# Where neither the network nor the user says it: what networks for photographs are made for.
ASSUMED_SIZE = (224, 224)


def load(model: str, arch: str | None, weights: Path | None, seed: int = 0, *, frozen: bool = False) -> Loaded:
    """The network that the user named; says on stderr what it is. frozen: whether one without layers will do."""
    networks = {name: partial(zoo.build, name) for name in zoo.ZOO}
    loaded = resolve(model, networks=networks, arch=arch, weights=weights, seed=seed)
    if loaded.frozen and not frozen:
        raise ModelError(
            f"This needs a network with its layers. Received: {loaded.name}, whose layers are fused and frozen; it can "
            "be run and planned. Pass the network that it was made of."
        )
    console(stderr=True).print(f"model: {loaded}", soft_wrap=True)
    return loaded


def image_shape(loaded: Loaded, text: str | None) -> tuple[int, ...]:
    """(C, H, W) of an image, (C, samples) of a sound: as given, else as the file or the zoo says, else assumed."""
    if text is not None:
        sizes = _sizes(text)
        if len(sizes) == 3:
            return sizes[0], sizes[1], sizes[2]
        return _channels(loaded), sizes[0], sizes[-1]
    if loaded.input_shape is not None:
        return loaded.input_shape
    if loaded.arch is not None:
        return _channels(loaded), *zoo.describe(loaded.arch).size
    shape = (_channels(loaded), *ASSUMED_SIZE)
    console(stderr=True).print(
        f"input: {'x'.join(map(str, shape))}, assumed; --input-size says another", soft_wrap=True
    )
    return shape


def picture_size(loaded: Loaded, text: str | None) -> tuple[int, int]:
    """(H, W) of the images for the network; ModelError if it takes none."""
    shape = image_shape(loaded, text)
    if len(shape) != 3:
        raise ModelError(
            f"--data shows images to the network. Received: {loaded.name}, which takes sounds of "
            f"{'×'.join(map(str, shape))}. Leave --data out: its kernels need none."
        )
    return shape[1], shape[2]


def any_batch(loaded: Loaded) -> None:
    """ModelError if the network takes one batch size only, as programs exported with a fixed one do."""
    if loaded.batch is not None:
        raise ModelError(
            f"A network that is shown images must take any number. Received: {loaded.name}, exported for batches "
            f"of {loaded.batch}. Export it with a batch size left open: torch.export.export(net, (x,), "
            "dynamic_shapes=({0: torch.export.Dim.AUTO},)), with at least 2 images in x."
        )


def running(engine: str) -> AbstractContextManager[object]:
    """Within the block the convolutions are those of this engine."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    return ENGINES[engine]()


def is_run(model: str) -> bool:
    """Whether MODEL is a folder that `hubel train` wrote; a demo's folder counts, its run is inside."""
    return _run_folder(model) is not None


def load_run(model: str) -> lab.TrainingRun:
    """The run in the folder `model`; says on stderr what it is."""
    folder = _run_folder(model)
    assert folder is not None
    run = lab.load_run(folder)
    assert run.document.data is not None
    trained = f"trained on {run.document.data['name']}, accuracy {run.accuracy.value:.1%}"
    console(stderr=True).print(f"model: {run.document.model['name']} of {folder}, {trained}", soft_wrap=True)
    return run


def _run_folder(model: str) -> Path | None:
    candidates = (Path(model), Path(model) / "run")
    return next(
        (path for path in candidates if (path / RUN_WEIGHTS).is_file() and (path / DOCUMENT_FILE).is_file()), None
    )


def class_names(path: Path | None) -> list[str] | None:
    """The names in a text file, a line each; blank lines at the end are no classes."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"--classes is a text file, a class name a line. Received: {path} ({reason}).") from None
    if not all(names):
        raise DataError(f"--classes is a text file, a class name a line. Received: {path}, with a blank line between.")
    return names


def _channels(loaded: Loaded) -> int:
    """The input channels of the first convolution, or of what the file says."""
    for module in loaded.network.modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd):
            return module.in_channels
    for name, parameter in loaded.network.named_parameters():
        if parameter.ndim >= 3 and name.endswith("weight"):  # an exported graph has no modules, only their weights
            return parameter.shape[1]
    if loaded.input_shape is not None:
        return loaded.input_shape[0]
    raise ModelError(
        f"The size of an image must be known, and {loaded.name} has no convolution to tell its channels. "
        "Received: no --input-size. Add it, as 3x224x224."
    )


def _sizes(text: str) -> tuple[int, ...]:
    words = text.lower().replace("×", "x").split("x")
    if len(words) > 3 or not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ModelError(
            f"--input-size is one to three positive numbers with x between. Received: {text!r}. Write 224, 224x224 or "
            "3x224x224."
        )
    return tuple(int(word) for word in words)
