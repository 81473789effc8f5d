"""What stripes a kernel answers to: their angle and frequency, and the hue; or none, which is an answer too.

Kernels that read the image, and depthwise ones, say it themselves: the zero-padded DFT of their weights is their answer
to every grating (summed over the channels they read). Elsewhere gratings are shown to the network: all angles,
frequencies and phases, the mean of the kernel's activation over its map and over phases (Harris et al. 2020, arXiv
2010.02634).

    angle        of the stripes, 0 to 180 degrees, as one sees them: 0 lies flat, 90 stands
    frequency    cycles per input pixel (for depthwise kernels: per pixel of the map they read)
    selectivity  |Σ R(θ) e^(2iθ)| / Σ R(θ), 1 − circular variance: 1 answers to one angle, 0 to all alike

A kernel whose selectivity is below 0.1, or that answers to no grating, is called untuned. Nothing is fitted: a 3×3
kernel has nine numbers and a Gabor function eight.
"""

from __future__ import annotations

import colorsys
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.inspect.hooks import Call
from hubel.inspect.layers import Layer, layers_of
from hubel.inspect.running import BATCH, run
from hubel.inspect.sweep import sweep as sweep_images
from hubel.records import Array, Column, Method, Record, Uncovered

PADDED = 64
UNTUNED = 0.1
COLUMNS = [
    Column(name="angle", unit="degrees of the stripes", better=None),
    Column(name="frequency", unit="cycles per pixel", better=None),
    Column(name="selectivity", unit="1 − circular variance", better=None),
    Column(name="untuned", unit="1 if so", better=None),
    Column(name="dc", unit="answer to no stripes, share of the largest", better=None),
    Column(name="hue", unit="degrees", better=None),
    Column(name="hue_selectivity", unit="1 − circular variance", better=None),
    Column(name="by_weights", unit="1 if from the weights", better=None),
]


def tuning_curves(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    angles: int = 12,
    frequencies: int = 5,
    phases: int = 4,
    hues: int = 8,
    gratings: bool = False,
    seed: int = 0,
) -> Record:
    """A row a kernel. images (N, C, H, W): their size, mean and deviation are those of the gratings.

    gratings: True shows gratings to the kernels that have a DFT, too. Arrays: `angles`, `frequencies`, `hues`: the
    grid; for each layer `conv1` (kernels, angles, frequencies) and, of colour networks, `conv1:hue` (kernels, hues):
    answers.
    """
    del labels
    start = time.perf_counter()
    record = Record("tuning_curves", "tuning_curves", list(COLUMNS), level="kernel")
    if images.ndim != 4:
        record.status, record.reason = "not_applicable", "gratings are images, and the network takes none"
        return record
    calls = {call.address: call for call in run(net, images[:1])[0]}
    layers = layers_of(net)
    H, W = images.shape[2:]
    grid_angles = np.arange(angles) * 180 / angles
    highest, lowest = 0.5, max(1 / min(H, W), 1 / 32)
    grid_frequencies = np.geomspace(lowest, highest / math.sqrt(2), frequencies)
    params: dict[str, Any] = {"input": list(images.shape[1:]), "phases": phases, "untuned": UNTUNED, "seed": seed}
    record.method = Method(name="DFT of weights; gratings", params=params, source="arXiv 2010.02634")
    record.arrays |= {"angles": Array(grid_angles), "frequencies": Array(grid_frequencies)}
    own = {} if gratings else {a for a in calls if a in layers and _reads_itself(layers[a], calls[a], images[:1])}
    for address in own:
        _by_weights(record, layers[address], grid_angles, grid_frequencies)
    rest = [a for a, c in calls.items() if a not in own and c.activation.ndim == 4]
    if rest:
        _by_gratings(record, net, images, rest, grid_angles, grid_frequencies, phases, hues)
    order = {a: i for i, a in enumerate(calls)}
    record.rows.sort(key=lambda row: order[row["target"].rpartition(":")[0]])
    record.seconds = time.perf_counter() - start
    return record


def _reads_itself(layer: Layer, call: Call, image: Tensor) -> bool:
    w = layer.weight
    if w.ndim != 4 or layer.transposed or min(w.shape[2:]) < 2:
        return False
    return (call.input.shape == image.shape and torch.equal(call.input, image)) or (
        w.shape[1] == 1 and layer.groups > 1
    )


def response(w: np.ndarray, angle: float, frequency: float) -> np.ndarray:
    """|answer| of kernels (K, C, k, l) to stripes of an angle (degrees) and frequency, root sum of squares of
    channels."""
    fx, fy = wave(angle, frequency)
    y, x = np.mgrid[: w.shape[2], : w.shape[3]]
    wave_ = np.exp(-2j * np.pi * (fx * x + fy * y))
    return np.sqrt((np.abs((w * wave_).sum((2, 3))) ** 2).sum(1))


def wave(angle: float, frequency: float) -> tuple[float, float]:
    """(fx, fy), cycles per pixel along the columns and the rows (downwards), of stripes at this angle."""
    return frequency * math.sin(math.radians(angle)), frequency * math.cos(math.radians(angle))


