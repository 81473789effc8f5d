"""The engines a benchmark compares, each through the door its user has, a file an engine.

`ENGINES` is the table: library, then its contenders. An engine is a function from the tensors of a case to a Contender,
or to Declined with a reason (no such layout, no such direction, not installed). What a contender computed is held
against torch in float64 by `check` before anything is timed.

    torch, hubel        the same call of torch's operators, allocation and dispatch included, in both layouts (eager.py)
    hubel prepared      Hubel's own call on an output that is there: what the peers are compared with (prepared.py)
    onnxruntime, openvino, xnnpack, ncnn, mnn         engines for inference, as their users drive them: PEERS

Forward calls find their weights packed, as in inference. Gradient calls find them changed since the last call, as in
training: their version is bumped each time, for every engine alike, so that re-packing is in the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hubel.errors import unknown
from hubel.lab.engines.check import PEER_ERROR, WRONG, Checked, check, error_bound, float64
from hubel.lab.engines.door import Declined, Engine, Outputs, Tensors, peer
from hubel.lab.engines.eager import (
    FLOAT32,
    channels_last,
    enabled,
    hubel_enabled,
    on_float32,
    torch_call,
    torch_eager,
)
from hubel.lab.engines.mnn import mnn
from hubel.lab.engines.ncnn import ncnn
from hubel.lab.engines.onnxruntime import onnxruntime
from hubel.lab.engines.openvino import openvino, openvino_channels_last
from hubel.lab.engines.prepared import prepared
from hubel.lab.engines.xnnpack import xnnpack
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

__all__ = [
    "ENGINES", "FLOAT32", "PEERS", "PEER_ERROR", "PREPARED", "WRONG",
    "Checked", "Declined", "Engine", "Outputs", "Tensors",
    "check", "contenders", "enabled", "error_bound", "float64", "libraries", "rival_of", "torch_call",
]  # fmt: skip

PREPARED = "hubel prepared"

ENGINES: dict[str, dict[str, Engine]] = {
    "hubel": {"hubel": hubel_enabled, "hubel channels-last": channels_last(hubel_enabled)},
    "torch": {"torch": torch_eager, "torch channels-last": channels_last(torch_eager)},
    FLOAT32: {FLOAT32: on_float32(hubel_enabled), f"{FLOAT32} channels-last": channels_last(on_float32(hubel_enabled))},
    PREPARED: {PREPARED: prepared, f"{PREPARED} channels-last": channels_last(prepared)},
    "onnxruntime": {"onnxruntime": peer(onnxruntime)},
    "openvino": {"openvino": peer(openvino), "openvino channels-last": peer(openvino_channels_last)},
    "xnnpack": {"xnnpack": peer(xnnpack)},
    "ncnn": {"ncnn": peer(ncnn)},
    "mnn": {"mnn": peer(mnn)},
}

# Engines for inference, and the packages they come in.
PEERS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "xnnpack": "ai-edge-litert",
    "ncnn": "ncnn",
    "mnn": "mnn",
}


def libraries(against: Sequence[str], dtypes: Iterable[str] = ()) -> list[str]:
    """Everything that takes part when Hubel is compared with `against` ("all": torch and every peer), Hubel first.

    dtypes: of the cases; beside others than float32 Hubel itself runs on float32.
    """
    asked = [name for given in against for name in (["torch", *PEERS] if given == "all" else [given])]
    for name in asked:
        if name not in ("hubel", "torch", *PEERS):
            raise unknown("engine", name, ["torch", *PEERS, "all"])
    found = ["hubel"] if "torch" in asked or not asked or asked == ["hubel"] else []
    found += ["torch"] if "torch" in asked else []
    found += [FLOAT32] if set(dtypes) - {"float32"} else []
    peers = [name for name in dict.fromkeys(asked) if name in PEERS]
    found += [PREPARED, *peers] if peers else []
    return found


def rival_of(library: str) -> str:
    """Whom a library of ENGINES is compared with: which of Hubel's doors is the like of its own; "" for these doors."""
    if library in PEERS:
        return PREPARED
    if library.startswith("hubel") and library != FLOAT32:
        return ""
    return "hubel"


def contenders(case: Case, libraries: Sequence[str], tensors: Tensors) -> tuple[list[Contender], dict[str, str]]:
    """The contenders of these libraries on a case, and the reasons of those that declined, by contender."""
    taking_part, declined = [], {}
    for library in libraries:
        if library not in ENGINES:
            raise unknown("engine", library, ENGINES)
        for name, engine in ENGINES[library].items():
            try:
                contender = engine(case, tensors)
            except Exception as failure:  # a peer may fail in any way; the others still run
                declined[name] = f"failed: {type(failure).__name__}: {failure}".splitlines()[0]
                continue
            if isinstance(contender, Declined):
                # An empty reason: there is nothing to ask this engine here, and nothing to tell.
                declined |= {name: contender.reason} if contender.reason else {}
            else:
                taking_part.append(contender)
    return taking_part, declined
