"""How much of the image a unit can see, and how much of that it really uses.

Theoretical: the pixels that the unit in the middle of a layer's map can depend on at all (`dependence`). Where that is
cut off by the image, larger images are asked, so that the size is the layer's and not the image's.

Effective (Luo et al. 2016, arXiv 1701.04128): m(y, x) = mean over images of Σ_colour |∂u/∂x|, for a kernel u in the
middle of its map, taken at its tap. For a whole layer u is a sum of its kernels with random signs, and m is a root mean
square over images and colours. σ and the radii are those of m itself: no logarithm, no threshold, so they do not change
when the gradients are scaled. They do depend on the size of the image, which is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import DataError, HubelError, unknown
from hubel.inspect.dependence import dependence
from hubel.inspect.hooks import Call, watch
from hubel.inspect.importance import split
from hubel.inspect.running import in_batches, run
from hubel.records import Array, Column, Method, Record, Uncovered, Value

# Larger images are asked up to this many times the side, and no further than so many pixels.
GROWTH, LARGEST = 8, 2048
AXES = ("y", "x")

COLUMNS = [
    Column(name="height", unit="px", better=None),
    Column(name="width", unit="px", better=None),
    Column(name="rows", unit="px seen", better=None),
    Column(name="columns", unit="px seen", better=None),
    Column(name="stride_y", unit="px", better=None),
    Column(name="stride_x", unit="px", better=None),
    Column(name="start_y", unit="px", better=None),
    Column(name="start_x", unit="px", better=None),
    Column(name="whole", unit="1 if it sees every pixel", better=None),
    Column(name="sigma_y", unit="px", better=None),
    Column(name="sigma_x", unit="px", better=None),
    Column(name="r50", unit="px", better=None),
    Column(name="r90", unit="px", better=None),
    Column(name="centre_y", unit="px", better=None),
    Column(name="centre_x", unit="px", better=None),
    Column(name="silent", unit="images", better=None),
]


@dataclass(frozen=True)
class Side:
    """One axis of a layer's field. The unit at place p sees [start + p·stride, start + p·stride + extent).

    seen: how many pixels of that it really sees (dilation leaves gaps). whole: every pixel, however large the image.
    """

    extent: int
    seen: int
    stride: int
    start: int
    whole: bool = False


Field = tuple[Side, Side]


def receptive_field(
    net: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    most: int = 8,
    draws: int = 1,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Record:
    """A row a layer (and a row for each of `kernels`, "conv1:3"): the theoretical field beside the effective one.

    images (N, C, H, W): the first `most` of them are used for the effective field; without images the theoretical one
    for an image of `shape` (C, H, W). draws: of random signs, for layers.
    σ, and the radii of 50 and 90 % of m about its centre of mass, with bootstrap intervals over images. `silent`:
    images in which the gradient is zero everywhere (a kernel behind a ReLU that did not fire).
    Arrays: `conv1`, `conv1:3`: m (H, W), its maximum 1.
    """
    del labels
    start = time.perf_counter()
    record = Record("receptive_field", "receptive_field", list(COLUMNS), level="layer")
    size = tuple(images.shape[1:]) if images is not None else tuple(shape or ())
    if len(size) != 3:
        return _not_for(
            record, f"fields are drawn on images (C, H, W); received {size or 'neither images nor a shape'}"
        )
    probe = images[:1] if images is not None and len(images) else torch.zeros(1, *size)
    calls, _ = run(net, probe, keep=False)
    known = {call.address: call for call in calls if call.activation.ndim == 4 and len(call.activation) == 1}
    if not known:
        return _not_for(record, "no convolution has a map of two dimensions")
    for name in layers or ():
        if name not in known:
            raise unknown("convolution", name, known)
    chosen = list(layers or known)
    fields, assumed, refused = theoretical(net, probe, chosen)
    params: dict[str, Any] = {"input": list(size), "assumed": sorted(assumed), "images": 0, "seed": seed}
    params |= {"layer": "random ±1 signs, root mean square", "kernel": "mean of |gradient|"}
    record.method = Method(name="dependence; gradients", params=params, source="Luo et al. 2016, arXiv 1701.04128")
    for address in chosen:
        record.rows.append({"target": address, **_theory(fields.get(address))})
        if fields.get(address) is None:
            reason = f"its field is larger than the network takes images ({refused})"
            record.uncovered.append(Uncovered(target=address, reason=reason))
    for name in kernels or ():
        address, k = split(name)
        if address not in known or not 0 <= k < known[address].activation.shape[1]:
            raise unknown("kernel", name, [f"{a}:{i}" for a, c in known.items() for i in range(c.activation.shape[1])])
        if address not in fields:
            fields |= theoretical(net, probe, [address])[0]
        record.rows.append({"target": name, **_theory(fields.get(address))})
    if images is not None and len(images):
        params["images"] = min(most, len(images))
        params["draws"] = draws
        _effective(record, net, images[:most], known, draws, (level, resamples, seed))
    else:
        record.uncovered.append(Uncovered(target="effective", reason="the effective field needs images: none given"))
    record.seconds = time.perf_counter() - start
    return record


def _not_for(record: Record, reason: str) -> Record:
    record.status, record.reason = "not_applicable", reason
    return record


def _theory(field: Field | None) -> dict[str, int | None]:
    if field is None:
        names = "height width rows columns stride_y stride_x start_y start_x whole".split()
        return dict.fromkeys(names)
    y, x = field
    return {
        "height": y.extent,
        "width": x.extent,
        "rows": y.seen,
        "columns": x.seen,
        "stride_y": y.stride,
        "stride_x": x.stride,
        "start_y": y.start,
        "start_x": x.start,
        "whole": int(y.whole and x.whole),
    }


_remembered: dict[tuple[int, torch.Size], tuple[dict[str, Field | None], set[str], str]] | None = None


@contextmanager
def remembering() -> Iterator[None]:
    """Within the block a layer's field is worked out once for each network and size of image: three analyses ask."""
    global _remembered
    outer = _remembered
    try:
        _remembered = {} if outer is None else outer
        yield
    finally:
        _remembered = outer


