"""What every layer costs: counted (parameters, multiply-adds, bytes), and measured in milliseconds where it runs.

The engine is the one that runs at the moment: Hubel's kernels within `hubel.enabled()`, torch's otherwise. Each layer
is timed inside the network, between its neighbours, so that caches are as they are; the sum of these is put beside the
time of the whole network, which has pooling, norms and Python in it, too.

One multiply-add (MAC) is two floating-point operations (FLOP). The bytes are those that must move at least: input,
weights and output, once. The place on the roofline is the least time that this machine could need, over the measured.
A kernel's share of the MACs is computed, 1/K of its layer's; what its removal would save must be measured after it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hubel.engine import ConvSpec, Machine
from hubel.engine.measure import measured
from hubel.errors import SpecError, UnsupportedError
from hubel.inspect import effects
from hubel.inspect.hooks import evaluating
from hubel.inspect.importance import divergence, removed, taylor
from hubel.inspect.replay import Replay, recorded
from hubel.inspect.running import Output, run, scores_of
from hubel.inspect.sweep import Sweep
from hubel.ops.override import is_enabled
from hubel.records import Column, Method, Record, Uncovered, Value

# What a group of kernels may cost and still be called removable together.
MOST_ACCURACY, MOST_KL = 0.01, 0.01
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

COLUMNS = [
    Column(name="parameters", unit="", better="down"),
    Column(name="macs", unit="", better="down"),
    Column(name="flops", unit="", better="down"),
    Column(name="bytes", unit="B", better="down"),
    Column(name="intensity", unit="FLOP/B", better=None),
    Column(name="ms", unit="ms", better="down"),
    Column(name="gflops", unit="GFLOP/s", better="up"),
    Column(name="roof_ms", unit="ms", better=None),
    Column(name="roofline", unit="share", better="up"),
    Column(name="time_share", unit="share of end to end", better=None),
    Column(name="kernels", unit="", better=None),
    Column(name="kernel_share", unit="share of all MACs, computed", better="down"),
    Column(name="removable", unit="share of kernels", better=None),
    Column(name="removable_effect", unit="accuracy change or KL", better=None),
]
NOTHING: dict[str, Any] = {column["name"]: None for column in COLUMNS}


def cost(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    output: Output = None,
    batch: int = 1,
    rounds: int = 15,
    against: int = 0,
    most_layers: int = 10,
    seed: int = 0,
) -> Record:
    """A row a convolution in the order in which they run, then `(matrix products)` and `(end to end)`.

    batch: images at a time while timing. rounds: of the whole network; ms is the median of them, with its interval.
    against: images for "cost against importance", 0 for none: of the `most_layers` slowest layers, the largest share of
    kernels (the least important ones first, by `taylor` on half of these images) that, put at their means together,
    cost less than one point of accuracy on the other half (without labels: a KL below 0.01); needs a sweep.
    """
    start = time.perf_counter()
    record = Record("cost", "cost", list(COLUMNS), level="layer")
    x = images[:1].repeat(batch, *[1] * (images.ndim - 1))
    calls, _ = run(net, x, keep=False)
    counted = _count(net, x)
    named = [call.address for call in calls]
    if len(named) != len(counted.convolutions):
        # Convolutions that no module and no torch.nn.functional made have no address of their own.
        named = [f"convolution#{i + 1}" for i in range(len(counted.convolutions))]
    engine = "hubel" if is_enabled() else "torch"
    params: dict[str, Any] = {"engine": engine, "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}
    params |= {"not_counted": dict(counted.others.most_common()), "images": 0}
    record.method = Method(name="counted and timed in place", params=params, source="Williams et al. 2009, roofline")
    layer_seconds, whole_seconds = _times(net, x, rounds, len(named))
    _rows(record, named, counted, layer_seconds, whole_seconds, sum(p.numel() for p in net.parameters()))
    if against:
        _against(record, net, images, labels, sweep, output, against, most_layers, seed)
    else:
        record.uncovered.append(Uncovered(target="removable", reason="cost against importance was not asked for"))
    record.seconds = time.perf_counter() - start
    return record


class _Counter(TorchDispatchMode):
    """Counts what reaches torch's operators; convolutions one by one, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple[int, int, int, int]] = []  # MACs, bytes, parameters, kernels
        self.matrices = 0
        self.others: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.convolutions.append(_convolution(args, result))
        elif func._overloadpacket in flop_registry:
            self.matrices += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result) // 2
        else:
            first = result[0] if isinstance(result, (tuple, list)) and result else result
            if not func.is_view and isinstance(first, Tensor) and first.is_floating_point():
                self.others[func._overloadpacket.__name__] += 1
        return result