def _by_weights(record: Record, layer: Layer, angles: np.ndarray, frequencies: np.ndarray) -> None:
    w = layer.by_kernel().astype(np.float64)
    spectrum = np.sqrt((np.abs(np.fft.fft2(w, (PADDED, PADDED))) ** 2).sum(1))
    f = np.fft.fftfreq(PADDED)
    fy, fx = np.meshgrid(f, f, indexing="ij")
    turn, rate = np.degrees(np.arctan2(fx, fy)) % 180, np.hypot(fx, fy)
    curves = np.stack([[response(w, a, q) for q in frequencies] for a in angles]).transpose(2, 0, 1)
    record.arrays[layer.address] = Array(curves.astype(np.float32))
    striped = (rate > 0) & (rate <= 0.5)
    for k, power in enumerate(spectrum):
        best = int(np.argmax(np.where(striped, power, -1)))
        weights = np.where(striped, power**2, 0)
        total = float(weights.sum())
        select = abs(complex((weights * np.exp(2j * np.radians(turn))).sum())) / total if total > 0 else 0.0
        largest = float(power.max())
        cells = _cells(turn.flat[best], rate.flat[best], select, largest > 0)
        cells["dc"] = float(power[0, 0]) / largest if largest > 0 else None
        record.rows.append({"target": f"{layer.address}:{k}", **cells, **_no_hue(), "by_weights": 1})


def _no_hue() -> dict[str, None]:
    return {"hue": None, "hue_selectivity": None}


def _cells(angle: float, frequency: float, selectivity: float, answers: bool) -> dict[str, Any]:
    untuned = not answers or selectivity < UNTUNED
    kept = {"angle": None, "frequency": None} if untuned else {"angle": float(angle), "frequency": float(frequency)}
    return {**kept, "selectivity": float(selectivity), "untuned": int(untuned)}


def _by_gratings(
    record: Record,
    net: nn.Module,
    images: Tensor,
    layers: list[str],
    angles: np.ndarray,
    frequencies: np.ndarray,
    phases: int,
    hues: int,
) -> None:
    C, H, W = images.shape[1:]
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3)) if images[:, 0].numel() > 1 else torch.ones(C)
    y, x = torch.meshgrid(torch.arange(H, dtype=torch.float64), torch.arange(W, dtype=torch.float64), indexing="ij")
    shown = []
    for a in angles:
        for q in frequencies:
            fx, fy = wave(float(a), float(q))
            for p in range(phases):
                stripes = torch.cos(2 * math.pi * (fx * x + fy * y + p / phases)).float()
                shown.append(mean[:, None, None] + math.sqrt(2) * deviation[:, None, None] * stripes)
    flat = mean[:, None, None].expand(C, H, W)
    colours = []
    if C == 3 and hues:
        for h in range(hues):
            rgb = torch.tensor(colorsys.hsv_to_rgb(h / hues, 1.0, 1.0)) * 2 - 1
            colours.append(mean[:, None, None] + (deviation * rgb)[:, None, None].expand(C, H, W))
        record.arrays["hues"] = Array(np.arange(hues) * 360 / hues)
    found = sweep_images(net, torch.stack([*shown, *colours, flat]), batch=BATCH, correlations=False)
    for address in layers:
        if address not in found.taps or not found.taps[address].finite:
            record.uncovered.append(Uncovered(target=address, reason="its activations cannot be read"))
            continue
        means = found.taps[address].means.astype(np.float64)  # (images, K)
        curves = means[: len(shown)].reshape(len(angles), len(frequencies), phases, -1)
        # Without a rectifier the mean of a grating's answer is zero whatever its size: then its deviation counts.
        answers = curves.mean(2).transpose(2, 0, 1) - means[-1][:, None, None]
        record.arrays[address] = Array(answers.astype(np.float32))
        hue = means[len(shown) : len(shown) + len(colours)].T
        if colours:
            record.arrays[f"{address}:hue"] = Array(hue.astype(np.float32))
        _grating_rows(record, address, answers, hue, means[-1], angles, frequencies)


def _grating_rows(
    record: Record,
    address: str,
    answers: np.ndarray,
    hue: np.ndarray,
    grey: np.ndarray,
    angles: np.ndarray,
    frequencies: np.ndarray,
) -> None:
    turn = np.exp(2j * np.radians(angles))
    for k, curve in enumerate(answers):
        a, q = np.unravel_index(int(curve.argmax()), curve.shape)
        by_angle = np.clip(curve[:, q] - min(float(curve[:, q].min()), 0.0), 0, None)
        total = float(by_angle.sum())
        select = abs(complex((by_angle * turn).sum())) / total if total > 1e-12 else 0.0
        cells = _cells(angles[a], frequencies[q], select, float(curve.max()) > 1e-7)
        cells["dc"] = None
        colour = _no_hue()
        if hue.size:
            over = np.clip(hue[k] - min(float(hue[k].min()), float(grey[k])), 0, None)
            around = complex((over * np.exp(2j * np.pi * np.arange(len(over)) / len(over))).sum())
            some = float(over.sum()) > 1e-12
            share = abs(around) / float(over.sum()) if some else 0.0
            mean_hue = math.degrees(math.atan2(around.imag, around.real)) % 360
            colour = {"hue": mean_hue if share >= UNTUNED else None, "hue_selectivity": share}
        record.rows.append({"target": f"{address}:{k}", **cells, **colour, "by_weights": 0})
