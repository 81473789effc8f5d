"""Kernels that say the same, layers that could be thinner: duplicates, opposites, rank, separable kernels.

Two kernels are compared by the signed cosine of their weights and by the correlation of their activations: equal
weights behind different batch norms are no duplicates, and different weights may answer alike. What merging a pair
would do is measured: one kernel's activation is put in the place of the other's, scaled and shifted as fits best, which
is what adding up the weights that read them does. Across concatenations, groups and residual sums that cannot be done,
and the Record says so.

A layer's matrix (kernels × the rest) has the stable rank ‖W‖²_F / ‖W‖²_2. *Spatially separable*: every slice is a
column times a row (k×1 · 1×k). *Depthwise separable*: all kernels share one picture an input channel (rank 1 per
channel, Chollet 2017, arXiv 1610.02357), so that a depthwise and a 1×1 convolution do it. Both are tried by putting the
nearest such weights in, without retraining.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.inspect import effects
from hubel.inspect.followers import followers, why_not_merged
from hubel.inspect.hooks import evaluating, watch
from hubel.inspect.importance import check_labels, divergence
from hubel.inspect.layers import Layer, layers_of
from hubel.inspect.running import BATCH, Output, scores, scores_of
from hubel.inspect.sweep import Sweep, Tap
from hubel.records import Array, Column, Method, Record, Uncovered, Value

# A pair is listed from here on, by weights or by activations.
ALIKE = 0.95
COLUMNS = [
    Column(name="cosine", unit="", better=None),
    Column(name="correlation", unit="", better=None),
    Column(name="merge_kl", unit="nats", better="down"),
    Column(name="merge_accuracy", unit="share of images", better="up"),
    Column(name="stable_rank", unit="", better=None),
    Column(name="rank_share", unit="share of the largest possible", better=None),
    Column(name="spatial_error", unit="share of ‖W‖", better=None),
    Column(name="spatial_output_error", unit="share of ‖output‖", better="down"),
    Column(name="spatial_change", unit="accuracy change or KL", better=None),
    Column(name="spatial_macs", unit="share of the layer's", better="down"),
    Column(name="depthwise_error", unit="share of ‖W‖", better=None),
    Column(name="depthwise_output_error", unit="share of ‖output‖", better="down"),
    Column(name="depthwise_change", unit="accuracy change or KL", better=None),
    Column(name="depthwise_macs", unit="share of the layer's", better="down"),
    Column(name="ms", unit="ms", better="down"),
    Column(name="depthwise_ms", unit="ms", better="down"),
]
NOTHING: dict[str, Any] = {column["name"]: None for column in COLUMNS}


def redundancy(
    net: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    output: Output = None,
    alike: float = ALIKE,
    most: int = 24,
    most_layers: int = 12,
    measure: int = 64,
    rounds: int = 7,
    seed: int = 0,
) -> Record:
    """A row a layer ("conv1"), then a row a pair ("conv1:3~conv1:7"), the most alike first.

    most: pairs whose merging is measured (on at most `measure` images, KL from the whole network's answer, and accuracy
    with labels). most_layers: layers, the most nearly separable first, whose separated weights are tried on the same
    images, and timed in `rounds` (depthwise). sweep: with correlations, for what activations say; without it weights
    only. Arrays: `conv1:pairs` (pairs, 2) and `conv1:cosine`, `conv1:correlation` (pairs,): all that are listed.
    """
    start = time.perf_counter()
    record = Record("redundancy", "redundancy", list(COLUMNS), level="layer")
    params = {"alike": alike, "most": most, "images": 0, "seed": seed}
    record.method = Method(name="cosines, correlations, singular values", params=params, source="arXiv 1610.02357")
    layers = layers_of(net)
    if not layers:
        record.status, record.reason = "not_applicable", "no convolution has weights of its own to compare"
        return record
    pairs: list[dict[str, Any]] = []
    for address, layer in layers.items():
        w = layer.by_kernel().astype(np.float64)
        if not np.isfinite(w).all() or not w.size:
            record.uncovered.append(Uncovered(target=address, reason="weights are NaN, infinite or none"))
            continue
        tap = None if sweep is None else sweep.taps.get(address)
        record.rows.append(NOTHING | {"target": address, **_layer(w)})
        pairs += _pairs(record, address, w, tap, alike)
    pairs.sort(key=lambda row: -max(abs(row["cosine"] or 0.0), abs(row["correlation"] or 0.0)))
    if images is None or not len(images):
        record.uncovered.append(Uncovered(target="merging", reason="measured effects need images: none given"))
    else:
        x, y = images[:measure], None if labels is None else labels[:measure].cpu().long()
        params["images"] = len(x)
        check_labels(y, len(x), scores_of(_answer(net, x[:1]), 1, output).shape[1])
        whole = scores(net, x, output)
        _merged(record, net, x, y, whole, pairs[:most], sweep, output)
        _separated(record, net, x, y, whole, layers, output, most_layers, rounds)
    record.rows += pairs
    record.seconds = time.perf_counter() - start
    return record


def _answer(net: nn.Module, x: Tensor) -> object:
    with evaluating(net):
        return net(x)


def _layer(w: np.ndarray) -> dict[str, float | None]:
    flat = w.reshape(len(w), -1)
    total, largest = float((flat**2).sum()), float(_largest(flat))
    stable = total / largest if largest > 0 else None
    cells: dict[str, float | None] = {"stable_rank": stable, "rank_share": stable / min(flat.shape) if stable else None}
    if w.ndim == 4 and min(w.shape[2:]) > 1:
        k = w.shape[2] * w.shape[3]
        cells["spatial_error"] = _left_over(total, _largest(w))
        cells["spatial_macs"] = (w.shape[2] + w.shape[3]) / k
        if w.shape[1] > 1:
            cells["depthwise_error"] = _left_over(total, _largest(w.reshape(*w.shape[:2], -1).swapaxes(0, 1)))
            cells["depthwise_macs"] = (k + len(w)) / (k * len(w))
    return cells


def _largest(matrices: np.ndarray) -> np.ndarray:
    """The square of the largest singular value of each matrix (..., m, n), from the smaller of its two Gram
    matrices."""
    turned = matrices.swapaxes(-1, -2)
    gram = matrices @ turned if matrices.shape[-2] <= matrices.shape[-1] else turned @ matrices
    return np.clip(np.linalg.eigvalsh(gram)[..., -1], 0, None)


def _left_over(total: float, kept: np.ndarray) -> float:
    """‖W − nearest of rank 1, matrix by matrix‖ / ‖W‖, given ‖W‖² and the squares of the largest singular values."""
    return float(np.sqrt(max(0.0, 1 - float(kept.sum()) / total))) if total > 0 else 0.0


def spatial(w: np.ndarray) -> np.ndarray:
    """The nearest weights (K, C, k, l) each of whose slices is a column times a row."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return s[..., :1, None] * u[..., :, :1] * v[..., :1, :]


