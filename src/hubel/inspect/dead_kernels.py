"""Kernels that do nothing: what kind of nothing, and how sure that is.

    weight_dead   all weights are zero, or a millionth of the layer's typical norm: there is no kernel
    bn_collapsed  the batch norm after it scales by (next to) nothing, and the activation that follows is constant
    never_active  an activation that was zero at every place of every image
    constant      an activation that never varied, and was not zero
    rare          active in less than 1 % of the images
    saturated     a bounded activation that is at its bound at 95 % of the places or more

*dead* is stronger: with the kernel removed, the outputs on all N images are equal in every bit. N images without a
single exception leave a rate of up to 1 − 0.05^(1/N) open, which is said. `denormal` counts weights whose bit patterns
are float32 denormals: 0 < |w| < 2⁻¹²⁶. They make convolutions many times slower on most CPUs, and often sit in dead
kernels.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import DataError
from hubel.inspect import effects
from hubel.inspect.ablation import without
from hubel.inspect.hooks import evaluating, watch
from hubel.inspect.layers import Layer, layers_of
from hubel.inspect.running import BATCH, Output, in_batches, scores_of
from hubel.inspect.sweep import Sweep, Tap
from hubel.inspect.sweep import sweep as sweep_images
from hubel.records import Column, Method, Record, Uncovered

# Shares of the layer's median norm, of the batch norms' median |scale|, and of images and places.
THRESHOLDS = {"weight_dead": 1e-6, "bn_collapsed": 1e-6, "constant": 1e-6, "rare": 0.01, "saturated": 0.95}
RECTIFIED = frozenset({"relu", "relu6", "hardtanh", "threshold"})
CLASSES = ("weight_dead", "bn_collapsed", "never_active", "constant", "rare", "saturated")

COLUMNS = [
    *[Column(name=name, unit="1 if so", better="down") for name in CLASSES],
    Column(name="dead", unit="1 if outputs are bit-equal without it", better="down"),
    Column(name="denormal", unit="weights", better="down"),
    Column(name="norm", unit="", better=None),
    Column(name="bn_scale", unit="", better=None),
    Column(name="active", unit="share of places", better=None),
    Column(name="fired", unit="images", better=None),
    Column(name="largest", unit="", better=None),
    Column(name="bound", unit="largest rate of images left open", better=None),
]


def dead_kernels(
    net: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    output: Output = None,
    verify: int = 256,
    seed: int = 0,
) -> Record:
    """A row for each kernel of every layer. Without images what the weights say, the rest null.

    verify: at most so many kernels are removed, one at a time, to see whether the outputs stay the same bits; those
    that are silent everywhere go all together (zeros in the place of zeros). Thresholds are in `method.params`.
    """
    del labels
    start = time.perf_counter()
    record = Record("dead_kernels", "dead_kernels", list(COLUMNS), level="kernel")
    params: dict[str, Any] = {"thresholds": dict(THRESHOLDS), "images": 0, "seed": seed}
    record.method = Method(name="weights, norms and activations", params=params, source="Hu et al. 2016, 1607.03250")
    layers = layers_of(net)
    done = sweep
    if done is None and images is not None and len(images):
        done = sweep_images(net, images, output=output, correlations=False, seed=seed)
    if done is None:
        record.uncovered.append(Uncovered(target="activations", reason="they need images: none given"))
    params["images"] = 0 if done is None else done.done
    scales = _norm_scales(net, images)
    flagged: list[str] = []
    # A reused module is one kernel in several places: it is silent if it is so in all of them.
    by_module: dict[str, list[Tap]] = {}
    for address, tap in (done.taps if done else {}).items():
        by_module.setdefault(address.partition("@")[0], []).append(tap)
    for address in dict.fromkeys([*layers, *by_module]):
        flagged += _add(record, address, layers.get(address), by_module.get(address, []), scales.get(address), done)
    if images is not None and flagged:
        _verify(record, net, images, flagged, verify, output, done)
    record.seconds = time.perf_counter() - start
    return record


def denormals(weights: Tensor) -> np.ndarray:
    """How many weights of each kernel (first axis) are denormal. On bit patterns: where the CPU flushes denormals they
    compare equal to zero. float32, float16 and bfloat16; 0 for others."""
    layouts = {torch.float32: (np.int32, 23), torch.float16: (np.int16, 10), torch.bfloat16: (np.int16, 7)}
    if weights.dtype not in layouts or weights.numel() == 0:
        return np.zeros(len(weights), np.int64)
    integer, mantissa = layouts[weights.dtype]
    words = weights.detach().cpu().contiguous().view(torch.int32 if integer is np.int32 else torch.int16).numpy()
    bits = np.iinfo(integer).bits
    exponent = (words >> mantissa) & ((1 << (bits - 1 - mantissa)) - 1)
    fraction = words & ((1 << mantissa) - 1)
    return ((exponent == 0) & (fraction != 0)).reshape(len(words), -1).sum(1)


def _norm_scales(net: nn.Module, images: Tensor | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each layer that a batch norm directly follows: |γ|/√(σ²+ε) and γ itself, (K,) each.

    Which norm follows which layer is seen in a pass; without images, where a module `bn` is registered right behind.
    """
    followed: dict[str, nn.Module] = {}
    if images is not None and len(images):
        followed = _following(net, images[:1])
    else:
        before: str | None = None
        for name, module in net.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                before = name
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and before is not None:
                followed[before], before = module, None
            elif not list(module.children()):
                before = None
    found = {}
    for address, norm in followed.items():
        weight, variance = getattr(norm, "weight", None), getattr(norm, "running_var", None)
        if isinstance(variance, Tensor):
            ones = torch.ones_like(variance)
            gamma = (weight if isinstance(weight, Tensor) else ones).detach().double().cpu().numpy()
            deviation = np.sqrt(variance.detach().double().cpu().numpy() + float(getattr(norm, "eps", 0.0)))
            found[address] = (np.abs(gamma) / deviation, gamma)
    return found


