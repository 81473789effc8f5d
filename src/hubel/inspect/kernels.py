"""The weights of every convolution, kernel by kernel: how strong, how smooth, and what training did to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from hubel.errors import ModelError, unknown
from hubel.inspect.layers import Layer, layers_of
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="norm", unit="", better=None),
    Column(name="mean", unit="", better=None),
    Column(name="min", unit="", better=None),
    Column(name="max", unit="", better=None),
    Column(name="smoothness", unit="correlation", better=None),
]
BEFORE_COLUMNS = [
    Column(name="norm_before", unit="", better=None),
    Column(name="smoothness_before", unit="correlation", better=None),
    Column(name="moved", unit="share of norm_before", better=None),
]

# Below this mean cosine two checkpoints are hardly of one run.
STRANGERS = 0.05


def kernels(
    net: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    most: int = 32,
    most_slices: int = 16,
    before: Mapping[str, Tensor] | None = None,
) -> Record:
    """What each kernel looks like. A row a kernel, `conv1:3`; an array a layer with the kernels worth drawing.

    smoothness: the mean correlation of a weight with its neighbours inside a slice, 0 for independent weights, near 1
        for a smooth patch; each slice about its own mean, null for slices of one weight or of equal weights.
    moved: ‖w − w_before‖ / ‖w_before‖, given `before`.

    layers: addresses of convolutions, default all. most: how many kernels a layer are kept as pictures, the largest L2
        norms first; most_slices: how many slices of each of those, likewise; in the network's order, not by rank.
    before: an earlier `state_dict()` of the same training; kernels of two trainings have nothing to do with each other,
        and `uncovered` says so where they look like that.

    Arrays, for each layer: `conv1` (kernels, slices, *kernel size), `conv1:kernels` and `conv1:slices` the indices of
    what is in it, `conv1:rest` (kernels,) the L2 norm of each kernel's slices that are not, `conv1:before` the same
    weights earlier. `method.params["layers"]` tells each layer's whole shape; `limit`, the largest |weight| of all that
    is shown: one symmetric colour scale a layer; and `view`, what its kernels are best drawn as: `colour` (three slices
    that read the image), `depthwise` (one slice each), `mixing` (1×1: the layer is a matrix), `slices`, `volume` (3-D),
    `curve` (1-D).

    Raises ModelError if there is no convolution, UnknownNameError for a layer that is not there.
    """
    start = time.perf_counter()
    found = layers_of(net)
    if not found:
        raise ModelError(f"A network to look at has convolutions. Received: {type(net).__name__}, which has none.")
    for name in layers or ():
        if name not in found:
            raise unknown("convolution", name, found)
    if before is not None and not any(layer.key in before for layer in found.values()):
        raise ModelError(
            f"`before` is a state_dict of the same network, with {next(iter(found.values())).key!r}. "
            f"Received: one with {list(before)[:3]}. Pass the state_dict that was saved before training."
        )

    method = Method(name="weights", params={"most": most, "most_slices": most_slices, "layers": {}}, source="")
    columns = COLUMNS + (BEFORE_COLUMNS if before is not None else [])
    record = Record(id="kernels", kind="kernels", level="kernel", columns=columns, method=method)
    for address in layers or found:
        old = None if before is None else _earlier(record, found[address], before)
        _add_layer(record, found[address], most, most_slices, old)
    if before is not None and (shared := _in_common(record)) is not None and shared < STRANGERS:
        reason = f"kernels then and now have a mean cosine of {shared:.2f}: are both checkpoints of one run?"
        record.uncovered.append(Uncovered(target="before", reason=reason))
    record.seconds = time.perf_counter() - start
    return record


def _in_common(record: Record) -> float | None:
    """The mean cosine of kernels and what they were: near 1 while a training goes on, near 0 between two trainings."""
    cosines = []
    for key, earlier in record.arrays.items():
        if key.endswith(":before"):
            a, b = (w.reshape(len(w), -1).astype(np.float64) for w in (record.arrays[key[:-7]].data, earlier.data))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines += ((a * b).sum(1)[norms > 0] / norms[norms > 0]).tolist()
    return float(np.mean(cosines)) if cosines else None


def smoothness(w: np.ndarray) -> np.ndarray:
    """Neighbour correlation of each kernel in (kernels, slices, *size), NaN where undefined; see `kernels`."""
    axes = tuple(range(2, w.ndim))
    w = w.astype(np.float64) - w.mean(axis=axes, keepdims=True, dtype=np.float64)
    variance = (w * w).mean(axis=axes).sum(axis=1)
    products, pairs = np.zeros(len(w)), 0
    for axis in axes:
        ahead, behind = np.delete(w, 0, axis), np.delete(w, -1, axis)
        if ahead.size:
            products += (ahead * behind).mean(axis=axes).sum(axis=1)
            pairs += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((variance > 1e-30) & (pairs > 0), products / max(pairs, 1) / variance, np.nan)


def _earlier(record: Record, layer: Layer, before: Mapping[str, Tensor]) -> np.ndarray | None:
    """The layer's weights in `before`. A parametrised weight has another name there: such a layer goes without."""
    old = before.get(layer.key)
    if old is None or old.shape != layer.weight.shape:
        reason = f"`before` has no {layer.key!r} of shape {tuple(layer.weight.shape)}"
        record.uncovered.append(Uncovered(target=layer.address, reason=reason))
        return None
    return layer.by_kernel(old)


