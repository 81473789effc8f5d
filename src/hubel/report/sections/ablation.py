"""One change at a time: remove one kernel, see the scores before and after; then what each costs over many images."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record, Value
from hubel.report.html import Html, json_script, tag
from hubel.report.parts import class_name, find, head_row, input_image, kernel_picture, scroller, section
from hubel.report.text import count, fixed, interval, number, point


def ablation(document: Document) -> Html | None:
    scores, effects = find(document, "ablation_scores"), find(document, "ablation")
    if scores is None and effects is None:
        return None
    intro = (
        "Set the feature map of one kernel to zero, leave everything else as it is, and run the network again. "
        "What changes is what the network owed to that kernel, on these images."
    )
    body = [tag("p", intro, class_="lead")]
    if scores is not None and scores.rows:
        body += [_workbench(document, scores, effects)]
    if effects is not None and effects.rows:
        body += [_forest(effects)]
    return section("one-change", "One change at a time", *body)


def _first(scores: Record, effects: Record | None) -> str:
    """The kernel shown before anyone chooses: the one whose removal costs most over many images."""
    targets = [row["target"] for row in scores.rows]
    if effects is None:
        return targets[0]
    column = "loss_change" if "loss_change" in effects.rows[0] else "kl"
    known = [row for row in effects.rows if row["target"] in targets]
    return max(known, key=lambda row: point(row[column]) or 0.0)["target"] if known else targets[0]


def _workbench(document: Document, scores: Record, effects: Record | None) -> Html:
    targets = [row["target"] for row in scores.rows]
    chosen = _first(scores, effects)
    whole, after = scores.arrays["scores"].data, scores.arrays["scores_without"].data
    labels = scores.arrays["labels"].data if "labels" in scores.arrays else None
    lo, hi = float(min(whole.min(), after.min())), float(max(whole.max(), after.max()))
    maps = find(document, "feature_maps")
    cards = []
    for i in range(len(whole)):
        picture = (
            input_image(maps.arrays["image" if "image" in maps.arrays else "input"].data[i], f"Input image {i + 1}", 84)
            if maps
            else None
        )
        label = None if labels is None else int(labels[i])
        cards.append(_card(document, i, whole[i], after[targets.index(chosen)][i], label, (lo, hi), picture))
    head = tag("p", "Removed: ", tag("b", chosen, data_out="removed"), class_="removed", aria_live="polite")
    classes = [class_name(document, k) for k in range(whole.shape[1])]
    data = {
        "targets": targets,
        "classes": classes,
        "range": [lo, hi],
        "whole": np.round(whole.astype(np.float64), 3).tolist(),
        "after": np.round(after.astype(np.float64), 3).tolist(),
    }
    key = tag(
        "p", tag("span", class_="dot before"), " before  ", tag("span", class_="dot after"), " after", class_="size key"
    )
    buttons = _buttons(document, targets, chosen)
    return tag(
        "div",
        buttons,
        head,
        key,
        tag("div", *cards, class_="cards"),
        json_script("ablation-data", data),
        class_="workbench",
        data_workbench="ablation",
    )


def _buttons(document: Document, targets: list[str], chosen: str) -> Html:
    record = find(document, "kernels")
    layers: dict[str, list[Html]] = {}
    for target in targets:
        address, _, k = target.rpartition(":")
        face: Html | str = f":{k}"
        if record is not None and address in record.arrays:
            kept = record.arrays[f"{address}:kernels"].data.tolist()
            if int(k) in kept:
                weights = record.arrays[address].data[kept.index(int(k))]
                limit = record.method["params"]["layers"][address]["limit"]
                picture = kernel_picture(weights, limit, cell=3, columns=3 if len(weights) > 3 else None)
                face = tag("img", src=picture.uri, alt="", class_="pixels", width=picture.width, height=picture.height)
        label = tag("span", f":{k}", aria_hidden="true")
        pressed = "true" if target == chosen else "false"
        button = tag(
            "button",
            face,
            label,
            type="button",
            data_remove=target,
            aria_pressed=pressed,
            aria_label=f"remove kernel {target}",
        )
        layers.setdefault(address, []).append(button)
    rows = [
        tag(
            "div",
            tag("p", a, class_="name"),
            tag("div", *b, class_="choices faces", role="group", aria_label=f"Kernels of {a}"),
        )
        for a, b in layers.items()
    ]
    return tag("div", *rows, class_="remove js")


def _card(
    document: Document,
    i: int,
    before: np.ndarray,
    after: np.ndarray,
    label: int | None,
    limits: tuple[float, float],
    picture: Html | None,
) -> Html:
    lo, hi = limits
    span = max(hi - lo, 1e-9)
    rows = []
    order = range(len(before)) if len(before) <= 10 else np.argsort(-before)[:8]
    for k in order:
        a, b = 100 * (before[k] - lo) / span, 100 * (after[k] - lo) / span
        track = tag(
            "span",
            tag("i", class_="zero", style=f"left:{-100 * lo / span:.2f}%") if lo < 0 < hi else None,
            tag("i", class_="move", style=f"left:{min(a, b):.2f}%;width:{abs(a - b):.2f}%"),
            tag("i", class_="dot before", style=f"left:{a:.2f}%"),
            tag("i", class_="dot after", style=f"left:{b:.2f}%"),
            class_="dumbbell",
            aria_hidden="true",
        )
        name = [class_name(document, int(k)), tag("small", " truth") if k == label else None]
        numbers = [
            tag("td", fixed(float(before[k]), 1), class_="num faint"),
            tag("td", fixed(float(after[k]), 1), class_="num"),
        ]
        rows.append(
            tag(
                "tr",
                tag("th", *name, scope="row"),
                tag("td", track, class_="track"),
                *numbers,
                data_class=int(k),
                class_="truth" if k == label else None,
            )
        )
    head = head_row("class", "", "before", "after")
    was, now = class_name(document, int(before.argmax())), class_name(document, int(after.argmax()))
    verdict = tag("p", _verdict(was, now), data_out="verdict")
    title = tag(
        "div",
        picture,
        tag("div", tag("h3", f"Image {i + 1}" if label is None else f"A {class_name(document, label)}"), verdict),
        class_="cardhead",
    )
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="scores moves")
    return tag("div", title, table, class_="card", data_image=i)


def _verdict(was: str, now: str) -> Html:
    if was == now:
        return tag("span", "It answers ", tag("b", was), ", as before.")
    return tag("span", "It answered ", tag("b", was), "; now it answers ", tag("b", now), ".")


def _forest(record: Record) -> Html:
    """Every kernel's effect with its interval, the largest first."""
    labelled = "loss_change" in record.rows[0]
    column = "loss_change" if labelled else "kl"
    rows = sorted(record.rows, key=lambda row: -(point(row[column]) or 0.0))
    values = [row[column] for row in rows if isinstance(row[column], Value)]
    lo = min([0.0, *[v.lo for v in values if v.lo is not None]])
    hi = max([1e-9, *[v.hi for v in values if v.hi is not None]])
    N = record.method["params"]["images"]
    columns = (
        ["loss change", "95 % interval", "answers lost", "gained"]
        if labelled
        else ["KL", "95 % interval", "answers changed"]
    )
    head = head_row("removed", "", *columns)
    lines = [_line(row, row[column], lo, hi, labelled) for row in rows]
    what = (
        "mean change of an image's cross-entropy" if labelled else "mean KL divergence from the whole network's answer"
    )
    decided = sum(bool(v.decided) for v in values)
    text = f"Each kernel removed alone, over {count(N, 'image')}: {what}, with its interval (bootstrap over images). "
    if labelled:
        text += f"Decided for {decided} of {len(rows)} (sign-flip test, Benjamini–Hochberg at 5 %); "
        text += "for the others these images cannot tell, and their dots are hollow."
    table = tag("table", tag("thead", head), tag("tbody", *lines), class_="forest")
    return tag(
        "div",
        tag("h3", "What each kernel is owed"),
        tag("p", text, class_="size wide"),
        scroller(table, "What each kernel is owed"),
    )


def _line(row: dict, value: Value, lo: float, hi: float, labelled: bool) -> Html:
    def at(x: float | None) -> float:
        return 100 * ((x or 0.0) - lo) / (hi - lo)

    start, end = at(value.lo), at(value.hi)
    track = tag(
        "span",
        tag("i", class_="zero", style=f"left:{at(0):.2f}%"),
        tag("i", class_="whisker", style=f"left:{start:.2f}%;width:{end - start:.2f}%"),
        tag(
            "i",
            class_=f"dot {'after' if value.decided or not labelled else 'before'}",
            style=f"left:{at(value.value):.2f}%",
        ),
        class_="dumbbell",
        aria_hidden="true",
    )
    bounds = "" if value.lo is None or value.hi is None else interval(value.lo, value.hi, lambda x: fixed(x, 3))
    cells = [
        tag("td", fixed(value.value or 0.0, 3, plus=labelled), class_="num"),
        tag("td", bounds, class_="num faint"),
    ]
    cells += [tag("td", number(row[c]), class_="num") for c in (("lost", "gained") if labelled else ("changed",))]
    return tag("tr", tag("th", row["target"], scope="row"), tag("td", track, class_="track"), *cells)