def _following(net: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    inputs: dict[int, str] = {}
    held: list[Tensor] = []
    found: dict[str, nn.Module] = {}

    def read(address: str, stage: str, tensor: Tensor) -> None:
        if stage == "convolution":
            inputs[id(tensor)] = address
            held.append(tensor)  # so that no other tensor gets its id

    def before(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and id(args[0]) in inputs:
            found.setdefault(inputs[id(args[0])].partition("@")[0], module)

    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        with watch(net, keep=False, read=read):
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _add(
    record: Record,
    address: str,
    layer: Layer | None,
    taps: list[Tap],
    scale: tuple[np.ndarray, np.ndarray] | None,
    done: Sweep | None,
) -> list[str]:
    """The rows of one layer; returns the kernels that look dead."""
    K = layer.kernels if layer is not None else taps[0].kernels
    norms = tiny = None
    if layer is not None:
        w = layer.by_kernel().reshape(K, -1).astype(np.float64)
        norms = np.linalg.norm(w, axis=1)
        # The typical kernel that is there at all: in a layer that is half dead the median would be nothing.
        there = norms[norms > THRESHOLDS["weight_dead"] * norms.max()] if K else norms
        tiny = norms <= THRESHOLDS["weight_dead"] * (np.median(there) if len(there) else 0.0)
    counted = _denormal_kernels(layer) if layer is not None else None
    collapsed = None
    if scale is not None and len(scale[0]) == K:
        size = np.abs(scale[1])
        collapsed = size <= THRESHOLDS["bn_collapsed"] * (np.median(size[size > 0]) if size.any() else 0.0)
        if not size.any():
            # How residual branches begin (zero-initialised last norm), not what training does to a kernel.
            reason = "its batch norm scales every kernel by zero, as residual branches begin: none is called collapsed"
            record.uncovered.append(Uncovered(target=address, reason=reason))
            collapsed, taps = np.zeros(K, bool), []
    activity = _activity(taps, done)
    flagged: list[str] = []
    for k in range(K):
        row: dict[str, Any] = {"target": f"{address}:{k}", "dead": None}
        row["weight_dead"] = None if tiny is None else int(tiny[k])
        row["bn_collapsed"] = None if collapsed is None else int(collapsed[k] and not row["weight_dead"])
        row["denormal"] = None if counted is None else int(counted[k])
        row["norm"] = None if norms is None else float(norms[k])
        row["bn_scale"] = None if scale is None or len(scale[0]) != K else float(scale[0][k])
        row |= {name: value[k] for name, value in activity.items()} if activity else _NOTHING
        record.rows.append(row)
        if any(row[name] for name in ("weight_dead", "bn_collapsed", "never_active", "constant")):
            flagged.append(row["target"])
    return flagged


_NOTHING: dict[str, Any] = dict.fromkeys(
    ["never_active", "constant", "rare", "saturated", "active", "fired", "largest", "bound"]
)


def _denormal_kernels(layer: Layer) -> np.ndarray:
    if not layer.transposed:
        return denormals(layer.weight)
    # (inputs, kernels / groups, *size): the kernels' axis to the front, group by group.
    I, O, *size = layer.weight.shape
    G = layer.groups
    by_group = layer.weight.detach().reshape(G, I // G, O, *size).transpose(1, 2)
    return denormals(by_group.reshape(G * O, -1))


def _activity(taps: list[Tap], done: Sweep | None) -> dict[str, list[Any]]:
    """What the sweep says of each kernel, over all calls of its module; empty where there is none."""
    if not taps or done is None or done.done == 0 or not all(tap.finite for tap in taps):
        return {}
    n = done.done
    places = sum(tap.places for tap in taps) * n
    largest = np.max([tap.maxima[:n].max(0) for tap in taps], axis=0)
    lowest = np.min([tap.lowest for tap in taps], axis=0)
    positive, bounded = (np.sum([getattr(tap, key) for tap in taps], axis=0) for key in ("positive", "bounded"))
    fired = np.max([tap.fired for tap in taps], axis=0)
    rectified = all(tap.tap in RECTIFIED and (tap.bounds is None or tap.bounds[0] >= 0) for tap in taps)
    never = (largest <= 0) & (lowest >= 0)
    typical = float(np.median(largest - lowest))
    constant = (largest - lowest <= THRESHOLDS["constant"] * max(typical, 1e-30)) & ~never
    rare = (fired < THRESHOLDS["rare"] * n) & rectified & ~never & (n * THRESHOLDS["rare"] >= 1)
    saturated = (bounded >= THRESHOLDS["saturated"] * places) & (taps[0].bounds is not None)
    bound = effects.without_events(n)
    return {
        "never_active": never.astype(int).tolist(),
        "constant": constant.astype(int).tolist(),
        "rare": rare.astype(int).tolist(),
        "saturated": saturated.astype(int).tolist(),
        "active": (positive / places).tolist(),
        "fired": fired.tolist(),
        "largest": [float(v) for v in largest],
        "bound": [bound if f == 0 else None for f in fired],
    }


def _verify(
    record: Record, net: nn.Module, images: Tensor, flagged: list[str], most: int, output: Output, done: Sweep | None
) -> None:
    """Fills `dead`: bit-equal outputs on all images without the kernel."""
    rows = {row["target"]: row for row in record.rows}
    silent = [name for name in flagged if rows[name]["never_active"]]
    alone = [name for name in flagged if not rows[name]["never_active"]]
    known = None if done is None or done.scores is None else torch.from_numpy(done.scores)
    try:
        if silent:
            # Zeros in the place of zeros: all of them at once.
            if _changing_nothing(net, images, [silent], output, known):
                for name in silent:
                    rows[name]["dead"] = 1
            else:
                alone = silent + alone
        tried = alone[:most]
        for name in tried:
            # Where it is most active it most likely matters: seldom is more than one image needed.
            most_active = _most_active(name, done)
            there = [] if most_active is None else [images[most_active : most_active + 1]]
            dead = all(_changing_nothing(net, x, [[name]], output) for x in there)
            rows[name]["dead"] = None if dead else 0
        left = [[name] for name in tried if rows[name]["dead"] is None]
        unchanging = _changing_nothing(net, images, left, output, known)
    except DataError as error:
        record.uncovered.append(Uncovered(target="dead", reason=str(error)))
        return
    for (name,) in left:
        rows[name]["dead"] = int([name] in unchanging)
    if len(alone) > most:
        reason = f"whether they are was tried for {most} of {len(alone)} kernels"
        record.uncovered.append(Uncovered(target="dead", reason=reason))


def _most_active(name: str, done: Sweep | None) -> int | None:
    """The image in which the kernel reaches its largest activation."""
    address, _, k = name.rpartition(":")
    tap = None if done is None else done.taps.get(address)
    return None if tap is None or done is None else int(tap.maxima[: done.done, int(k)].argmax())


def _changing_nothing(
    net: nn.Module, images: Tensor, groups: list[list[str]], output: Output, known: Tensor | None = None
) -> list[list[str]]:
    """The groups of kernels without which the outputs are the same bits on all images. A group that changes them on
    one batch is not tried on the next. known: the outputs with all kernels, as another pass found them; where they
    differ they are computed once more.
    """
    left, at = list(groups), 0

    def still(x: Tensor) -> list[list[str]]:
        nonlocal left, at
        whole = known[at : at + len(x)] if known is not None else scores_of(net(x), len(x), output).clone()
        found = []
        for group in left:
            with without(net, group):
                after = scores_of(net(x), len(x), output).clone()
            if torch.equal(after, whole) or (
                known is not None and torch.equal(after, scores_of(net(x), len(x), output))
            ):
                found.append(group)
        # Only now: where memory runs out, half as many images are tried again.
        left, at = found, at + len(x)
        return found

    if left:
        with evaluating(net):
            for _, found in in_batches(images, BATCH, still):
                if not found:
                    break
    return left


__all__ = ["dead_kernels", "denormals", "THRESHOLDS"]