def depthwise(w: np.ndarray) -> np.ndarray:
    """The nearest weights (K, C, k, l) in which all kernels have the same picture of an input channel, scaled."""
    by_channel = w.reshape(*w.shape[:2], -1).swapaxes(0, 1)  # (C, K, k·l)
    u, s, v = np.linalg.svd(by_channel, full_matrices=False)
    return (s[:, :1, None] * u[:, :, :1] * v[:, :1, :]).swapaxes(0, 1).reshape(w.shape)


def _pairs(record: Record, address: str, w: np.ndarray, tap: Tap | None, alike: float) -> list[dict[str, Any]]:
    flat = w.reshape(len(w), -1)
    norms = np.linalg.norm(flat, axis=1)
    there = norms > 1e-6 * norms.max(initial=0.0)  # what is no kernel is no duplicate
    unit = flat / np.where(there, norms, 1)[:, None]
    cosine = np.where(there[:, None] & there[None, :], unit @ unit.T, 0.0)
    correlation = None if tap is None else tap.correlations()
    if flat.shape[1] == 1 or w[0].size < 4:
        cosine = np.zeros_like(cosine)  # kernels of so few weights are parallel by chance
    either = np.abs(cosine) >= alike
    if correlation is not None and correlation.shape == cosine.shape:
        either |= np.abs(np.nan_to_num(correlation)) >= alike
    one, two = np.nonzero(np.triu(either, 1))
    if not len(one):
        return []
    found = [
        NOTHING
        | {
            "target": f"{address}:{i}~{address}:{j}",
            "cosine": float(cosine[i, j]),
            "correlation": None if correlation is None or np.isnan(correlation[i, j]) else float(correlation[i, j]),
        }
        for i, j in zip(one, two, strict=True)
    ]
    record.arrays[f"{address}:pairs"] = Array(np.stack([one, two], 1))
    record.arrays[f"{address}:cosine"] = Array(cosine[one, two].astype(np.float32))
    if correlation is not None:
        record.arrays[f"{address}:correlation"] = Array(np.nan_to_num(correlation[one, two]).astype(np.float32))
    return found


def _change(whole: Tensor, after: Tensor, y: Tensor | None) -> tuple[Value, Value | None]:
    rng = np.random.default_rng(0)
    kl = effects.paired(divergence(whole, after[None]), 0.95, 200, rng)[0]
    if y is None:
        return kl, None
    turns = ((after.argmax(1) == y).double() - (whole.argmax(1) == y).double()).numpy()
    return kl, effects.paired(turns[None], 0.95, 200, rng)[0]


