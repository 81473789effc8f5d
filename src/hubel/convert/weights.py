"""State dicts: read from a file without running any code in it, and fitted to a network or refused with the reasons.

`.safetensors` holds numbers only. `.pth`, `.pt`, `.bin` and `.ckpt` are pickles, which can name any function to call;
they are read with `weights_only=True`, always, so that a file which needs more is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hubel.errors import ModelError

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

# Training scripts wrap the state dict in a checkpoint; these are the keys they put it under.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
# ... and DistributedDataParallel and torch.compile put these before every name.
_PREFIXES = ("module.", "_orig_mod.")
# How many keys of a mismatch a message names before it counts the rest.
_NAMED = 4


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict and a network differ. `misshapen`: (key, shape in the file, shape in the network)."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def __str__(self) -> str:
        shapes = [f"{key} {list(file)} where the network has {list(net)}" for key, file, net in self.misshapen]
        parts = (("missing", list(self.missing)), ("unexpected", list(self.unexpected)), ("misshapen", shapes))
        return "; ".join(f"{word}: {_some(keys)}" for word, keys in parts if keys)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex: what a Document calls the model's weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU; wrappers and prefixes of training scripts taken off.

    ModelError if there is no such file, it cannot be read, needs more than tensors, or holds no state dict.
    """
    path = Path(path)
    require_file(path, "A weight file")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in PICKLED:
        state = _unwrap(_read_pickle(path), path)
    else:
        raise ModelError(
            f"Weights are read from {', '.join(SUFFIXES)}. Received: {path}. "
            "Save them with safetensors.torch.save_file or torch.save(model.state_dict(), ...)."
        )
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def compare(network: nn.Module, state: Mapping[str, Tensor]) -> Mismatch:
    """Where `state` does not fit `network`. Works on the meta device too: shapes alone are compared."""
    wanted, state = network.state_dict(), as_named_by(network, state)
    return Mismatch(
        # Old checkpoints lack this counter; torch itself does without it.
        missing=tuple(key for key in wanted if key not in state and not key.endswith("num_batches_tracked")),
        unexpected=tuple(key for key in state if key not in wanted),
        misshapen=tuple(
            (key, tuple(state[key].shape), tuple(wanted[key].shape))
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ),
    )


def load_into(network: nn.Module, state: Mapping[str, Tensor], *, name: str, source: str | Path) -> None:
    """Copy `state` into `network`. ModelError, with the keys, if they do not fit.

    name: what the network is called in messages; source: where the weights came from.
    """
    if mismatch := compare(network, state):
        raise ModelError(
            f"The weights must be those of the network {name}. Received: {source}, which differs ({mismatch}). "
            "Name the network they were saved from with --arch, or build yours with package.module:factory."
        )
    network.load_state_dict(as_named_by(network, state), strict=False)


def as_named_by(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names that `network` uses today.

    A network whose published weights have older names, or tensors that it leaves aside, says so in `renamed`: pairs of
    a pattern for the whole or a part of a name, and what takes its place; a name of which nothing is left is dropped.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, instead in getattr(network, "renamed", ()):
            name = re.sub(pattern, instead, name)
        if name:
            renamed[name] = tensor
    return renamed


def require_file(path: Path, what: str) -> None:
    """ModelError unless `path` is a file that can be opened."""
    try:
        with path.open("rb"):
            return
    except IsADirectoryError:
        reason = "that is a folder"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise ModelError(f"{what} must be a file that can be read. Received: {path} ({reason}). Check the path.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, "a safetensors file", error) from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle provoke KeyError, IndexError, EOFError, ...
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise _damaged(path, "a file of torch.save", error) from error
        raise ModelError(
            f"A weight file must hold tensors only: pickles that name other objects can run any code, so they are not "
            f"opened. Received: {path}, which names {named[1]}. Where it was made, save it again with "
            "torch.save(model.state_dict(), ...) or as .safetensors."
        ) from error


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(
            f"A weight file must hold a state dict: names and tensors. Received: {path}, which holds "
            f"{type(content).__name__}. Save model.state_dict()."
        )
    return {str(key): tensor for key, tensor in content.items()}


def _damaged(path: Path, what: str, error: Exception) -> ModelError:
    # torch's own advice on pickles is to load them unsafely: not passed on.
    text = "no pickle" if isinstance(error, pickle.UnpicklingError) else str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    return ModelError(
        f"{path} must be {what}. Received one that cannot be read ({reason}). It may be damaged or of another kind; "
        "copy or save it again."
    )


def _some(keys: list[str]) -> str:
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
