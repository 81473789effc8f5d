"""All analyses that a network and its images allow, in one go: what `hubel report` and `hubel check` call.

One pass over the images is made first and shared. An analysis that fails takes none of the others with it: its Record
says why. Ctrl-C and a time budget keep what is done; a second call goes on, because finished Records and a half-made
pass are kept (see `store`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hubel.engine.machine import give_back_memory
from hubel.errors import DataError, HubelError, ModelError, unknown
from hubel.inspect import profiles
from hubel.inspect.hooks import evaluating
from hubel.inspect.receptive_field import remembering
from hubel.inspect.running import Output, first_line, run
from hubel.inspect.store import Store, key_of
from hubel.inspect.sweep import Sweep, sweep
from hubel.inspect.training_history import Snapshots
from hubel.ops.override import is_enabled
from hubel.records import Record

Progress = Callable[[float, float, str], None]
Analyses = Mapping[str, Callable[..., Record]]

# Cheap and telling first: with a time budget the rest is what is left out. (`one_number` and `ablation` explain a small
# network to a newcomer; here importance and feature maps stand for them.)
ORDER = (
    "kernels", "checkerboard", "training_history", "top_patches", "dead_kernels", "similarity", "feature_maps",
    "receptive_field", "edges", "contributions", "attribution", "shift", "cost", "redundancy", "importance",
    "tuning_curves",
)  # fmt: skip
WITHOUT_IMAGES = frozenset({"kernels", "checkerboard", "dead_kernels", "redundancy", "training_history"})
SHARED = frozenset({"top_patches", "dead_kernels", "similarity", "contributions", "cost", "redundancy", "importance"})
PICTURED = frozenset({"contributions", "attribution"})  # take `pictured` themselves
NEEDS_DATA = "it needs images; none were given: --data, or images= in Python"


@dataclass
class Look:
    """records: in the order of ORDER. status: "interrupted" after Ctrl-C. sampled: what was not looked at in full, a
    sentence each. sweep: the shared pass, None where there was none."""

    records: list[Record] = field(default_factory=list)
    status: str = "complete"
    sampled: list[str] = field(default_factory=list)
    sweep: Sweep | None = None
    seconds: float = 0.0

    def record(self, name: str) -> Record | None:
        return next((record for record in self.records if record.id == name), None)


def look(
    net: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    analyses: Analyses | None = None,
    only: Sequence[str] | None = None,
    profile: str = "quick",
    shape: Sequence[int] | None = None,
    output: Output = None,
    pictured: Sequence[int] = (0,),
    snapshots: Snapshots | None = None,
    before: Mapping[str, Tensor] | None = None,
    time_budget: float | None = None,
    keep: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Look:
    """Run the analyses named in `only` (all of ORDER by default) on images as the network takes them.

    shape: of one image, (C, H, W), for what can be said without images. pictured: numbers of the images that are
    explained one by one. before: earlier weights, for `kernels`. time_budget: seconds; no analysis starts after that.
    keep: whether results are read from and written to the cache folder.
    """
    if analyses is None:
        from hubel.inspect import ANALYSES

        analyses = ANALYSES
    for word in only or ():
        if word not in analyses:
            raise unknown("analysis", word, analyses)
    start, amount = time.monotonic(), profiles.profile_named(profile)
    names = [name for name in (ORDER if only is None else only) if name in analyses]
    tell = progress or (lambda done, total, stage: None)
    images, labels, sampled = _drawn(images, labels, amount.images, seed)
    found = Look(sampled=sampled)
    store = Store(key_of(net, images, labels)) if keep else None
    # The shared pass counts as one step of the bar.
    total = len(names) + int(images is not None and bool(SHARED & set(names)))
    done = 0
    stack = ExitStack()
    try:
        stack.enter_context(remembering())
        for name in names:
            spent = time.monotonic() - start
            options = _options(name, amount, output, pictured, seed, before, None if images is not None else shape)
            # Of earlier weights and of snapshots only the caller knows whether they are the same.
            kept = None if name == "training_history" or "before" in options else store
            told = {
                **options,
                "pictured": tuple(pictured),
                "profile": profile,
                "engine": is_enabled(),
                "threads": torch.get_num_threads(),
            }
            record = None if kept is None else kept.read(name, told)
            if record is None and time_budget is not None and spent > time_budget:
                reason = f"the time budget of {time_budget:g} s was spent; --only {name} runs it alone"
                record = Record(name, name, status="insufficient_data", reason=reason)
            elif record is None:
                if name in SHARED and images is not None and found.sweep is None:
                    found.sweep = _shared(net, images, output, seed, store, tell, done, total)
                tell(done + int(found.sweep is not None), total, name.replace("_", " "))
                record = _one(
                    name, analyses[name], net, images, labels, options, found.sweep, snapshots, profile, pictured
                )
                give_back_memory()
                if kept is not None and record.status != "failed":
                    kept.write(name, told, record)
            found.records.append(record)
            done += 1
    except KeyboardInterrupt:
        found.status = "interrupted"
    finally:
        stack.close()
    found.sampled += _sampled(found.records)
    if found.sampled and profile == "quick":
        found.sampled.append("--profile full looks at all of it, and goes on where it was stopped")
    tell(total, total, "looked")
    found.seconds = time.monotonic() - start
    return found


def _drawn(
    images: Tensor | None, labels: Tensor | None, most: int, seed: int
) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """At most so many images, with their labels; a sentence if that is not all of them."""
    if images is None or len(images) <= most:
        return images, labels, []
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    said = f"{most} of {len(images):,} images were drawn with seed {seed}"
    return images[chosen], None if labels is None else labels[chosen], [said]


def _sampled(records: Sequence[Record]) -> list[str]:
    """What analyses say that they did not look at."""
    heads = ("tried for", "removed were", "whether they are was tried")
    reasons = [(record.id, item["reason"]) for record in records for item in record.uncovered]
    return [f"{name}: {reason}" for name, reason in reasons if reason.startswith(heads)]


def estimate(net: nn.Module, images: Tensor, *, profile: str = "quick", only: Sequence[str] | None = None) -> float:
    """About how many seconds `look` will take: one timed pass, times what the profile's table says."""
    amount = profiles.profile_named(profile)
    x = images[:4]
    run(net, x[:1], keep=False)
    start = time.perf_counter()
    with evaluating(net):
        net(x)
    each = (time.perf_counter() - start) / len(x)
    wanted = ORDER if only is None else only
    passes = sum(amount.passes.get(name, 0) for name in wanted)
    shared = 2 * min(len(images), amount.images) if SHARED & set(wanted) else 0
    return each * (passes + shared)