def _add_layer(record: Record, layer: Layer, most: int, slices: int, old: np.ndarray | None) -> None:
    address, w = layer.address, layer.by_kernel()
    if not np.isfinite(w).all() or w.size == 0:
        reason = (
            "it has no weights" if w.size == 0 else f"{np.count_nonzero(~np.isfinite(w))} weights are NaN or infinite"
        )
        record.uncovered.append(Uncovered(target=address, reason=reason))
        return
    _add_rows(record, address, w, old)

    flat = w.reshape(*w.shape[:2], -1)
    kept = _strongest(np.linalg.norm(flat, axis=(1, 2)), most)
    inner = np.stack([_strongest(norms, slices) for norms in np.linalg.norm(flat[kept], axis=2)])
    shown = np.take_along_axis(w[kept], inner.reshape(*inner.shape, *[1] * (w.ndim - 2)), axis=1)
    record.arrays[address] = Array(shown)
    record.arrays[f"{address}:kernels"] = Array(kept)
    record.arrays[f"{address}:slices"] = Array(inner)
    squares = (flat[kept].astype(np.float64) ** 2).sum(2)
    np.put_along_axis(squares, inner, 0, axis=1)
    record.arrays[f"{address}:rest"] = Array(np.sqrt(squares.sum(1)).astype(np.float32))
    limit = float(np.abs(shown).max())
    if old is not None:
        earlier = np.take_along_axis(old[kept], inner.reshape(*inner.shape, *[1] * (w.ndim - 2)), axis=1)
        record.arrays[f"{address}:before"] = Array(earlier)
        limit = max(limit, float(np.abs(earlier).max()))
    record.method["params"]["layers"][address] = {
        "type": layer.kind,
        "shape": list(w.shape),
        "stride": layer.stride and list(layer.stride),
        "groups": layer.groups,
        "dilation": layer.dilation and list(layer.dilation),
        "limit": limit,
        "view": _view(layer, w, first=not record.method["params"]["layers"]),
    }


def _view(layer: Layer, w: np.ndarray, first: bool) -> str:
    if w.ndim != 4:
        return "curve" if w.ndim == 3 else "volume"
    if max(w.shape[2:]) == 1:
        return "mixing"
    if w.shape[1] == 1:
        return "depthwise" if layer.groups > 1 else "slices"
    return "colour" if first and w.shape[1] == 3 else "slices"


def _add_rows(record: Record, address: str, w: np.ndarray, old: np.ndarray | None) -> None:
    flat, smooth = w.reshape(len(w), -1).astype(np.float64), smoothness(w)
    past = None if old is None else old.reshape(len(old), -1).astype(np.float64)
    past_smooth = None if old is None else smoothness(old)
    for k, values in enumerate(flat):
        row: dict[str, Any] = {
            "target": f"{address}:{k}",
            "norm": float(np.linalg.norm(values)),
            "mean": float(values.mean()),
            "min": float(values.min()),
            "max": float(values.max()),
            "smoothness": _number(smooth[k]),
        }
        if past is not None and past_smooth is not None:
            norm = float(np.linalg.norm(past[k]))
            row["norm_before"] = norm
            row["smoothness_before"] = _number(past_smooth[k])
            row["moved"] = float(np.linalg.norm(values - past[k])) / norm if norm > 0 else None
        record.rows.append(row)
    if np.isnan(smooth).any():
        reason = "a slice of one weight, or of equal weights, has no neighbour correlation"
        record.uncovered.append(Uncovered(target=address, reason=reason))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _strongest(norms: np.ndarray, most: int) -> np.ndarray:
    """The indices of the `most` largest norms, in their own order."""
    return np.sort(np.argsort(-norms, kind="stable")[:most])
