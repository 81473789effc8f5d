"""One pass over the images that serves many analyses: maxima and their places, firing, means, correlations, scores.

Every activation is looked at while the network runs, at its tap, and not kept: what stays of a batch are a few numbers
a kernel and image. Memory is therefore bounded by images × kernels (16 bytes each) and, for correlations, by the square
of a layer's kernels, whatever the size of the images; 500 images through ResNet-50 have 22 GB of activations and leave
0.6 GB. A Sweep knows how far it has come, so an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import DataError
from hubel.inspect.hooks import Call, watch
from hubel.inspect.running import BATCH, Output, in_batches, run, scores_of

# Places of a map that correlations are taken from, in each image: neighbours say much the same.
PLACES = 16
# Wider layers are not correlated: their table would have more than 4 million pairs.
WIDEST = 2048
# A smooth bounded activation never reaches its bounds; this close to one (a share of the span) it is saturated.
AT_BOUND = 0.01

Progress = Callable[[int, int], None]


@dataclass
class Tap:
    """What was gathered at one tap: K kernels, N images, P places of a map. Kernels are the last axis of all arrays.

    maxima, where: of each image's map, the largest activation and its place (flat), (N, K). means: (N, K).
    lowest, total, squares, positive, bounded: over all images and places, (K,): the smallest activation, sum, sum of
        squares, how many are > 0, and at a bound. fired: images with any activation > 0, (K,).
    products: sums of products of the activations of two kernels at `samples` places, (K, K), about `origin` (K,); None
        for layers that are too wide. moments: their own sums about the origin, (K,).
    """

    address: str
    tap: str
    bounds: tuple[float, float] | None
    size: tuple[int, ...]
    maxima: np.ndarray
    where: np.ndarray
    means: np.ndarray
    lowest: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    positive: np.ndarray
    bounded: np.ndarray
    fired: np.ndarray
    finite: bool = True
    samples: int = 0
    origin: np.ndarray | None = None
    moments: np.ndarray | None = None
    products: np.ndarray | None = None

    @property
    def kernels(self) -> int:
        return self.maxima.shape[1]

    @property
    def places(self) -> int:
        """Activations a map."""
        return int(np.prod(self.size, dtype=np.int64))

    def correlations(self) -> np.ndarray | None:
        """Pearson correlation of the activations of every two kernels, (K, K); NaN for a kernel that does not vary."""
        if self.products is None or self.moments is None or self.samples < 2:
            return None
        mean = self.moments / self.samples
        covariance = self.products / self.samples - np.outer(mean, mean)
        deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
        # What is left of a constant after rounding is no variation.
        scale = np.abs(self.origin) + np.abs(mean) if self.origin is not None else np.abs(mean)
        deviation = np.where(deviation > 1e-6 * np.maximum(scale, 1e-30), deviation, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return covariance / deviation[:, None] / deviation[None, :]


@dataclass
class Sweep:
    """The taps by address, in the network's order, after `done` of `images`. scores: (N, classes), or None.

    torn: an interrupt came while a batch was being added; such a state is of no use.
    """

    images: int
    done: int = 0
    taps: dict[str, Tap] = field(default_factory=dict)
    scores: np.ndarray | None = None
    unread: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    torn: bool = False

    @property
    def complete(self) -> bool:
        return self.done >= self.images


def sweep(
    net: nn.Module,
    images: Tensor,
    *,
    start: Sweep | None = None,
    output: Output = None,
    batch: int = BATCH,
    correlations: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """Run images (N, C, H, W) through the network once and gather.

    start: an interrupted Sweep over the same images, to go on with; it is filled in place, so that it holds what was
    done when this call is interrupted itself. output: where the scores are, see `running.scores`.
    """
    if len(images) == 0:
        raise DataError("Activations are those of images. Received: none. Pass at least one.")
    begin = time.perf_counter()
    state = Sweep(len(images)) if start is None else start
    layout = {call.address: call for call in run(net, images[:1], keep=False)[0]}
    if not state.taps:
        _prepare(state, layout, correlations)
    rng = np.random.default_rng(seed)
    places = {a: torch.as_tensor(rng.integers(0, tap.places, PLACES)) for a, tap in state.taps.items()}
    rest = images[state.done :]
    for _, (n, parts, answer) in in_batches(rest, batch, lambda x: _looked_at(net, x, layout, places, state)):
        state.torn = True
        _gather(state, parts, n)
        _keep_scores(state, answer, n, output)
        state.done += n
        state.torn = False
        state.seconds += time.perf_counter() - begin
        begin = time.perf_counter()
        if progress is not None:
            progress(state.done, state.images)
    return state


def _prepare(state: Sweep, layout: Mapping[str, Call], correlations: bool) -> None:
    N = state.images
    for address, call in layout.items():
        batched = call.activation.ndim == call.input.ndim and len(call.activation) == 1
        if not batched or call.activation.ndim < 3 or call.activation.numel() == 0:
            state.unread[address] = "its batch is not that of the images, or its maps are empty"
            continue
        K, *size = call.activation.shape[1:]
        wide = {} if K > WIDEST or not correlations else {"moments": np.zeros(K), "products": np.zeros((K, K), "f4")}
        state.taps[address] = Tap(
            address,
            call.tap,
            call.bounds,
            tuple(size),
            maxima=np.zeros((N, K), np.float32),
            where=np.zeros((N, K), np.int32),
            means=np.zeros((N, K), np.float32),
            lowest=np.full(K, np.inf, np.float32),
            total=np.zeros(K),
            squares=np.zeros(K),
            positive=np.zeros(K, np.int64),
            bounded=np.zeros(K, np.int64),
            fired=np.zeros(K, np.int64),
            **wide,  # type: ignore[arg-type]
        )
    if not state.taps:
        raise DataError(
            "Images go through the network as a batch. Received: a network none of whose convolutions keeps it. "
            "Pass a network that leaves the first axis to the images."
        )


Part = tuple[Tensor, ...]


def _looked_at(
    net: nn.Module, x: Tensor, layout: Mapping[str, Call], places: Mapping[str, Tensor], state: Sweep
) -> tuple[int, dict[str, Part], object]:
    """One batch: what every tap had, and the answer. Nothing of the state is touched: memory may still run out."""
    parts: dict[str, Part] = {}

    def read(address: str, stage: str, tensor: Tensor) -> None:
        call = layout.get(address)
        if call is None or call.tap != stage or address not in state.taps or address in parts:
            return
        parts[address] = _numbers(tensor.flatten(2).float(), call.bounds, places[address])

    with watch(net, keep=False, read=read):
        answer = net(x)
    return len(x), parts, answer


def _numbers(flat: Tensor, bounds: tuple[float, float] | None, places: Tensor) -> Part:
    """Of activations (B, K, P): maxima, places, means, lowest, squares, positive (each (B, K)), bounded, samples."""
    # numpy finds the place of a maximum four times as fast as torch does.
    where = torch.from_numpy(flat.numpy().argmax(-1)) if flat.device.type == "cpu" else flat.argmax(-1)
    norm = torch.linalg.vector_norm(flat, dim=-1)
    held = torch.empty_like(flat)
    positive = _count(torch.gt(flat, 0, out=held))
    bounded = torch.zeros_like(positive)
    if bounds is not None:
        margin = AT_BOUND * (bounds[1] - bounds[0])
        bounded = _count(torch.ge(flat, bounds[1] - margin, out=held))
        if bounds[0] < 0:  # at the lower bound of a ReLU6 a kernel is silent, not saturated
            bounded += _count(torch.le(flat, bounds[0] + margin, out=held))
    sampled = flat[:, :, places].transpose(1, 2).reshape(-1, flat.shape[1])
    return flat.amax(-1), where.int(), flat.mean(-1), flat.amin(-1), norm, positive, bounded, sampled


def _count(true: Tensor) -> Tensor:
    """How many along the last axis are 1: in float32, many times as fast as counting truth values."""
    return true.sum(-1).round().long()


def _gather(state: Sweep, parts: Mapping[str, Part], n: int) -> None:
    at = slice(state.done, state.done + n)
    for address, part in parts.items():
        tap = state.taps[address]
        most, where, mean, lowest, norm, positive, bounded, sampled = (t.cpu().numpy() for t in part)
        if not np.isfinite(norm).all():
            tap.finite = False
        tap.maxima[at], tap.where[at], tap.means[at] = most, where, mean
        tap.lowest = np.minimum(tap.lowest, lowest.min(0))
        tap.total += mean.sum(0, dtype=np.float64) * tap.places
        tap.squares += np.square(norm, dtype=np.float64).sum(0)
        tap.positive += positive.sum(0)
        tap.bounded += bounded.sum(0)
        tap.fired += (most > 0).sum(0)
        if tap.products is not None and tap.finite:
            # About the first batch's means: products of numbers near zero lose no digits.
            origin = sampled.mean(0, dtype=np.float64) if tap.origin is None else tap.origin
            tap.origin = origin
            centred = sampled - origin.astype(np.float32)
            tap.products += centred.T @ centred
            assert tap.moments is not None
            tap.moments += centred.sum(0, dtype=np.float64)
            tap.samples += len(sampled)


def _keep_scores(state: Sweep, answer: object, n: int, output: Output) -> None:
    if "scores" in state.unread:
        return
    try:
        found = scores_of(answer, n, output).cpu().numpy()
    except (DataError, LookupError) as error:
        state.unread["scores"], state.scores = str(error), None
        return
    if state.scores is None:
        state.scores = np.zeros((state.images, found.shape[1]), np.float32)
    state.scores[state.done : state.done + n] = found


def to_bytes(state: Sweep) -> bytes:
    """The whole Sweep, uncompressed: an .npz whose entry `about` is JSON. No pickles."""
    arrays: dict[str, np.ndarray] = {} if state.scores is None else {"scores": state.scores}
    about: dict[str, Any] = {key: getattr(state, key) for key in ("images", "done", "unread", "seconds")}
    about["taps"] = []
    for i, tap in enumerate(state.taps.values()):
        plain: dict[str, Any] = {}
        for f in dataclasses.fields(tap):
            value = getattr(tap, f.name)
            if isinstance(value, np.ndarray):
                arrays[f"{i}/{f.name}"] = value
            else:
                plain[f.name] = value
        about["taps"].append(plain)
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(data: bytes) -> Sweep:
    """What `to_bytes` wrote. ValueError or KeyError for anything else."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        about = json.loads(str(archive["about"]))
        state = Sweep(**{key: about[key] for key in ("images", "done", "unread", "seconds")})
        state.scores = archive["scores"] if "scores" in archive.files else None
        for i, plain in enumerate(about["taps"]):
            plain["size"] = tuple(plain["size"])
            plain["bounds"] = plain["bounds"] and tuple(plain["bounds"])
            head = f"{i}/"
            arrays = {name.removeprefix(head): archive[name] for name in archive.files if name.startswith(head)}
            state.taps[plain["address"]] = Tap(**plain, **arrays)
    return state