def _merged(
    record: Record,
    net: nn.Module,
    x: Tensor,
    y: Tensor | None,
    whole: Tensor,
    pairs: list[dict[str, Any]],
    sweep: Sweep | None,
    output: Output,
) -> None:
    readers = followers(net, x[:1]) if pairs else {}
    refused: dict[str, str] = {}
    for row in pairs:
        first, _, second = row["target"].partition("~")
        address, i, j = first.rpartition(":")[0], int(first.rpartition(":")[2]), int(second.rpartition(":")[2])
        why = why_not_merged(readers.get(address))
        tap = None if sweep is None else sweep.taps.get(address)
        if why is not None or tap is None or tap.products is None:
            refused[address] = why or "merging needs the sweep's correlations"
            continue
        slope, shift = _line(tap, i, j)

        def edit(where: str, tensor: Tensor, address=address, i=i, j=j, slope=slope, shift=shift) -> Tensor:
            if where != address:
                return tensor
            tensor = tensor.clone()
            tensor[:, j] = slope * tensor[:, i] + shift
            return tensor

        with watch(net, keep=False, edit=edit), torch.no_grad():
            after = torch.cat([scores_of(net(part), len(part), output).cpu() for part in x.split(BATCH)])
        row["merge_kl"], row["merge_accuracy"] = _change(whole, after, y)
    record.uncovered += [Uncovered(target=a, reason=f"not merged: {why}") for a, why in refused.items()]


def _line(tap: Tap, i: int, j: int) -> tuple[float, float]:
    """a_j ≈ slope·a_i + shift, by least squares over the sampled places."""
    assert tap.products is not None and tap.moments is not None and tap.origin is not None
    mean = tap.moments / tap.samples
    variance = tap.products[i, i] / tap.samples - mean[i] ** 2
    slope = (tap.products[i, j] / tap.samples - mean[i] * mean[j]) / variance if variance > 0 else 0.0
    return float(slope), float(tap.origin[j] + mean[j] - slope * (tap.origin[i] + mean[i]))


@contextmanager
def weights(layer: Layer, near: np.ndarray) -> Iterator[None]:
    """Within the block the layer has these weights."""
    kept = layer.weight.detach().clone()
    try:
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(near).to(kept))
        yield
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


def _separated(
    record: Record,
    net: nn.Module,
    x: Tensor,
    y: Tensor | None,
    whole: Tensor,
    layers: dict[str, Layer],
    output: Output,
    most: int,
    rounds: int,
) -> None:
    rows = [row for row in record.rows if row["spatial_error"] is not None and not layers[row["target"]].transposed]
    rows.sort(key=lambda row: min(row["spatial_error"], row["depthwise_error"] or 1.0))
    if len(rows) > most:
        reason = f"tried for the {most} most nearly separable of {len(rows)} layers"
        record.uncovered.append(Uncovered(target="separated", reason=reason))
    for row in rows[:most]:
        layer = layers[row["target"]]
        w = layer.by_kernel().astype(np.float64)
        for name, near in (("spatial", spatial), ("depthwise", depthwise)):
            if row[f"{name}_error"] is None:
                continue
            with watch(net) as calls:
                net(x[:1])
            call = next((c for c in calls if c.address == row["target"]), None)
            with weights(layer, near(w)):
                after = scores(net, x, output)
                with watch(net) as again:
                    net(x[:1])
            kl, turns = _change(whole, after, y)
            row[f"{name}_change"] = kl if turns is None else turns
            if call is not None and call.output.norm() > 0:
                other = next(c for c in again if c.address == row["target"])
                row[f"{name}_output_error"] = float((other.output - call.output).norm() / call.output.norm())
            if name == "depthwise" and call is not None and isinstance(call.module, nn.Conv2d) and layer.groups == 1:
                row["ms"], row["depthwise_ms"] = _timed(call.module, call.input, w, rounds)


def _timed(module: nn.Conv2d, x: Tensor, w: np.ndarray, rounds: int) -> tuple[Value, Value]:
    """The layer as it is, and as a depthwise convolution and a 1×1 one, in alternating rounds; one image."""
    C = w.shape[1]
    u, s, v = np.linalg.svd(w.reshape(len(w), C, -1).swapaxes(0, 1), full_matrices=False)
    inner = torch.as_tensor(v[:, :1].reshape(C, 1, *w.shape[2:])).to(x)
    outer = torch.as_tensor((u[:, :, 0] * s[:, :1]).T[:, :, None, None].copy()).to(x)
    own, apart = [], []
    padding = 0 if isinstance(module.padding, str) else module.padding
    with torch.no_grad():
        for _ in range(rounds + 1):
            start = time.perf_counter()
            module(x)
            middle = time.perf_counter()
            F.conv2d(F.conv2d(x, inner, None, module.stride, padding, module.dilation, C), outer, module.bias)
            own.append(1e3 * (middle - start))
            apart.append(1e3 * (time.perf_counter() - middle))
    return effects.median_of(own[1:]), effects.median_of(apart[1:])
