"""Remove one kernel, and nothing else: the scores before and after, and what it costs over many images.

The headline effect is the paired change of the per-image loss: it moves long before an answer flips. Accuracy comes second,
with the counts of lost and gained answers and McNemar's exact test on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.errors import DataError, unknown
from hubel.inspect.feature_maps import run
from hubel.inspect.hooks import watch
from hubel.records import Array, Column, Method, Record, Value

COLUMNS = [
    Column(name="loss_change", unit="nats", better="down"),
    Column(name="accuracy_change", unit="share of images", better="up"),
    Column(name="lost", unit="images", better="down"),
    Column(name="gained", unit="images", better="up"),
    Column(name="p_loss", unit="", better=None),
    Column(name="p_accuracy", unit="", better=None),
]
UNLABELLED_COLUMNS = [Column(name="kl", unit="nats", better="down"), Column(name="changed", unit="images", better="down")]
_BATCH = 256


@contextmanager
def without(net: nn.Module, kernel: str) -> Iterator[nn.Module]:
    """Within the block `net` runs as if `kernel` ("conv1:3") were not there: its feature map is zero at the tap."""
    address, _, index = kernel.rpartition(":")

    def zero(where: str, tensor: Tensor) -> Tensor:
        if where.partition("@")[0] != address:  # a module that is called twice loses its kernel in both
            return tensor
        tensor = tensor.clone()
        tensor.select(1, int(index)).zero_()
        return tensor

    with watch(net, edit=zero, keep=False):
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
    """Remove each of `kernels` in turn ("conv1:3"; default: every kernel of every convolution) and run images (N, C, H, W).

    With labels (N,), a row holds the mean change of the cross-entropy of an image, and of the accuracy; without, the
    Kullback-Leibler divergence from the whole network's answer, and how many answers changed. Intervals: bootstrap over
    images, percentile; where no answer changed, the exact binomial bound. Tests: sign flips for the loss, McNemar's exact
    test for the accuracy; `decided` says that Benjamini-Hochberg over all rows keeps the effect at 1 - level.

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
            "Ablation compares scores, one row an image, and labels, one an image. "
            f"Received: scores {got} for one image, {len(images)} images, {'no' if labels is None else len(labels)} labels."
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
    training = [(m, m.training) for m in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            return torch.cat([net(part).float().cpu() for part in images.split(_BATCH)])
    finally:
        for module, mode in training:
            module.training = mode


def _labelled_rows(
    names: list[str], whole: Tensor, after: Tensor, labels: Tensor, level: float, resamples: int, rng: np.random.Generator
) -> list[dict]:
    N = len(labels)
    if N and not (0 <= int(labels.min()) and int(labels.max()) < whole.shape[1]):
        raise DataError(
            f"Labels count the {whole.shape[1]} scores from 0. Received: {int(labels.min())} to {int(labels.max())}."
        )
    loss = F.cross_entropy(whole, labels, reduction="none")
    right = whole.argmax(1) == labels
    changes = np.stack([(F.cross_entropy(a, labels, reduction="none") - loss).double().numpy() for a in after])
    p_loss = [sign_flip(d, resamples, rng) for d in changes]
    lost = [int((right & (a.argmax(1) != labels)).sum()) for a in after]
    gained = [int((~right & (a.argmax(1) == labels)).sum()) for a in after]
    p_accuracy = [mcnemar(down, up) for down, up in zip(lost, gained, strict=True)]
    decided_loss, decided_accuracy = (benjamini_hochberg(p, 1 - level) for p in (p_loss, p_accuracy))

    rows = []
    for i, name in enumerate(names):
        lo, hi = bootstrap(changes[i], level, resamples, rng)
        value = float(changes[i].mean())
        cells = {"loss_change": Value(value, lo, hi, level, N, "images", "bootstrap", decided_loss[i])}
        cells["accuracy_change"] = _accuracy_change(lost[i], gained[i], N, level, resamples, rng, decided_accuracy[i])
        counts = {"lost": lost[i], "gained": gained[i], "p_loss": p_loss[i], "p_accuracy": p_accuracy[i]}
        rows.append({"target": name, **cells, **counts})
    return rows


def _unlabelled_rows(
    names: list[str], whole: Tensor, after: Tensor, level: float, resamples: int, rng: np.random.Generator
) -> list[dict]:
    logp = F.log_softmax(whole, 1)
    rows = []
    for name, a in zip(names, after, strict=True):
        kl = F.kl_div(F.log_softmax(a, 1), logp, reduction="none", log_target=True).sum(1).double().numpy()
        lo, hi = bootstrap(kl, level, resamples, rng)
        changed = int((a.argmax(1) != whole.argmax(1)).sum())
        value = Value(float(kl.mean()), lo, hi, level, len(kl), "images", "bootstrap")
        rows.append({"target": name, "kl": value, "changed": changed})
    return rows


def _accuracy_change(
    lost: int, gained: int, N: int, level: float, resamples: int, rng: np.random.Generator, decided: bool
) -> Value:
    if lost == gained == 0:
        # No answer changed among N: at the given level the true share that would is below this, either way.
        bound = 1 - ((1 - level) / 2) ** (1 / N)
        return Value(0.0, -bound, bound, level, N, "images", "binomial, zero events", decided)
    changes = np.concatenate([-np.ones(lost), np.ones(gained), np.zeros(N - lost - gained)])
    lo, hi = bootstrap(changes, level, resamples, rng)
    return Value((gained - lost) / N, lo, hi, level, N, "images", "bootstrap", decided)


def bootstrap(values: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of the mean of `values`, drawn with replacement `resamples` times."""
    N = len(values)
    means = rng.multinomial(N, np.full(N, 1 / N), size=resamples) @ values / N
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def sign_flip(changes: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of "the changes are symmetric about zero", by flipping signs at random; never below 1/(resamples + 1)."""
    signs = rng.integers(0, 2, size=(resamples, len(changes))) * 2 - 1
    as_extreme = np.abs(signs @ changes) >= abs(changes.sum()) * (1 - 1e-12)
    return float((1 + as_extreme.sum()) / (resamples + 1))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p of "an answer that changes is as likely lost as gained": the binomial test with 1/2."""
    n, k = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def benjamini_hochberg(p: Sequence[float], rate: float) -> list[bool]:
    """Which of the tests stay when at most a share `rate` of those that stay may be false."""
    order = np.argsort(p, kind="stable")
    limits = rate * np.arange(1, len(p) + 1) / max(len(p), 1)
    passing = np.nonzero(np.asarray(p, dtype=float)[order] <= limits)[0]
    kept = set(order[: passing[-1] + 1].tolist()) if len(passing) else set()
    return [i in kept for i in range(len(p))]
