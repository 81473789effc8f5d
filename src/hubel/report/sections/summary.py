"""The head of the page and the sentences it opens with, each made from records and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from hubel.inspect.dead_kernels import THRESHOLDS
from hubel.records import Document, Record, Value
from hubel.report import pictures
from hubel.report.html import Child, Html, join, plain, tag
from hubel.report.parts import class_name, find, image, kernel_alt, kernel_picture, layers_of
from hubel.report.sections.about import images_inside
from hubel.report.sections.speed import strip_plot
from hubel.report.text import NBSP, count, fixed, interval, number, percent, point, shape

_MINI_KERNELS = 6
# Neighbour correlations that differ by less are called the same.
_AS_ROUGH = 0.05


class Sentence(NamedTuple):
    """A number to see from afar, what it means, and a small picture of it."""

    figure: str
    words: Child
    mini: Html | None = None


def header(document: Document) -> Html:
    model, data = document.model, document.data
    of = tag("span", f" on {data['name']}") if data else None
    facts = [count(model["params"], "parameter")]
    record = find(document, "kernels")
    if record is not None:
        layers = record.method["params"]["layers"].values()
        kernels = sum(layer["shape"][0] for layer in layers)
        facts.append(f"{count(kernels, 'kernel')} in {count(len(layers), 'convolution')}")
    n = images_inside(document)
    record = find(document, "images")
    soft = ", blurred" if record is not None and record.method["params"].get("blurred") else ""
    inside = f"{count(n, 'image')} of the data {'is' if n == 1 else 'are'} inside this file{soft}"
    facts += [inside if n else "no image is inside this file", document.created[:10]]
    meta = [[" · " if i else None, tag("span", fact)] for i, fact in enumerate(facts)]
    name = tag("h1", model["name"], of, tag("em", "random weights") if untrained(document) else None)
    return tag("header", tag("p", "hubel", class_="brand"), name, tag("p", *meta, class_="meta"))


def summary(document: Document) -> Html | None:
    items = []
    for figure, words, mini in sentences(document):
        texts = [tag("p", figure, class_="figure"), tag("p", words, class_="sentence")]
        items.append(tag("li", *texts, tag("div", mini, class_="mini") if mini else None))
    if not items:
        return None
    return tag("section", tag("h2", "In short", class_="sr"), tag("ol", *items, class_="sentences"), id="summary")


def sentences(document: Document) -> list[Sentence]:
    """How good, how fast, what the kernels became, what to try next: as many of them as the records tell."""
    found = [_stopped(document), _accuracy(document), _faster(document), _became(document), _next(document)]
    return [sentence for sentence in found if sentence is not None]


def spoken(document: Document) -> list[str]:
    """The same sentences as plain text, for the terminal."""
    return [plain(join(sentence.words)).replace(NBSP, " ") for sentence in sentences(document)]


def _stopped(document: Document) -> Sentence | None:
    if document.status == "complete":
        return None
    return Sentence("Stopped", "This run was interrupted; what was done until then is here.")


def _accuracy(document: Document) -> Sentence | None:
    withheld = next((r for r in document.records if r.id == "accuracy" and r.status != "ok"), None)
    if withheld is not None:
        return Sentence("Labels?", withheld.reason)
    test = find(document, "accuracy")
    value = test.rows[0].get("accuracy") if test is not None else None
    if not isinstance(value, Value) or value.value is None or value.lo is None or value.hi is None:
        return None
    bounds = interval(100 * value.lo, 100 * value.hi, lambda share: fixed(share, 1))
    share = tag("b", f"{percent(value.value)} of {count(value.n or 0, 'image')}")
    seen = " that it had never seen" if find(document, "curves") is not None else ""
    words = ["It reads ", share, f" right{seen} ({round(100 * value.level)}{NBSP}% interval {bounds}{NBSP}%)."]
    return Sentence(percent(value.value), words, _interval_plot(value))


def _interval_plot(value: Value) -> Html:
    lo, middle, hi = value.lo or 0.0, value.value or 0.0, value.hi or 0.0
    left = max(0.0, min(0.9, float(np.floor(lo * 20 - 0.6)) / 20))
    at = [100 * (share - left) / (1 - left) for share in (lo, middle, hi)]
    marks = [
        tag("i", class_="whisker", style=f"left:{at[0]:.2f}%;width:{at[2] - at[0]:.2f}%"),
        tag("i", class_="dot after", style=f"left:{at[1]:.2f}%"),
    ]
    ends = tag("div", tag("span", percent(left, 0)), tag("span", percent(1.0, 0)), class_="feet")
    alt = f"Accuracy {percent(middle)}, interval {interval(lo, hi, percent)}"
    return tag("div", tag("span", *marks, class_="dumbbell"), ends, role="img", aria_label=alt)


def _faster(document: Document) -> Sentence | None:
    step = find(document, "step")
    if step is None:
        return None
    rows = {row["target"]: row for row in step.rows}
    ours, theirs = rows.get("hubel"), rows.get(step.method["params"].get("torch"))
    ratio = ours.get("x torch") if ours else None
    if ours is None or theirs is None or not isinstance(ratio, Value) or ratio.value is None:
        return None
    times = f"{number(point(ours['ms']) or 0.0)}{NBSP}ms against {number(point(theirs['ms']) or 0.0)}{NBSP}ms"
    slower = count(round(ours["slower"] * (ratio.n or 0)), "round")
    spread = f"nine steps in ten {fixed(ours['p5 x torch'])}× to {fixed(ours['p95 x torch'])}×"
    spread += f", slower in {slower} of {ratio.n}"
    machine = f"{_machine(document)}, {count(document.settings['threads'], 'thread')}"
    evidence = f"{times} ({spread}; {machine})."
    mini = strip_plot(step.arrays["ratios"].data, small=True) if "ratios" in step.arrays else None
    if ratio.decided:
        by = ratio.value if ratio.value >= 1 else 1 / ratio.value
        verdict = tag("b", f"{fixed(by)} times {'faster' if ratio.value >= 1 else 'slower'}")
        words: Child = ["Its training step is ", verdict, " than PyTorch's in the same process: ", evidence]
    else:
        verdict = tag("b", "these rounds do not decide")
        words = ["Whether its training step is faster than PyTorch's, ", verdict, ": ", evidence]
    return Sentence(f"{fixed(ratio.value)}×{'' if ratio.decided else f'{NBSP}?'}", words, mini)


def _machine(document: Document) -> str:
    return next((str(document.machine[key]) for key in ("name", "cpu") if document.machine.get(key)), "this machine")


def _became(document: Document) -> Sentence | None:
    record = find(document, "kernels")
    if record is None or not record.method["params"]["layers"]:
        return None
    address, info = next(iter(layers_of(record).items()))
    rows = [row for row in record.rows if row["target"].rpartition(":")[0] == address]
    mini = _row_of_kernels(record, address)
    moved = _mean(row.get("moved") for row in rows)
    if moved is not None:
        kernels = tag("b", f"{count(len(rows), 'kernel')} of {address}")
        length = f" by {percent(moved, 0)} of their length on average"
        words = ["Training moved the ", kernels, length, _smoother(rows), _costliest(document)]
        return Sentence(percent(moved, 0), words, mini)
    norms = [row["norm"] for row in rows]
    # The weakest that is there at all: decayed to nothing is a finding, and no kernel to compare with.
    there = [norm for norm in norms if norm > THRESHOLDS["weight_dead"] * max(norms)]
    times = number(max(there) / min(there), 2) if there else None
    spread = f"; the strongest is {times} times as strong as the weakest" if times else ""
    if there and len(there) < len(norms):
        spread += f", {len(norms) - len(there)} without weights left aside"
    what = f", has {count(len(rows), 'kernel')} of {shape(info['shape'][2:])} on {count(info['shape'][1], 'channel')}"
    words = ["Its first convolution, ", tag("b", address), f"{what}{spread}."]
    if untrained(document):
        words = [tag("b", "Its weights are random"), ": nothing here has been learned yet. ", *words]
    return Sentence(f"{len(rows)}", words, mini)


def untrained(document: Document) -> bool:
    """Whether the weights are random, and no training of theirs is on record."""
    return document.model["weights"] == "random" and find(document, "curves") is None


def _smoother(rows: list[dict]) -> str:
    before, after = (_mean(row.get(name) for row in rows) for name in ("smoothness_before", "smoothness"))
    if before is None or after is None:
        return ""
    word = "as rough as they were" if abs(after - before) < _AS_ROUGH else "smoother" if after > before else "rougher"
    verb = "stayed" if word.startswith("as") else "became"
    now, then = fixed(after, plus=True), fixed(before, plus=True)
    return f"; they {verb} {word} (neighbouring weights correlate {now}, at the start {then})"


def _costliest(document: Document) -> str:
    effects = find(document, "ablation")
    if effects is None or not effects.rows or "loss_change" not in effects.rows[0]:
        return "."
    worst = max(effects.rows, key=lambda row: point(row["loss_change"]) or 0.0)
    missed = [row for row in effects.rows if row["loss_change"].decided and row["loss_change"].value > 0]
    if not missed:
        return f". Of all {len(effects.rows)} kernels, none is missed when it is removed alone."
    n = effects.method["params"]["images"]
    counts = f"{count(worst['lost'], 'answer')} of {n:,} lost, {worst['gained']:,} gained"
    removed = f"{len(missed)} are missed when removed; most of all {worst['target']}: {counts}"
    return f". Of all {len(effects.rows)} kernels, {removed}."


def _row_of_kernels(record: Record, address: str) -> Html | None:
    limit = record.method["params"]["layers"][address]["limit"]
    weights = record.arrays[address].data
    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or max(weights.shape[2:]) == 1:
        return None
    tiles = []
    for j, k in enumerate(record.arrays[f"{address}:kernels"].data[:_MINI_KERNELS]):
        rgb = weights.shape[1] == 3
        picture = pictures.colour(weights[j], -limit, limit) if rgb else kernel_picture(weights[j], limit)
        tiles.append(image(picture, kernel_alt(f"{address}:{k}", weights[j]), width=42))
    return tag("div", *tiles, class_="thumbs")


def _next(document: Document) -> Sentence:
    """One thing to do now, out of what was found; with a command that can be copied."""
    if find(document, "ablation_scores") is not None and not untrained(document):
        do, own = (
            tag("b", "remove kernels one at a time"),
            tag("code", "hubel report your.module:factory --data FOLDER"),
        )
        then = [" below, and see what the answers hang on; then open your own network: ", own, "."]
        return Sentence("Next", [_commonest_mistake(document), do, *then])
    if untrained(document):
        train, load = tag("code", "hubel train ARCH --data DATA"), tag("code", "--weights FILE")
        return Sentence("Next", ["Train it (", train, ") or give its weights (", load, "), and look again."])
    if find(document, "feature_maps") is None:
        more = tag("code", "hubel report MODEL --data FOLDER")
        return Sentence("Next", ["Give it images, and see what these kernels make of them: ", more, "."])
    if find(document, "ablation_scores") is not None:
        return Sentence(
            "Next", [tag("b", "Remove kernels one at a time"), " below, and see what the answers owe to each."]
        )
    call = tag("code", "hubel.inspect.ablation(net, images, labels, kernels=[…])")
    return Sentence("Next", ["Remove kernels one at a time, and see what the answers owe to each: ", call, "."])


def _commonest_mistake(document: Document) -> str:
    classes = find(document, "classes")
    if classes is None or "confusion" not in classes.arrays:
        return "Now "
    mistakes = classes.arrays["confusion"].data.astype(int)
    mistakes = mistakes - np.diag(np.diag(mistakes))
    truth, answer = (int(k) for k in np.unravel_index(int(mistakes.argmax()), mistakes.shape))
    times = int(mistakes[truth, answer])
    if not times:
        return "Now "
    names = f"{class_name(document, truth)} for {class_name(document, answer)}"
    return f"It most often takes {names} ({count(times, 'time')}): "


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