def _convolution(args: Any, result: Tensor) -> tuple[int, int, int, int]:
    x, w, b, stride, padding, dilation, transposed, output_padding, groups = args
    outputs = w.shape[1] * groups if transposed else w.shape[0]
    if x.ndim == w.ndim - 1:  # one image without its batch
        x, result = x[None], result[None]
    sizes = (x.shape[0], x.shape[1], outputs, tuple(x.shape[2:]), tuple(w.shape[2:]))
    parameters = w.numel() + (b.numel() if b is not None else 0)
    moved = (x.numel() + result.numel()) * x.element_size() + parameters * w.element_size()
    try:
        if transposed:
            macs = ConvSpec.for_transposed(*sizes, stride, padding, output_padding, dilation, groups).macs
        else:
            macs = ConvSpec(*sizes, stride, padding, dilation, groups).macs
    except SpecError:
        macs = result.numel() * w[0].numel()
    return macs, moved, parameters, outputs


def _count(net: nn.Module, x: Tensor) -> _Counter:
    with evaluating(net), torch.random.fork_rng(devices=[]), _Counter() as counter:
        net(x)
    return counter


class _Clock(TorchDispatchMode):
    """Seconds of each convolution of one pass, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution.default:
            return func(*args, **(kwargs or {}))
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds.append(time.perf_counter() - start)
        return result


def _times(net: nn.Module, x: Tensor, rounds: int, layers: int) -> tuple[np.ndarray, list[float]]:
    """(layers, rounds) seconds of each convolution inside the network, and seconds of the whole network untouched."""
    inside, whole = [], []
    with evaluating(net), torch.random.fork_rng(devices=[]):
        net(x)
        for _ in range(rounds):
            start = time.perf_counter()
            net(x)
            whole.append(time.perf_counter() - start)
            with _Clock() as clock:
                net(x)
            if len(clock.seconds) == layers:
                inside.append(clock.seconds)
    return np.array(inside).reshape(len(inside), layers).T, whole


def _roof(macs: int, moved: int) -> Callable[[], float | None]:
    def ms() -> float | None:
        try:
            machine = measured(Machine.detect())
        except UnsupportedError:
            return None
        one = torch.get_num_threads() == 1
        gflops = machine.fma_gflops_1 if one else machine.fma_gflops_all
        return 1e3 * max(2 * macs / (gflops * 1e9), moved / (machine.dram_gb_s * 1e9))

    return ms


def _rows(
    record: Record, named: list[str], counted: _Counter, inside: np.ndarray, whole: list[float], parameters: int
) -> None:
    total_macs = sum(c[0] for c in counted.convolutions) + counted.matrices
    end = effects.median_of([1e3 * s for s in whole])
    for i, (address, (macs, moved, weights, kernels)) in enumerate(zip(named, counted.convolutions, strict=True)):
        ms = effects.median_of((1e3 * inside[i]).tolist()) if inside.shape[1] else Value(None, of="rounds")
        roof = _roof(macs, moved)()
        row = NOTHING | {"target": address, "parameters": weights, "macs": macs, "flops": 2 * macs, "bytes": moved}
        row |= {"intensity": 2 * macs / moved if moved else None, "ms": ms, "roof_ms": roof, "kernels": kernels}
        row["kernel_share"] = macs / kernels / total_macs if total_macs else None
        if ms.value:
            row["gflops"] = 2 * macs / ms.value * 1e-6
            row["roofline"] = roof / ms.value if roof else None
            row["time_share"] = ms.value / end.value if end.value else None
        record.rows.append(row)
    if counted.matrices:
        macs = counted.matrices
        record.rows.append(NOTHING | {"target": "(matrix products)", "macs": macs, "flops": 2 * macs})
    layers_ms = float(np.median(1e3 * inside.sum(0))) if inside.size else None
    record.method["params"]["sum_of_layers_ms"] = layers_ms
    record.method["params"]["gap_ms"] = None if layers_ms is None or end.value is None else end.value - layers_ms
    total = NOTHING | {"target": "(end to end)", "macs": total_macs, "flops": 2 * total_macs, "ms": end}
    total["parameters"] = parameters
    record.rows.append(total)


def _against(
    record: Record,
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    sweep: Sweep | None,
    output: Output,
    n: int,
    most_layers: int,
    seed: int,
) -> None:
    n = min(n, len(images))
    params = record.method["params"]
    if sweep is None or n < 2:
        reason = (
            "cost against importance needs a sweep for the kernels' means" if sweep is None else "it needs 2 images"
        )
        record.uncovered.append(Uncovered(target="removable", reason=reason))
        return
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    choosing, measuring = order[: n // 2], order[n // 2 :]
    y = None if labels is None else labels[measuring].cpu().long()
    scores_of(net_answer(net, images[:1]), 1, output)
    worth = taylor(net, images[choosing], None if labels is None else labels[choosing], output)
    means = {a: tap.means[: sweep.done].mean(0, dtype=np.float64) for a, tap in sweep.taps.items()}
    timed = [
        row for row in record.rows if row["target"] in means and row["target"] in worth and "@" not in row["target"]
    ]
    slowest = sorted(timed, key=lambda row: -(row["ms"].value or 0.0))[:most_layers]
    if len(slowest) < len(timed):
        reason = f"tried for the {len(slowest)} slowest of {len(timed)} layers"
        record.uncovered.append(Uncovered(target="removable", reason=reason))
    params |= {"images": n, "choosing": len(choosing), "measuring": len(measuring)}
    params |= {"limit": MOST_KL if y is None else MOST_ACCURACY, "measure": "kl" if y is None else "accuracy"}
    replays = list(recorded(net, images[measuring]))
    for row in slowest:
        address = row["target"]
        least = np.argsort(worth[address][0], kind="stable")
        groups = [[f"{address}:{k}" for k in least[: max(1, round(s * len(least)))]] for s in SHARES]
        share, effect = _largest(net, replays, y, groups, means, output)
        row["removable"], row["removable_effect"] = share, effect


def _largest(
    net: nn.Module,
    replays: Sequence[Replay],
    y: Tensor | None,
    groups: Sequence[Sequence[str]],
    means: dict[str, np.ndarray],
    output: Output,
) -> tuple[float, Value | None]:
    """By halving: the largest share of SHARES whose removal stays below the limit, and what it costs."""
    lo, hi, effect = 0, len(groups), None
    while lo < hi:
        middle = (lo + hi + 1) // 2
        whole, after = removed(net, replays, [groups[middle - 1]], output, means)
        if y is None:
            changes = divergence(whole, after)
            fits = float(changes.mean()) < MOST_KL
        else:
            right = (whole.argmax(1) == y).double()
            changes = ((after.argmax(2) == y).double() - right).numpy()
            fits = -float(changes.mean()) < MOST_ACCURACY
        if fits:
            lo, effect = middle, effects.paired(changes, 0.95, 200, np.random.default_rng(0))[0]
        else:
            hi = middle - 1
    return (SHARES[lo - 1] if lo else 0.0), effect


def net_answer(net: nn.Module, x: Tensor) -> object:
    with evaluating(net):
        return net(x)
