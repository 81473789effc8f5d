"""The head of the page and the sentences it opens with, each made from records and nothing else."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record, Value
from hubel.report.html import Child, Html, tag
from hubel.report.parts import class_name, find, image, kernel_alt, kernel_picture
from hubel.report.sections.about import images_inside
from hubel.report.sections.speed import strip_plot
from hubel.report.text import count, fixed, interval, milliseconds, number, percent, point

Row = tuple[str, Child, Html | None]  # the number, the sentence, a small picture
_MINI_KERNELS = 6


def header(document: Document) -> Html:
    model, data = document.model, document.data
    untrained = model["weights"] == "random" and find(document, "curves") is None
    name = tag("h1", model["name"], tag("span", f" on {data['name']}") if data else None, tag("em", "random weights") if untrained else None)
    facts = [count(model["params"], "parameter")]
    record = find(document, "kernels")
    if record is not None:
        layers = record.method["params"]["layers"].values()
        facts.append(f"{count(sum(v['shape'][0] for v in layers), 'kernel')} in {count(len(layers), 'convolution')}")
    n = images_inside(document)
    facts.append(f"{count(n, 'image')} of the data {'is' if n == 1 else 'are'} inside this file" if n else "no image is inside this file")
    facts.append(document.created[:10])
    return tag("header", tag("p", "hubel", class_="brand"), name, tag("p", " · ".join(facts), class_="meta"))


def summary(document: Document) -> Html | None:
    rows = [row for row in (_accuracy(document), _faster(document), _became(document), _next(document)) if row]
    items = []
    for figure, sentence, mini in rows:
        items.append(tag("li", tag("p", figure, class_="figure"), tag("p", sentence, class_="sentence"), tag("div", mini, class_="mini") if mini else None))
    if document.status == "interrupted":
        items.insert(0, tag("li", tag("p", "Stopped", class_="figure"), tag("p", "This run was interrupted; what was done until then is here.", class_="sentence")))
    return tag("section", tag("h2", "In short", class_="sr"), tag("ol", *items, class_="sentences"), id="summary") if items else None


def _accuracy(document: Document) -> Row | None:
    withheld = next((r for r in document.records if r.id == "accuracy" and r.status != "ok"), None)
    if withheld is not None:
        return "Labels?", f"{withheld.reason}", None
    test = find(document, "accuracy")
    if test is None:
        return None
    value = test.rows[0].get("accuracy")
    if not isinstance(value, Value) or value.value is None or value.lo is None or value.hi is None:
        return None
    n = value.n or 0
    sentence = [
        "It reads ",
        tag("b", f"{percent(value.value)} of {count(n, 'image')}"),
        f" right that it had never seen ({round(100 * value.level)} % interval {interval(100 * value.lo, 100 * value.hi, lambda x: fixed(x, 1))} %).",
    ]
    return percent(value.value), sentence, _interval_plot(value)


def _interval_plot(value: Value) -> Html:
    lo, hi = value.lo or 0.0, value.hi or 0.0
    left = max(0.0, min(0.9, np.floor(lo * 20 - 0.6) / 20))
    at = [100 * (x - left) / (1 - left) for x in (lo, value.value or 0.0, hi)]
    marks = [
        tag("i", class_="whisker", style=f"left:{at[0]:.2f}%;width:{at[2] - at[0]:.2f}%"),
        tag("i", class_="dot after", style=f"left:{at[1]:.2f}%"),
    ]
    ends = tag("div", tag("span", percent(left, 0)), tag("span", percent(1.0, 0)), class_="feet")
    alt = f"Accuracy {percent(value.value or 0)}, interval {percent(lo)} to {percent(hi)}"
    return tag("div", tag("span", *marks, class_="dumbbell"), ends, role="img", aria_label=alt)


def _faster(document: Document) -> Row | None:
    step = find(document, "step")
    if step is None:
        return None
    try:
        ours = step.row("hubel")
        theirs = step.row(step.method["params"]["torch"])
    except KeyError:
        return None
    ratio = ours["x torch"]
    if not isinstance(ratio, Value) or ratio.value is None:
        return None
    faster = ratio.value >= 1
    times = ratio.value if faster else 1 / ratio.value
    verdict = f"{fixed(times, 2)} times {'faster' if faster else 'slower'}" if ratio.decided else "no faster and no slower, as far as these rounds tell"
    rounds = ratio.n or 0
    slow = round(ours["slower"] * rounds)
    sentence = [
        "Its training step is ",
        tag("b", verdict),
        f" than PyTorch's in the same process: {milliseconds(point(ours['ms']) / 1e3)} against {milliseconds(point(theirs['ms']) / 1e3)}"
        f" (nine steps in ten {fixed(ours['p5 x torch'], 2)}× to {fixed(ours['p95 x torch'], 2)}×; slower in {slow} of {count(rounds, 'round')}; {_machine(document)}).",
    ]
    if not ratio.decided:
        sentence[0], sentence[2] = "Against PyTorch's, its training step is ", sentence[2].replace(" than PyTorch's in the same process", " in the same process")
    mini = strip_plot(step.arrays["ratios"].data, small=True) if "ratios" in step.arrays else None
    return f"{fixed(ratio.value, 2)}×", sentence, mini


def _machine(document: Document) -> str:
    machine = document.machine
    name = next((str(machine[k]) for k in ("model", "cpu", "name") if machine.get(k)), "this machine")
    threads = document.settings["threads"]
    return f"{name}, {count(threads, 'thread')}"


def _became(document: Document) -> Row | None:
    record = find(document, "kernels")
    if record is None or not record.method["params"]["layers"]:
        return None
    address, info = next(iter(record.method["params"]["layers"].items()))
    mini = _row_of_kernels(record, address)
    rows = [row for row in record.rows if row["target"].rpartition(":")[0] == address]
    K = len(rows)
    size = "×".join(str(n) for n in info["shape"][2:])
    if any(row.get("moved") is not None for row in rows):
        moved = [row["moved"] for row in rows if row.get("moved") is not None]
        before, after = (_mean([row.get(n) for row in rows]) for n in ("smoothness_before", "smoothness"))
        sentence: list[Child] = ["Training moved the ", tag("b", f"{K} kernels of {address}"), f" by {percent(_mean(moved) or 0, 0)} of their length on average"]
        if before is not None and after is not None:
            change = after - before
            word = "they became smoother" if change > 0.05 else "they became rougher" if change < -0.05 else "they stayed as rough as they were"
            sentence.append(f"; {word} (neighbouring weights correlate {fixed(after, 2, plus=True)}, at the start {fixed(before, 2, plus=True)})")
        return percent(_mean(moved) or 0, 0), [*sentence, _costliest(document)], mini
    norms = [row["norm"] for row in rows]
    sentence = [
        "Its first convolution, ",
        tag("b", address),
        f", has {count(K, 'kernel')} of {size} on {count(info['shape'][1], 'channel')}; the strongest is {number(max(norms) / max(min(norms), 1e-30), 2)} times as strong as the weakest.",
    ]
    return f"{K}", sentence, mini


def _costliest(document: Document) -> str:
    effects = find(document, "ablation")
    if effects is None or not effects.rows or "loss_change" not in effects.rows[0]:
        return "."
    worst = max(effects.rows, key=lambda row: point(row["loss_change"]) or 0.0)
    kept = sum(1 for row in effects.rows if isinstance(row["loss_change"], Value) and row["loss_change"].decided)
    n = effects.method["params"]["images"]
    return f". Of all {len(effects.rows)} kernels, {kept} are missed when removed; most of all {worst['target']}: {count(worst['lost'], 'answer')} of {n:,} lost, {worst['gained']:,} gained."


def _row_of_kernels(record: Record, address: str) -> Html | None:
    limit = record.method["params"]["layers"][address]["limit"]
    weights = record.arrays[address].data
    if weights.ndim != 4 or weights.shape[1] not in (1, 3):
        return None
    from hubel.report import pictures

    tiles = []
    for j, k in enumerate(record.arrays[f"{address}:kernels"].data[:_MINI_KERNELS]):
        if weights.shape[1] == 3:
            picture, width = pictures.colour(weights[j], -limit, limit), 42
        else:
            picture, width = kernel_picture(weights[j], limit, cell=8), 42
        tiles.append(image(picture, kernel_alt(f"{address}:{k}", weights[j]), width=width))
    return tag("div", *tiles, class_="thumbs")


def _next(document: Document) -> Row:
    """One thing to do now, out of what was found; with a command that can be copied."""
    test = find(document, "classes")
    if test is not None and "confusion" in test.arrays:
        matrix = test.arrays["confusion"].data.astype(int).copy()
        np.fill_diagonal(matrix, 0)
        if matrix.max() > 0:
            truth, answer = np.unravel_index(int(matrix.argmax()), matrix.shape)
            sentence = [
                f"It most often takes a {class_name(document, int(truth))} for a {class_name(document, int(answer))} ({count(int(matrix.max()), 'time')}): ",
                tag("b", "remove kernels one at a time"),
                " in “One change” and see which of them that mistake hangs on; then look into your own network with ",
                tag("code", "hubel report your.module:factory --data FOLDER"),
                ".",
            ]
            return "Next", sentence, None
    if find(document, "feature_maps") is None:
        return "Next", ["Give it images to see what these kernels make of them: ", tag("code", "hubel report MODEL --data FOLDER"), "."], None
    return "Next", ["Remove kernels one at a time and see what the scores owe to each: ", tag("code", "hubel.inspect.ablation(net, images, labels)"), "."], None


def _mean(values: list) -> float | None:
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None
