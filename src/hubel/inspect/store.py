"""Results on disk, by model, data and settings, so that nothing is computed twice and nothing done is lost.

    <cache folder>/inspect/<key>/<analysis>/document.json, arrays.npz      a finished Record
    <cache folder>/inspect/<key>/sweep.npz                                 a pass over the images that was interrupted

The key hashes the weights, the network's structure, the images and labels, and the version; an analysis's own options
are part of its folder's name. Feature maps are made of the user's images: the folder is the user's alone (0700), and a
folder that others may read is not used. `clear()` removes everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubel.engine.cache import folder as cache_folder
from hubel.errors import HubelError
from hubel.inspect.sweep import Sweep, from_bytes, to_bytes
from hubel.records import Document, Record, versions, write_atomically

SIZE_CAP = 2 * 2**30


def folder() -> Path:
    """Where results are kept."""
    return cache_folder() / "inspect"


def clear() -> int:
    """Remove every kept result; returns how many models and data sets that were."""
    kept = [path for path in folder().iterdir() if path.is_dir()] if folder().is_dir() else []
    for path in kept:
        shutil.rmtree(path, ignore_errors=True)
    return len(kept)


def structure_of(net: nn.Module) -> str:
    """What a network is made of, without its weights: the names and settings of its modules, and shapes of
    parameters."""
    modules = [f"{name}: {type(m).__name__}({m.extra_repr()})" for name, m in net.named_modules()]
    shapes = [f"{name} {tuple(p.shape)}" for name, p in net.state_dict().items() if isinstance(p, Tensor)]
    return re.sub(r"0x[0-9a-f]+", "", "\n".join(modules + shapes))


def key_of(net: nn.Module, images: Tensor | None, labels: Tensor | None) -> str:
    """The name of this model on this data."""
    digest = hashlib.sha256(json.dumps([versions()["hubel"], versions()["torch"], structure_of(net)]).encode())
    for name, value in net.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(_bytes(value))
    for tensor in (images, labels):
        digest.update(b"none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor is not None:
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:24]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class Store:
    """The results of one model on one data set. Where the folder cannot be used, nothing is kept and all is well."""

    def __init__(self, key: str, root: Path | None = None) -> None:
        self.root = (root or folder()) / key
        self.usable = _private(self.root.parent) and _private(self.root)

    def _folder(self, name: str, options: dict[str, Any]) -> Path:
        told = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.root / f"{name}-{told}"

    def read(self, name: str, options: dict[str, Any]) -> Record | None:
        """The Record of an analysis with these options, if it is there and whole."""
        path = self._folder(name, options)
        if not self.usable or not path.is_dir():
            return None
        try:
            return Document.load(path).records[0]
        except (HubelError, IndexError, OSError):
            shutil.rmtree(path, ignore_errors=True)
            return None

    def write(self, name: str, options: dict[str, Any], record: Record) -> None:
        if not self.usable:
            return
        kept = Document(
            model={
                "name": "", "sha256": None, "weights": "file", "params": 0, "input": {"shape": [], "dtype": ""},
                "preprocess": None, "classes": None, "output": None,
            },
            data=None,
            settings={"profile": None, "seed": None, "accuracy": "default", "threads": 1, "engine": ""},
            records=[record],
        )  # fmt: skip
        try:
            kept.save(self._folder(name, options))
            _shrink(self.root.parent, keep=self.root)
        except OSError:
            self.usable = False

    def read_sweep(self, images: int) -> Sweep | None:
        """An interrupted pass over so many images."""
        try:
            found = from_bytes((self.root / "sweep.npz").read_bytes()) if self.usable else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found is not None and found.images == images else None

    def write_sweep(self, state: Sweep) -> None:
        if self.usable and not state.torn and state.done:
            try:
                write_atomically(self.root / "sweep.npz", to_bytes(state))
            except OSError:
                self.usable = False

    def forget_sweep(self) -> None:
        (self.root / "sweep.npz").unlink(missing_ok=True)


def _private(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.stat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return mine and (os.name == "nt" or stat.S_IMODE(about.st_mode) & 0o077 == 0)


def _shrink(root: Path, keep: Path) -> None:
    """Remove what was used longest ago until all of it fits."""
    kept = sorted((p for p in root.iterdir() if p.is_dir() and p != keep), key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in [*kept, keep]}
    while kept and sum(sizes.values()) > SIZE_CAP:
        sizes.pop(kept[0])
        shutil.rmtree(kept.pop(0), ignore_errors=True)