def theoretical(net: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[dict[str, Field], set[str], str]:
    """See `_theoretical`; within `remembering`, what is known is not worked out again."""
    if _remembered is None:
        return _theoretical(net, x, layers)
    known, assumed, refused = _remembered.get((id(net), x.shape), ({}, set(), ""))
    missing = [address for address in layers if address not in known]
    if missing:
        found, more, why = _theoretical(net, x, missing)
        known, assumed, refused = {**known, **{a: found.get(a) for a in missing}}, assumed | more, refused or why
        _remembered[id(net), x.shape] = (known, assumed, refused)
    there = {address: known[address] for address in layers}
    return {address: field for address, field in there.items() if field is not None}, assumed, refused


def _theoretical(net: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[dict[str, Field], set[str], str]:
    """The field of each layer, by address; functions that were assumed to mix everything; why larger images failed.

    x: one image (1, C, H, W); its pixels only decide which way a network with branches in its code goes. A layer whose
    field is larger than every image that the network takes is left out.
    """
    sides: tuple[dict[str, Side], dict[str, Side]] = ({}, {})
    assumed: set[str] = set()
    refused = ""
    for axis in (0, 1):
        left, factor = list(layers), 1
        while left:
            try:
                found, names = _sides(net, _grown(x, axis, factor), left, axis)
            except (HubelError, RuntimeError, ValueError, IndexError, AssertionError) as error:
                refused = str(error).splitlines()[0] if str(error) else type(error).__name__
                break
            assumed |= names
            largest = 2 * factor > GROWTH or 2 * factor * x.shape[2 + axis] > LARGEST
            # What is cut off on the largest image counts as everything; a layer that was not reached is left out.
            sides[axis].update({a: side for a, side in found.items() if largest or not side.whole})
            if len(found) < len(left):
                refused = f"it stopped at {factor * x.shape[2 + axis]} pixels"
            left = [a for a in left if a in found and a not in sides[axis]]
            factor *= 2
    return {a: (sides[0][a], sides[1][a]) for a in layers if a in sides[0] and a in sides[1]}, assumed, refused


def _grown(x: Tensor, axis: int, factor: int) -> Tensor:
    repeats = [1, 1, 1, 1]
    repeats[2 + axis] = factor
    return x.repeat(*repeats)


def _sides(net: nn.Module, x: Tensor, layers: Sequence[str], axis: int) -> tuple[dict[str, Side], set[str]]:
    """One axis of every layer's field on this image; `whole` where it reaches both ends of it."""
    found: dict[str, Side] = {}
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), dependence(net) as (taps, rules):
        _forward(net, x)
    for address in layers:
        tap = taps.get(address)
        if tap is None or not tap.requires_grad or 0 in tap.shape:
            continue
        places = [n // 2 for n in tap.shape[2:]]
        rules.cut.clear()
        first = _seen(tap, x, places, axis)
        if first is None:
            continue
        lo, hi, count = first
        # What reaches the padding, or ends at the border, may have been cut there.
        cut = axis - 2 in rules.cut or lo == 0 or hi == x.shape[2 + axis] - 1
        place, stride = places[axis], 0
        if not cut and place + 1 < tap.shape[2 + axis]:
            # The next unit begins a stride further, wherever it ends.
            places[axis] += 1
            after = _seen(tap, x, places, axis)
            stride = after[0] - lo if after is not None else 0
        elif not cut:
            cut = True
        found[address] = Side(hi - lo + 1, count, stride, lo - place * stride, whole=cut)
    return found, rules.assumed


def _forward(net: nn.Module, x: Tensor) -> None:
    """As far as it goes: layers before a classifier that wants another size have been seen when it stops."""
    try:
        net(x)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return


def _seen(tap: Tensor, x: Tensor, places: Sequence[int], axis: int) -> tuple[int, int, int] | None:
    """First, last and number of the rows (or columns) of x that a unit of the tap depends on."""
    unit = tap[(0, slice(None), *places)].sum()
    (marks,) = torch.autograd.grad(unit, x, retain_graph=True, allow_unused=True)
    if marks is None:
        return None
    rows = (marks[0] != 0).any(0).any(1 - axis).nonzero().flatten()
    return (int(rows[0]), int(rows[-1]), len(rows)) if len(rows) else None


def _effective(
    record: Record, net: nn.Module, images: Tensor, known: dict[str, Call], draws: int, how: tuple[float, int, int]
) -> None:
    generator = torch.Generator().manual_seed(how[2])
    targets = [row["target"] for row in record.rows]
    signs = {
        t: (torch.randint(0, 2, (draws, known[t].activation.shape[1]), generator=generator) * 2 - 1).float()
        for t in targets
        if t in known
    }
    parts: dict[str, list[np.ndarray]] = {t: [] for t in targets}
    for _, found in in_batches(images, 4, lambda x: _gradients(net, x, known, targets, signs)):
        for target, maps in found.items():
            parts[target].append(maps)
    for row in record.rows:
        target = row["target"]
        if not parts[target]:
            record.uncovered.append(Uncovered(target=target, reason="it does not depend on the image by gradients"))
            continue
        maps = np.concatenate(parts[target])
        # A layer's are squares: their root is taken of the mean.
        _measure(record, row, maps, squared=target in signs, how=how)


def _gradients(
    net: nn.Module, x: Tensor, known: dict[str, Call], targets: Sequence[str], signs: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """Of each target and image (N, H, W): Σ_colour |∂u/∂x| of a kernel, Σ_colour (∂u/∂x)² of a layer, mean of draws."""
    wanted = {t if t in known else split(t)[0] for t in targets}
    middles: dict[str, Tensor] = {}

    def read(address: str, stage: str, tensor: Tensor) -> None:
        if address in wanted and known[address].tap == stage and tensor.requires_grad:
            # A copy of the unit: later in-place operations are not part of it.
            middles[address] = tensor[(slice(None), slice(None), *[n // 2 for n in tensor.shape[2:]])].clone()

    x = x.detach().clone().requires_grad_()
    with watch(net, keep=False, read=read, gradients=True):
        net(x)
    found: dict[str, np.ndarray] = {}
    for target in targets:
        address = target if target in known else split(target)[0]
        if address not in middles:
            continue
        unit = middles[address]
        if target in signs:
            sums = [unit @ s.to(unit) for s in signs[target]]
            squares = [_gradient(u, x).square().sum(1) for u in sums]
            found[target] = torch.stack(squares).mean(0).double().cpu().numpy()
        else:
            found[target] = _gradient(unit[:, split(target)[1]], x).abs().sum(1).double().cpu().numpy()
    return found


def _gradient(unit: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(unit.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()


def _measure(record: Record, row: dict[str, Any], maps: np.ndarray, squared: bool, how: tuple[float, int, int]) -> None:
    level, resamples, seed = how
    silent = int((maps.sum((1, 2)) == 0).sum())
    row["silent"] = silent
    if silent == len(maps) or not np.isfinite(maps).all():
        record.uncovered.append(Uncovered(target=row["target"], reason="no image has a gradient there"))
        return
    point = field_of(maps.mean(0), squared)
    rng = np.random.default_rng(seed)
    rings = _Rings(maps.shape[1:], point["centre_y"], point["centre_x"])
    resampled = []
    for _ in range(resamples if len(maps) > 1 else 0):
        weights = np.bincount(rng.integers(0, len(maps), len(maps)), minlength=len(maps)) / len(maps)
        mean = np.tensordot(weights, maps, 1)
        if mean.sum() > 0:
            resampled.append(list(field_of(mean, squared, rings).values())[:4])
    bounds = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0) if resampled else None
    for i, name in enumerate(("sigma_y", "sigma_x", "r50", "r90")):
        lo, hi = (None, None) if bounds is None else (float(bounds[0, i]), float(bounds[1, i]))
        row[name] = Value(point[name], lo, hi, level, len(maps), "images", "bootstrap")
    row["centre_y"], row["centre_x"] = point["centre_y"], point["centre_x"]
    m = np.sqrt(maps.mean(0)) if squared else maps.mean(0)
    record.arrays[row["target"]] = Array((m / m.max()).astype(np.float16), "share of the largest")


class _Rings:
    """The places of a map (H, W) by their distance from (cy, cx): sorted once, read for every map."""

    def __init__(self, size: Sequence[int], cy: float, cx: float) -> None:
        ys, xs = np.arange(size[0]) - cy, np.arange(size[1]) - cx
        distance = np.hypot(ys[:, None], xs[None, :]).ravel()
        self.order = np.argsort(distance, kind="stable")
        self.distance = distance[self.order]

    def radius(self, held: np.ndarray, share: float) -> float:
        """The smallest radius that holds so much. held: the running sum of a map in this order."""
        last = np.searchsorted(held, share * held[-1] * (1 - 1e-12))
        return float(self.distance[min(last, len(held) - 1)])


def field_of(m: np.ndarray, squared: bool = False, rings: _Rings | None = None) -> dict[str, float]:
    """σ about the centre of mass of m (H, W), and the radii about it (or about that of `rings`) that hold 50 and 90 %
    of m.
    """
    m = np.sqrt(m) if squared else m
    total = float(m.sum())
    if total <= 0:
        raise DataError("A field is measured where there is a gradient. Received: zero everywhere.")
    ys, xs = np.arange(m.shape[0]), np.arange(m.shape[1])
    rows, columns = m.sum(1) / total, m.sum(0) / total
    cy, cx = float(rows @ ys), float(columns @ xs)
    sigma_y, sigma_x = math.sqrt(float(rows @ (ys - cy) ** 2)), math.sqrt(float(columns @ (xs - cx) ** 2))
    rings = _Rings(m.shape, cy, cx) if rings is None else rings
    held = np.cumsum(m.ravel()[rings.order])
    r50, r90 = rings.radius(held, 0.5), rings.radius(held, 0.9)
    return {"sigma_y": sigma_y, "sigma_x": sigma_x, "r50": r50, "r90": r90, "centre_y": cy, "centre_x": cx}
