"""MODEL, as the command line and `hubel.report` take it, becomes a network in eval mode.

    lenet5                              a name of the zoo (with weights: --weights FILE)
    package.module:factory              a callable without arguments that returns a network, or the network itself
    net.pt2                             what torch.export.save wrote
    net.onnx                            an ONNX file
    net.hubel                           what a Session saved: runs, and has no layers to look at
    weights.safetensors | .pth          a state dict, with the name of its network (--arch)
    run/                                a folder that `hubel train` wrote

This package stands below the zoo, so the zoo's table is handed in: name -> builder.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hubel.convert.exported import read_exported
from hubel.convert.frozen import Frozen, read_frozen
from hubel.convert.nearest import nearest
from hubel.convert.onnx_file import read_onnx
from hubel.convert.weights import SUFFIXES, Mismatch, compare, load_into, read_state_dict, require_file, sha256
from hubel.errors import HubelError, ModelError, unknown
from hubel.records import DOCUMENT_FILE, Document

Builder = Callable[..., nn.Module]

RUN_WEIGHTS = "weights.safetensors"
# What a file is read with, by its ending.
READERS = {".pt2": read_exported, ".onnx": read_onnx, ".hubel": read_frozen}


@dataclass(frozen=True)
class Loaded:
    """A network and where it came from.

    name: the zoo's name or the text the user gave; arch: the zoo's name, or None if it is not one of the zoo's;
    weights: "random" if they are drawn anew each time the network is built; sha256: of the file they were read from;
    input_shape: of one image, (C, H, W), where the file tells it; batch: the only batch size it takes, if there is one.
    """

    network: nn.Module
    name: str
    weights: Literal["file", "random"]
    arch: str | None = None
    source: Path | None = None
    sha256: str | None = None
    input_shape: tuple[int, ...] | None = None
    batch: int | None = None

    @property
    def frozen(self) -> bool:
        """Whether its layers are fused and its weights folded, as in a `.hubel` file."""
        return isinstance(self.network, Frozen)

    def __str__(self) -> str:
        if isinstance(self.network, Frozen):
            return f"{self.name}, a Session of {len(self.network.session.graph.nodes)} fused nodes"
        own = "random weights" if self.weights == "random" else "its own weights"
        origin = f"weights from {self.source}" if self.source else own
        return f"{self.name}, {sum(p.numel() for p in self.network.parameters()):,} parameters, {origin}"


def resolve(
    model: str,
    *,
    networks: Mapping[str, Builder],
    arch: str | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Loaded:
    """The network that `model` names.

    networks: the zoo, name -> builder(num_classes=None, in_channels=None, seed=None).
    arch: the network a state dict belongs to. weights: a state dict to put into the zoo's network or the factory's.
    seed: of random weights.

    ModelError if it cannot be read or built, or if the weights are another network's; UnknownNameError for a name that
    is neither in the zoo nor a file.
    """
    path = Path(model)
    if model in networks:
        loaded = _from_zoo(model, networks, weights, seed)
    elif path.is_dir():
        loaded = _from_run(path, networks)
    elif path.suffix in READERS:
        found = READERS[path.suffix](path)
        loaded = Loaded(found.network, path.name, "file", None, path, sha256(path), found.input_shape, found.batch)
    elif path.suffix in SUFFIXES:
        loaded = _from_state_dict(path, networks, arch)
    elif ":" in model:
        loaded = _from_factory(model, weights)
    elif path.exists() or os.sep in model:
        require_file(path, "MODEL")
        raise ModelError(
            f"MODEL files end in {', '.join([*READERS, *SUFFIXES])}. Received: {path}. Rename or convert it."
        )
    else:
        raise unknown("network", model, networks)
    loaded.network.eval()
    return loaded


def _from_zoo(name: str, networks: Mapping[str, Builder], weights: str | Path | None, seed: int | None) -> Loaded:
    if weights is not None:
        return _from_state_dict(Path(weights), networks, name)
    return Loaded(networks[name](seed=seed), name, "random", arch=name)


def _from_run(folder: Path, networks: Mapping[str, Builder]) -> Loaded:
    """A folder of `hubel train`: the document names the network, the weights lie beside it."""
    if not (folder / DOCUMENT_FILE).is_file():
        raise ModelError(
            f"A folder given as MODEL must be one that `hubel train` wrote, with {DOCUMENT_FILE} and {RUN_WEIGHTS}. "
            f"Received: {folder}. Give the folder after -o of the training."
        )
    return _from_state_dict(folder / RUN_WEIGHTS, networks, Document.load(folder).model["name"])


def _from_state_dict(path: Path, networks: Mapping[str, Builder], arch: str | None) -> Loaded:
    state = read_state_dict(path)
    if arch is None:
        near = _fitting(state, networks)
        hint = f"Add --arch {near[0]}" if near else f"{_hint(state, networks)}Add --arch NAME; `hubel zoo` lists them"
        raise ModelError(
            f"A state dict holds numbers and no network, so the network must be named. Received: {path} alone. {hint}."
        )
    if arch not in networks:
        raise unknown("network", arch, networks)
    network, mismatch = _built_for(state, networks[arch])
    if mismatch:
        near = [name for name in _fitting(state, networks) if name != arch]
        if near:
            remedy = f"They fit {' and '.join(near)}: use --arch {near[0]}"
        else:
            remedy = f"{_hint(state, networks)}Name their network with --arch, or build it with package.module:factory"
        raise ModelError(
            f"The weights must be those of the network {arch}. Received: {path}, which differs ({mismatch}). {remedy}."
        )
    load_into(network, state, name=arch, source=path)
    return Loaded(network, arch, "file", arch=arch, source=path, sha256=sha256(path))


def _built_for(state: Mapping[str, Tensor], builder: Builder) -> tuple[nn.Module, Mismatch]:
    """The network with the number of classes and of input channels that the state dict was saved with."""
    network = builder()
    mismatch = compare(network, state)
    sizes: dict[str, int] = {}
    for _, file, net in mismatch.misshapen:
        # The first layer differs in its input channels only, the last in its outputs only.
        if file[1:] == net[1:]:
            sizes["num_classes"] = file[0]
        elif len(file) == len(net) and file[:1] + file[2:] == net[:1] + net[2:]:
            sizes["in_channels"] = file[1]
    if not sizes or mismatch.missing or mismatch.unexpected:
        return network, mismatch
    try:
        other = builder(**sizes)
    except ModelError:  # a network without classes
        return network, mismatch
    # A wrong guess is no help to the reader: then the mismatch with the plain network is told.
    return (other, Mismatch()) if not compare(other, state) else (network, mismatch)


def _fitting(state: Mapping[str, Tensor], networks: Mapping[str, Builder]) -> list[str]:
    """The networks of the zoo that a state dict fits. Shapes alone: nothing is allocated."""
    with torch.device("meta"):
        return [name for name, builder in networks.items() if not _built_for(state, builder)[1]]


def _hint(state: Mapping[str, Tensor], networks: Mapping[str, Builder]) -> str:
    found = nearest(state, networks)
    return f"The nearest network of the zoo is {found}. " if found else ""


def _from_factory(model: str, weights: str | Path | None) -> Loaded:
    found = imported(model, "package.module:factory")
    network = _called(found, model)
    if weights is None:
        return Loaded(network, model, "random" if _draws(found, network) else "file")
    load_into(network, read_state_dict(weights), name=model, source=weights)
    return Loaded(network, model, "file", source=Path(weights), sha256=sha256(Path(weights)))


def imported(text: str, what: str) -> object:
    """What `package.module:name.name` names; modules in the working directory count. `what` opens the message."""
    module_name, _, attribute = text.partition(":")
    # As `python -m` does: the user's own files are importable from where the command is typed.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"{what} must name a module that can be imported from here. Received: {text!r} ({error}). "
            "Run the command in the folder that holds the package."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            table = [name for name in dir(found) if not name.startswith("_")]
            raise unknown(f"name in {module_name}", part, table)
        found = getattr(found, part)
    return found


def _called(found: object, model: str) -> nn.Module:
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ModelError(
                f"package.module:factory must name a callable or a network. Received: {model!r}, "
                f"a {type(found).__name__}. Write a function without arguments that returns the network."
            )
        try:
            found = found()
        except HubelError:
            raise
        except Exception as error:
            raise ModelError(
                f"The factory must return a network when called without arguments. Received from {model!r}: "
                f"{type(error).__name__}: {error}. Give every argument a default."
            ) from error
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"The factory must return a torch.nn.Module. Received from {model!r}: {type(found).__name__}. "
            "Return the network itself."
        )
    return found


def _draws(factory: object, network: nn.Module) -> bool:
    """Whether a factory draws its weights: called again, it makes others. (One that reads a file makes the same.)"""
    if isinstance(factory, nn.Module) or not callable(factory):
        return False
    again: dict[str, Tensor] = dict(factory().named_parameters())  # type: ignore[union-attr]  (it returned a module before)
    return any(name in again and not torch.equal(p, again[name]) for name, p in network.named_parameters())
