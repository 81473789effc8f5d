"""A network is written to a file that others run, and the file is run before it is said to be there.

    net.onnx    ONNX, by torch.onnx; checked in onnxruntime
    net.pt2     torch.export; read again and checked in torch
    net.hubel   a Session's file: folded and fused; read again and checked in a Session

WRITERS is the table: an ending, how it is written, how what was written runs; another format is a line there. The file
is written under another name, run on random inputs with as many batch sizes as it takes, compared with the network, and
only then moved to its place: what does not agree is not there.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hubel.convert.onnx_file import library
from hubel.errors import HubelError, ModelError, unknown
from hubel.ops.session import Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Two float32 runtimes add in different orders; a network of a hundred layers keeps well below this.
TOLERANCE = 1e-4
# What one protobuf message can hold.
LARGEST_ONNX = 2**31 - 2**20

Runner = Callable[[np.ndarray], Sequence[Any]]


@dataclass(frozen=True)
class Captured:
    """What a writer is given: the network in eval mode, an input, the program that torch.export made of both.

    batch: the only batch size that the program takes; None for any.
    """

    network: nn.Module
    example: Tensor
    program: ExportedProgram
    batch: int | None


@dataclass(frozen=True)
class Written:
    """What was written. error: the largest distance from the network, ‖file − network‖ / ‖network‖ of one output.

    batch: the only batch size it takes, None for any. against: what ran it.
    """

    path: Path
    against: str
    error: float
    batch: int | None

    def __str__(self) -> str:
        takes = "any batch size" if self.batch is None else f"batches of {self.batch}"
        size = self.path.stat().st_size
        return (
            f"wrote {self.path}, {size:,} bytes, {takes}: agrees with {self.against} on random input, "
            f"relative error {self.error:.1e}"
        )


@dataclass(frozen=True)
class Writer:
    """write: puts the network into a file. open: the file in its own runtime. against: that runtime's name."""

    write: Callable[[Captured, Path], None]
    open: Callable[[Path], Runner]
    against: str


def export(
    network: nn.Module,
    shape: Sequence[int],
    out: str | os.PathLike[str],
    *,
    batch: int | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Written:
    """Write `network`, in eval mode, to `out`, whose ending says how; the network itself is left as it is.

    shape: of one example, (C, H, W). batch: the only batch size that the network takes; None if any. seed: of the
    random inputs that the file is checked with.

    UnknownNameError for another ending. ModelError if the network cannot be captured or written, or if what was written
    does not agree: then there is no file, and an older one of that name is as it was.
    """
    out = Path(out)
    if out.suffix not in WRITERS:
        raise unknown("ending of an exported file", out.suffix, WRITERS)
    if not out.parent.is_dir():
        raise ModelError(f"A file is written into a folder that exists. Received: {out}. Make {out.parent} first.")
    writer = WRITERS[out.suffix]
    frozen = copy.deepcopy(network).eval()
    captured = _captured(frozen, tuple(shape), batch or _only_batch(frozen, tuple(shape)))
    batches = [captured.batch] if captured.batch is not None else [2, 3]
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        # under its own name in a folder of its own: formats name files inside themselves
        written = Path(folder) / out.name
        with _calm():
            try:
                writer.write(captured, written)
                error = _distance(frozen, writer.open(written), tuple(shape), batches, seed)
            except HubelError:
                raise
            except Exception as reason:  # whatever an exporter or a runtime raises
                raise ModelError(
                    f"The network must be one that {out.suffix} and {writer.against} can express. Received: "
                    f"{_first_line(reason)}. {out} was not written."
                ) from reason
        if not error <= tolerance:
            raise ModelError(
                f"An exported network must give what the network gives, within {tolerance:g}. Received: a relative "
                f"error of {error:.2e} in {writer.against}. {out} was not written."
            )
        written.replace(out)
    return Written(out, writer.against, error, captured.batch)


def _only_batch(network: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The batch size of a network that takes one only; None for any, and where none of a few runs."""
    runs = []
    for n in (2, 3, 1):
        try:
            with torch.no_grad():
                network(torch.zeros(n, *shape))
            runs.append(n)
        except Exception:  # whatever a network raises: why it does not run is told when it is captured
            continue
        if runs == [2, 3]:
            return None
    return runs[0] if len(runs) == 1 else None


def _captured(network: nn.Module, shape: tuple[int, ...], batch: int | None) -> Captured:
    # Two images: torch takes a batch of one for a constant.
    example = torch.zeros(batch or 2, *shape)
    sizes = None if batch is not None else ({0: torch.export.Dim.AUTO},)
    try:
        with _calm(), torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=sizes)
    except Exception as error:
        raise ModelError(
            f"An exported network must be one that torch.export can capture. Received: {type(network).__name__} on "
            f"{list(example.shape)}: {_first_line(error)}. Give the size of its images with --input-size."
        ) from error
    (first,) = (
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )
    size = first.meta["val"].shape[0]
    return Captured(network, example, program, size if isinstance(size, int) else None)


def _distance(network: nn.Module, run: Runner, shape: tuple[int, ...], batches: Sequence[int], seed: int) -> float:
    """The largest relative error of an output over the batch sizes; infinite where numbers or shapes are wrong."""
    random = torch.Generator().manual_seed(seed)
    worst = 0.0
    for n in batches:
        x = torch.randn(n, *shape, generator=random)
        with torch.no_grad():
            wanted = [t.numpy() for t in pytree.tree_leaves(network(x)) if isinstance(t, Tensor)]
        found = run(x.numpy())
        if [a.shape for a in found] != [a.shape for a in wanted]:
            return float("inf")
        for a, b in zip(found, wanted, strict=True):
            a, b = a.astype(np.float64), b.astype(np.float64)
            error = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30)
            worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


def _write_onnx(captured: Captured, path: Path) -> None:
    program = captured.program
    onnx = library()
    if _missing("onnxscript"):
        raise ModelError("Writing .onnx needs the package onnxscript. Install it: pip install 'hubel[onnx]'.")
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise ModelError(f"One .onnx file holds 2 GiB. Received: {size:,} bytes of weights. Write a .pt2 instead.")
    torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, optimize=True)
    onnx.checker.check_model(onnx.load(path))


def _open_onnx(path: Path) -> Runner:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"An .onnx is checked in onnxruntime before it is written. Received: {error}. "
            "Install it: pip install 'hubel[onnx]'."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def _write_pt2(captured: Captured, path: Path) -> None:
    torch.export.save(captured.program, path)


def _open_pt2(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [t.numpy() for t in pytree.tree_leaves(module(torch.from_numpy(x))) if isinstance(t, Tensor)]

    return run


def _write_hubel(captured: Captured, path: Path) -> None:
    Session(captured.network, captured.example).save(path)


def _open_hubel(path: Path) -> Runner:
    run = Session.load(path)
    return lambda x: pytree.tree_leaves(run(x))


WRITERS: dict[str, Writer] = {
    ".onnx": Writer(_write_onnx, _open_onnx, "onnxruntime"),
    ".pt2": Writer(_write_pt2, _open_pt2, "torch"),
    ".hubel": Writer(_write_hubel, _open_hubel, "a Session"),
}


def _missing(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


@contextmanager
def _calm() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