def _options(
    name: str,
    amount: profiles.Profile,
    output: Output,
    pictured: Sequence[int],
    seed: int,
    before: Mapping[str, Tensor] | None,
    shape: Sequence[int] | None,
) -> dict[str, Any]:
    options: dict[str, Any] = dict(amount.options.get(name, {}))
    if name in ("importance", "cost", "redundancy", "contributions", "shift", "attribution", "dead_kernels"):
        options["output"] = output
    if name in ("importance", "cost", "redundancy", "contributions", "shift", "top_patches", "dead_kernels"):
        options["seed"] = seed
    if name in PICTURED:
        options["pictured"] = tuple(pictured)
    if name == "kernels" and before is not None:
        options["before"] = before
    if name == "receptive_field" and shape is not None:
        options["shape"] = tuple(shape)
    return options


def _shared(
    net: nn.Module,
    images: Tensor,
    output: Output,
    seed: int,
    store: Store | None,
    tell: Progress,
    done: int,
    total: int,
) -> Sweep | None:
    state = store.read_sweep(len(images)) if store is not None else None
    state = state if state is not None else Sweep(len(images))
    try:
        sweep(
            net,
            images,
            start=state,
            output=output,
            seed=seed,
            progress=lambda n, of: tell(done + n / max(of, 1), total, f"running {of} images"),
        )
    except KeyboardInterrupt:
        if store is not None:
            store.write_sweep(state)
        raise
    except (DataError, ModelError):
        return None  # each analysis says it in its own Record
    if store is not None:
        store.forget_sweep()
    return state


def _one(
    name: str,
    analysis: Callable[..., Record],
    net: nn.Module,
    images: Tensor | None,
    labels: Tensor | None,
    options: dict[str, Any],
    shared: Sweep | None,
    snapshots: Snapshots | None,
    profile: str,
    pictured: Sequence[int],
) -> Record:
    if images is None and name not in WITHOUT_IMAGES and "shape" not in options:
        return Record(name, name, status="not_applicable", reason=NEEDS_DATA)
    if name in SHARED and shared is not None:
        options = {**options, "sweep": shared}
    try:
        if name == "kernels":
            return analysis(net, **options)
        if name in ("feature_maps", "one_number"):
            assert images is not None
            first = [i for i in pictured if 0 <= i < len(images)][:2] or [0]
            return analysis(net, images[first[0]] if name == "one_number" else images[first], **options)
        if name == "training_history":
            return analysis(net, snapshots=snapshots)
        if name in ("importance", "ablation") and images is not None:
            most = profiles.IMPORTANCE_IMAGES[profile]
            part = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:most].sort().values
            images, labels = images[part], None if labels is None else labels[part]
        return analysis(net, images, labels, **options)
    except (DataError, ModelError) as error:
        return Record(name, name, status="not_applicable", reason=str(error))
    except HubelError:
        raise
    except Exception as error:
        return Record(name, name, status="failed", reason=f"{type(error).__name__}: {first_line(error)}")
