"""What the network's answers owe to a kernel: measured by removing it, or estimated from gradients.

The headline is the paired change of the per-image loss when the kernel is gone (without labels: the Kullback-Leibler
divergence from the whole network's answer), with its interval over images; accuracy comes second. A kernel that matters
little alone may share its work with another: see `redundancy` for pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.errors import DataError, unknown
from hubel.inspect import effects
from hubel.inspect.ablation import without
from hubel.inspect.gradients import products
from hubel.inspect.replay import Replay, recorded
from hubel.inspect.running import Output, run, scores_of
from hubel.inspect.sweep import Sweep
from hubel.records import Array, Column, Method, Record, Uncovered, Value

TAYLOR = "Molchanov et al. 2019, arXiv 1906.10771"
# A class with fewer images says nothing of itself.
CLASS_IMAGES = 30
# Of the kernels to be measured, this share is drawn at random, so that the rest of the layer is known, too.
DRAWN = 0.5

_TAYLOR = [Column(name="taylor", unit="nats²", better=None), Column(name="first_order", unit="nats", better=None)]
LABELLED = [
    Column(name="loss_change", unit="nats", better="down"),
    Column(name="accuracy_change", unit="share of images", better="up"),
    Column(name="lost", unit="images", better="down"),
    Column(name="gained", unit="images", better="up"),
    Column(name="p_loss", unit="", better=None),
    Column(name="p_accuracy", unit="", better=None),
    *_TAYLOR,
    Column(name="drawn", unit="1 if drawn at random", better=None),
]
UNLABELLED = [
    Column(name="kl", unit="nats", better="down"),
    Column(name="changed", unit="images", better="down"),
    *_TAYLOR,
    Column(name="drawn", unit="1 if drawn at random", better=None),
]


def importance(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    method: Literal["ablation", "taylor"] = "ablation",
    kernels: Sequence[str] | None = None,
    most: int = 64,
    value: Literal["zero", "mean"] = "zero",
    output: Output = None,
    sweep: Sweep | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Record:
    """A row a kernel of images (N, C, H, W), labels (N,).

    method "taylor", every kernel: `taylor`, the mean over images of (Σ a·∂L/∂a)² at the tap, and `first_order`, the
    mean of −Σ a·∂L/∂a, which estimates the change of the loss L when the kernel goes. Without labels L is the
    cross-entropy with the network's own answer.
    method "ablation", at most `most` kernels (or `kernels`): really removed, at the tap, by zeros or by the kernel's
    `mean` (needs a `sweep`). Unless that is all of them, half of the images choose (half of the kernels by `taylor`,
    half at random, `drawn`), and effects are measured on the other half. `decided` says that Benjamini-Hochberg over
    everything tested here, classes included, keeps the effect. Where no answer changed, the exact bound stands.

    Arrays (ablation): for every layer `conv1:taylor` and `conv1:first_order` (kernels,), so that those that were not
    removed have an estimate, too. With labels `classes` (C,), those with 30 images or more; `class_effect` (kernels, C,
    3): mean change of the loss and its interval; `class_decided` (kernels, C).

    Source: Molchanov et al. 2019 (arXiv 1906.10771); McNemar 1947; Benjamini and Hochberg 1995.
    """
    start = time.perf_counter()
    if method not in ("ablation", "taylor"):
        raise unknown("method of importance", method, ["ablation", "taylor"])
    calls, answer = run(net, images[:1], keep=False)
    known = [f"{c.address}:{k}" for c in calls if "@" not in c.address for k in range(c.activation.shape[1])]
    for name in kernels or ():
        if name not in known:
            raise unknown("kernel", name, known)
    check_labels(labels, len(images), scores_of(answer, 1, output).shape[1])

    params: dict[str, Any] = {"method": method, "images": len(images), "level": level, "seed": seed, "value": value}
    record = Record("importance", "importance", level="kernel")
    record.method = Method(name=method, params=params, source=TAYLOR if method == "taylor" else "")
    if method == "taylor":
        _taylor_rows(record, net, images, labels, output, known if kernels is None else list(kernels))
    else:
        means = None if value == "zero" else _means(sweep)
        _ablation_rows(record, net, images, labels, output, known, kernels, most, means, (level, resamples, seed))
    record.seconds = time.perf_counter() - start
    return record


def check_labels(labels: Tensor | None, images: int, classes: int) -> None:
    """DataError unless there are none, or one for each image that counts the network's scores from 0."""
    if labels is None:
        return
    if len(labels) != images:
        raise DataError(f"Labels are one an image. Received: {len(labels)} for {images} images.")
    if images and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise DataError(
            f"Labels count the {classes} scores from 0. Received: {int(labels.min())} to {int(labels.max())}."
        )


