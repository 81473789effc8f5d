"""Remove one kernel, and nothing else: the scores before and after, and what it costs over many images.

The headline effect is the paired change of the per-image loss: it moves long before an answer flips. Accuracy comes
second, with the counts of lost and gained answers and McNemar's exact test on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.errors import DataError, unknown
from hubel.inspect.effects import benjamini_hochberg, bootstrap, mcnemar, sign_flip
from hubel.inspect.hooks import evaluating, watch
from hubel.inspect.running import run
from hubel.records import Array, Column, Method, Record, Value

COLUMNS = [
    Column(name="loss_change", unit="nats", better="down"),
    Column(name="accuracy_change", unit="share of images", better="up"),
    Column(name="lost", unit="images", better="down"),
    Column(name="gained", unit="images", better="up"),
    Column(name="p_loss", unit="", better=None),
    Column(name="p_accuracy", unit="", better=None),
]
UNLABELLED_COLUMNS = [
    Column(name="kl", unit="nats", better="down"),
    Column(name="changed", unit="images", better="down"),
]
_BATCH = 256


@contextmanager
def without(
    net: nn.Module, kernels: str | Sequence[str], means: Mapping[str, np.ndarray] | None = None
) -> Iterator[nn.Module]:
    """Within the block `net` runs as if `kernels` ("conv1:3", or several) were not there.

    Their feature maps are zero at the tap; or, given `means`, by layer (K,), everywhere the kernel's mean.
    """
    gone: dict[str, list[int]] = {}
    for kernel in [kernels] if isinstance(kernels, str) else kernels:
        address, _, index = kernel.rpartition(":")
        gone.setdefault(address, []).append(int(index))

    def replaced(where: str, tensor: Tensor) -> Tensor:
        address = where.partition("@")[0]  # a module that is called twice loses its kernel in both
        if address not in gone:
            return tensor
        chosen = gone[address]
        mean = None if means is None else means.get(where, means.get(address))
        values = tensor.new_zeros(len(chosen)) if mean is None else torch.as_tensor(mean[chosen]).to(tensor)
        tensor = tensor.clone()
        tensor[:, chosen] = values.view(-1, *[1] * (tensor.ndim - 2))
        return tensor

    with watch(net, edit=replaced, keep=False):
        yield net


def ablation(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    kernels: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    keep_scores: int = 16,
) -> Record:
    """Remove each of `kernels` in turn ("conv1:3"; default: every kernel there is) and run images (N, C, H, W).

    With labels (N,), a row holds the mean change of the cross-entropy of an image, and of the accuracy; without, the
    Kullback-Leibler divergence from the whole network's answer, and how many answers changed. Intervals: bootstrap over
    images, percentile; where no answer changed, the exact binomial bound. Tests: sign flips for the loss, McNemar's
    exact test for the accuracy; `decided` says that Benjamini-Hochberg over all rows keeps the effect at 1 - level.

    Arrays, if there are at most `keep_scores` images: `scores` (N, classes) and `scores_without` (kernels, N, classes).
    """
    start = time.perf_counter()
    calls, output = run(net, images[:1])
    known = [f"{c.address}:{k}" for c in calls if "@" not in c.address for k in range(c.output.shape[1])]
    chosen = list(known if kernels is None else kernels)
    for name in chosen:
        if name not in known:
            raise unknown("kernel", name, known)
    if not isinstance(output, Tensor) or output.ndim != 2 or (labels is not None and len(labels) != len(images)):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(
            "Ablation compares scores, one row an image, and labels, one an image. Received: scores of shape "
            f"{got} for one image, {len(images)} images, {'no' if labels is None else len(labels)} labels."
        )

    whole = _scores(net, images)
    maimed = []
    for name in chosen:
        with without(net, name):
            maimed.append(_scores(net, images))
    after = torch.stack(maimed) if maimed else whole.new_zeros((0, *whole.shape))

    record = Record(id="ablation", kind="ablation", level="kernel")
    params = {"images": len(images), "level": level, "resamples": resamples, "seed": seed, "kernels": len(chosen)}
    record.method = Method(name="feature map set to zero at the tap", params=params, source="")
    rng = np.random.default_rng(seed)
    if labels is None:
        record.columns, record.rows = UNLABELLED_COLUMNS, _unlabelled_rows(chosen, whole, after, level, resamples, rng)
    else:
        record.columns = COLUMNS
        record.rows = _labelled_rows(chosen, whole, after, labels.cpu().long(), level, resamples, rng)
    if len(images) <= keep_scores:
        record.arrays = {"scores": Array(whole.numpy()), "scores_without": Array(after.numpy())}
    record.seconds = time.perf_counter() - start
    return record


def _scores(net: nn.Module, images: Tensor) -> Tensor:
    with evaluating(net):
        return torch.cat([net(part).float().cpu() for part in images.split(_BATCH)])


def _labelled_rows(
    names: list[str],
    whole: Tensor,
    after: Tensor,
    labels: Tensor,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict]:
    N = len(labels)
    if N and not (0 <= int(labels.min()) and int(labels.max()) < whole.shape[1]):
        raise DataError(
            f"Labels count the {whole.shape[1]} scores from 0. Received: {int(labels.min())} to {int(labels.max())}."
        )
    loss = F.cross_entropy(whole, labels, reduction="none")
    right = whole.argmax(1) == labels
    changes = np.stack([(F.cross_entropy(a, labels, reduction="none") - loss).double().numpy() for a in after])
    # What happened to each answer: 1 gained, -1 lost, 0 as before.
    turns = np.stack([((a.argmax(1) == labels).int() - right.int()).double().numpy() for a in after])
    lost, gained = (turns < 0).sum(1).tolist(), (turns > 0).sum(1).tolist()
    p_loss = sign_flip(changes, resamples, rng)
    p_accuracy = [mcnemar(down, up) for down, up in zip(lost, gained, strict=True)]
    decided_loss, decided_accuracy = (benjamini_hochberg(p, 1 - level) for p in (p_loss, p_accuracy))
    (loss_lo, loss_hi), (turn_lo, turn_hi) = (
        bootstrap(d, level, resamples, np.random.default_rng(rng.integers(2**32))) for d in (changes, turns)
    )

    rows = []
    for i, name in enumerate(names):
        change = Value(
            float(changes[i].mean()), loss_lo[i], loss_hi[i], level, N, "images", "bootstrap", decided_loss[i]
        )
        if lost[i] or gained[i]:
            bounds, how = (turn_lo[i], turn_hi[i]), "bootstrap"
        else:
            # No answer changed among N: at this level the true share that would is below the bound, either way.
            bound = 1 - ((1 - level) / 2) ** (1 / N)
            bounds, how = (-bound, bound), "binomial, zero events"
        accuracy = Value(float(turns[i].mean()), *bounds, level, N, "images", how, decided_accuracy[i])
        counts = {"lost": lost[i], "gained": gained[i], "p_loss": p_loss[i], "p_accuracy": p_accuracy[i]}
        rows.append({"target": name, "loss_change": change, "accuracy_change": accuracy, **counts})
    return rows


def _unlabelled_rows(
    names: list[str], whole: Tensor, after: Tensor, level: float, resamples: int, rng: np.random.Generator
) -> list[dict]:
    logp = F.log_softmax(whole, 1)
    kl = [F.kl_div(F.log_softmax(a, 1), logp, reduction="none", log_target=True).sum(1).double().numpy() for a in after]
    lo, hi = bootstrap(np.stack(kl), level, resamples, rng)
    rows = []
    for i, (name, a) in enumerate(zip(names, after, strict=True)):
        value = Value(float(kl[i].mean()), lo[i], hi[i], level, len(kl[i]), "images", "bootstrap")
        rows.append({"target": name, "kl": value, "changed": int((a.argmax(1) != whole.argmax(1)).sum())})
    return rows