def taylor(
    net: nn.Module, images: Tensor, labels: Tensor | None, output: Output = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each layer (K,), (K,): the mean over images of (Σ a·∂L/∂a)², and of −Σ a·∂L/∂a. Calls of a module add up."""

    def loss(answer: object, at: int, n: int) -> Tensor:
        found = scores_of(answer, n, output)
        truth = found.detach().argmax(1) if labels is None else labels[at : at + n].to(found.device)
        return F.cross_entropy(found, truth, reduction="sum")

    terms: dict[str, np.ndarray] = {}
    for address, part in products(net, images, loss).items():
        module = address.partition("@")[0]
        terms[module] = terms[module] + part if module in terms else part
    return {
        address: (np.square(t, dtype=np.float64).mean(0), -t.mean(0, dtype=np.float64)) for address, t in terms.items()
    }


def _taylor_rows(
    record: Record, net: nn.Module, images: Tensor, labels: Tensor | None, output: Output, names: list[str]
) -> None:
    record.columns = list(_TAYLOR)
    found = taylor(net, images, labels, output)
    for name in names:
        address, k = split(name)
        if address in found:
            square, first = found[address]
            record.rows.append({"target": name, "taylor": float(square[k]), "first_order": float(first[k])})
    for address in dict.fromkeys(split(name)[0] for name in names):
        if address not in found:
            record.uncovered.append(Uncovered(target=address, reason="the scores do not depend on it"))


def _means(sweep: Sweep | None) -> dict[str, np.ndarray]:
    if sweep is None:
        raise DataError(
            'value="mean" puts a kernel\'s mean in its place. Received: no sweep, which has the means. '
            "Pass sweep=hubel.inspect.sweep(net, images)."
        )
    return {address: tap.means[: sweep.done].mean(0, dtype=np.float64) for address, tap in sweep.taps.items()}


def split(kernel: str) -> tuple[str, int]:
    """("conv1", 3) of "conv1:3"."""
    address, _, k = kernel.rpartition(":")
    return address, int(k)


def _ablation_rows(
    record: Record,
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    output: Output,
    known: list[str],
    kernels: Sequence[str] | None,
    most: int,
    means: dict[str, np.ndarray] | None,
    how: tuple[float, int, int],
) -> None:
    level, resamples, seed = how
    rng = np.random.default_rng(seed)
    chosen, drawn = list(known if kernels is None else kernels), set[str]()
    choosing = measuring = np.arange(len(images))
    if kernels is None and len(known) > most:
        if len(images) < 2:
            raise DataError(
                f"Half of the images choose the kernels to remove, the other half measures. Received: {len(images)} "
                "image. Pass more, or name the kernels."
            )
        order = rng.permutation(len(images))
        choosing, measuring = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    part = None if labels is None else labels[torch.as_tensor(choosing)]
    estimate = taylor(net, images[torch.as_tensor(choosing)], part, output)
    for address, (square, first) in estimate.items():
        record.arrays[f"{address}:taylor"] = Array(square.astype(np.float32), "nats²")
        record.arrays[f"{address}:first_order"] = Array(first.astype(np.float32), "nats")
    if kernels is None and len(known) > most:
        chosen, drawn = choose(known, estimate, most, rng)
        total = f"{len(chosen)} of {len(known):,} kernels: {len(chosen) - len(drawn)} by taylor, {len(drawn)} at random"
        record.uncovered.append(Uncovered(target="other kernels", reason=f"removed were {total}"))
    record.method["params"] |= {
        "kernels": len(chosen),
        "known": len(known),
        "choosing": len(choosing) if len(known) > most and kernels is None else 0,
        "measuring": len(measuring),
    }
    x = images[torch.as_tensor(measuring)]
    y = None if labels is None else labels[torch.as_tensor(measuring)].cpu().long()
    whole, after = removed(net, recorded(net, x), chosen, output, means)
    record.method["params"]["measured"] = len(whole)
    rows = (
        _unlabelled(record, chosen, whole, after, level, resamples, rng)
        if y is None
        else _labelled(record, chosen, whole, after, y[: len(whole)], level, resamples, rng)
    )
    for row in rows:
        address, k = split(row["target"])
        found = estimate.get(address)
        row |= {
            "taylor": None if found is None else float(found[0][k]),
            "first_order": None if found is None else float(found[1][k]),
            "drawn": int(row["target"] in drawn),
        }
    record.rows = rows


def choose(
    known: list[str], estimate: dict[str, tuple[np.ndarray, np.ndarray]], most: int, rng: np.random.Generator
) -> tuple[list[str], set[str]]:
    """`most` kernels in the network's order: the largest estimates, and as many of the rest at random (the set)."""
    worth = np.array([float(estimate[a][0][k]) if a in estimate else 0.0 for a, k in map(split, known)])
    top = np.argsort(-worth, kind="stable")[: most - int(DRAWN * most)]
    rest = np.setdiff1d(np.arange(len(known)), top)
    random = rng.choice(rest, min(len(rest), int(DRAWN * most)), replace=False)
    return [known[i] for i in sorted([*top, *random])], {known[i] for i in random}


def removed(
    net: nn.Module,
    replays: Iterable[Replay],
    groups: Sequence[str | Sequence[str]],
    output: Output = None,
    means: dict[str, np.ndarray] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N, classes) of the whole network, and (groups, N, classes) without each group of kernels in turn.

    replays: of the images, a batch each: `recorded(net, images)`. Ctrl-C after the first batch of images keeps the
    images that are done.
    """
    whole: list[Tensor] = []
    after: list[Tensor] = []
    try:
        for replay in replays:
            x, began, parts = replay.images, replay.began, []
            base = scores_of(replay.answer, len(x), output).cpu()
            for group in groups:
                names = [group] if isinstance(group, str) else list(group)
                first = min((split(name)[0] for name in names), key=lambda a: began.get(a.partition("/")[0], 0))
                with replay.before(first), without(net, names, means):
                    parts.append(scores_of(net(x), len(x), output).cpu())
            whole.append(base)
            after.append(torch.stack(parts) if parts else base.new_zeros((0, *base.shape)))
            del replay, x  # before the next one is recorded
    except KeyboardInterrupt:
        if not whole:
            raise
    return torch.cat(whole), torch.cat(after, 1)


def _labelled(
    record: Record,
    names: list[str],
    whole: Tensor,
    after: Tensor,
    labels: Tensor,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    N = len(labels)
    record.columns = LABELLED
    loss, right = F.cross_entropy(whole.double(), labels, reduction="none"), whole.argmax(1) == labels
    changes = np.stack([(F.cross_entropy(a.double(), labels, reduction="none") - loss).numpy() for a in after])
    turns = np.stack([((a.argmax(1) == labels).int() - right.int()).double().numpy() for a in after])
    lost, gained = (turns < 0).sum(1).tolist(), (turns > 0).sum(1).tolist()

    counts = np.bincount(labels.numpy(), minlength=whole.shape[1])
    classes = np.nonzero(counts >= CLASS_IMAGES)[0]
    tests = len(names) * (1 + len(classes))
    flips = effects.resamples_for(tests, level, resamples)
    p_loss = effects.sign_flip(changes, flips, rng)
    by_class = [changes[:, labels.numpy() == c] for c in classes]
    p_class = [effects.sign_flip(part, flips, rng) for part in by_class]
    decided = effects.benjamini_hochberg([*p_loss, *[p for part in p_class for p in part]], 1 - level)
    p_accuracy = [effects.mcnemar(down, up) for down, up in zip(lost, gained, strict=True)]
    decided_accuracy = effects.benjamini_hochberg(p_accuracy, 1 - level)
    _class_arrays(record, classes, by_class, np.array(decided[len(names) :]), level, resamples, rng)

    loss_values = effects.paired(changes, level, resamples, rng)
    turn_values = effects.paired(turns, level, resamples, rng)
    rows = []
    for i, name in enumerate(names):
        accuracy = turn_values[i]
        if not (lost[i] or gained[i]):
            # No answer changed among N: at this level the share that would is below the bound, either way.
            bound = 1 - ((1 - level) / 2) ** (1 / N)
            accuracy = Value(0.0, -bound, bound, level, N, "images", "binomial, zero events")
        cells = {"loss_change": _decided(loss_values[i], decided[i])}
        cells["accuracy_change"] = _decided(accuracy, decided_accuracy[i])
        counted = {"lost": lost[i], "gained": gained[i], "p_loss": p_loss[i], "p_accuracy": p_accuracy[i]}
        rows.append({"target": name, **cells, **counted})
    return rows


def _class_arrays(
    record: Record,
    classes: np.ndarray,
    by_class: list[np.ndarray],
    decided: np.ndarray,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> None:
    if not len(classes):
        reason = f"a class of its own needs {CLASS_IMAGES} images, and none has them"
        record.uncovered.append(Uncovered(target="classes", reason=reason))
        return
    effect = np.zeros((len(by_class[0]), len(classes), 3))
    for c, changes in enumerate(by_class):
        lo, hi = effects.bootstrap(changes, level, resamples, rng)
        effect[:, c] = np.stack([changes.mean(1), lo, hi], 1)
    record.arrays["classes"] = Array(classes)
    record.arrays["class_effect"] = Array(effect.astype(np.float32), "nats")
    record.arrays["class_decided"] = Array(decided.reshape(len(classes), -1).T.astype(np.uint8))


def _decided(value: Value, decided: bool) -> Value:
    return Value(**{**vars(value), "decided": decided})


def divergence(whole: Tensor, after: Tensor) -> np.ndarray:
    """KL(whole ‖ after) of every image, in nats: (groups, N) of scores (N, classes) and (groups, N, classes)."""
    logp = F.log_softmax(whole.double(), 1)
    return np.stack([(logp.exp() * (logp - F.log_softmax(a.double(), 1))).sum(1).clamp_min(0).numpy() for a in after])


def _unlabelled(
    record: Record,
    names: list[str],
    whole: Tensor,
    after: Tensor,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    record.columns = UNLABELLED
    values = effects.paired(divergence(whole, after), level, resamples, rng)
    changed = [int((a.argmax(1) != whole.argmax(1)).sum()) for a in after]
    return [{"target": n, "kl": values[i], "changed": changed[i]} for i, n in enumerate(names)]
