"""The page, whole: what it says, what it asks for (nothing), and whom it keeps out."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import hubel.report
from hubel.records import Document, Record, Value
from hubel.report.page import SECTIONS, page, title
from hubel.report.sections.summary import spoken

from .conftest import HOSTILE, step

VOID = {"img", "meta", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Checks that elements close in order, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} near line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.words).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words).replace("\u00a0", " ")


def test_every_section_is_there_and_the_markup_is_sound(document: Document) -> None:
    reader = Reader(page(document))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "anchors are addresses"
    assert set(SECTIONS) - {"history"} <= set(ids), "nobody took snapshots of this training"
    assert {"conv1", "conv1:3", "conv2:15"} <= set(ids)
    pages = {layer["address"]: layer["kernels"] for layer in json.loads(reader.scripts[2])["layers"]}
    drawn = {*pages, *(f"{address}:{k}" for address, kernels in pages.items() for k in range(kernels))}
    links = [a["href"].removeprefix("#") for a in reader.all("a")]
    assert links and set(links) <= set(ids) | drawn


def test_it_asks_nobody_for_anything(document: Document) -> None:
    text = page(document)
    reader = Reader(text)
    policy = next(m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;"
    )
    for name, attributes in reader.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(key, "#")
            assert value.startswith(("data:", "#")), f"<{name} {key}={value[:40]}>"
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|sendBeacon|import)\s*\(", text)


def test_hostile_names_are_only_words(document: Document) -> None:
    document.model["name"] = HOSTILE[0]
    assert document.data is not None
    document.data["skipped"] = [{"file": HOSTILE[1], "reason": HOSTILE[2]}]
    reader = Reader(page(document))
    assert HOSTILE[0] in reader.text and HOSTILE[2] in reader.text
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in reader.elements)
    # Four blocks of data and the page's own two scripts; nobody else's.
    assert len(reader.all("script")) == 6
    *data, first, second = reader.all("script")
    assert all(attributes["type"] == "application/json" for attributes in data) and first == second == {}
    assert "alert(" not in reader.scripts[-1]


def test_every_picture_has_its_numbers_in_words(document: Document) -> None:
    reader = Reader(page(document))
    images = reader.all("img")
    assert len(images) > 60
    for attributes in images:
        assert "alt" in attributes and attributes["src"].startswith("data:image/")
        # Faces of buttons repeat a picture that has words elsewhere; the button says what it is.
        assert re.search(r"\d", attributes["alt"]) or attributes["alt"] == ""
    silent = [a for a in images if a["alt"] == ""]
    assert (
        len(silent) == 22 and len([b for b in reader.all("button") if "remove kernel" in b.get("aria-label", "")]) == 22
    )
    drawings = [a for name, a in reader.elements if a.get("role") == "img"]
    assert all(re.search(r"\d", a["aria-label"]) for a in drawings) and len(drawings) >= 3
    w = document.record("kernels").arrays["conv1"].data[0, 0]
    alt = next(a["alt"] for a in images if a["alt"].startswith("Kernel conv1:0 after training"))
    assert [float(n.replace("−", "-")) for n in re.findall(r"−?\d\.\d\d\b", alt.partition(": ")[2])] == pytest.approx(
        w.ravel().tolist(), abs=0.00501
    )


def test_both_states_of_a_kernel_are_drawn_on_one_scale(document: Document) -> None:
    reader = Reader(page(document))
    record = document.record("kernels")
    for address in ("conv1", "conv2"):
        limit = max(np.abs(record.arrays[key].data).max() for key in (address, f"{address}:before"))
        assert record.method["params"]["layers"][address]["limit"] == limit
        assert f"+{limit:.2f}" in reader.text
    for when in ("before training", "after training"):
        assert sum(when in a["alt"] for a in reader.all("img")) == 22


def test_the_printed_number_is_the_one_in_the_map(document: Document) -> None:
    """What the page prints, and what its script can work out from the data inside it, is what the network computed."""
    reader = Reader(page(document))
    row = document.record("one_number").rows[0]
    assert f"{row['map']:.6f}".replace("-", "−") in reader.text and "The same number: they differ by" in reader.text
    body = next(s for s in reader.scripts if '"weight"' in s)
    data = json.loads(body)
    arrays = {
        key: np.frombuffer(base64.b64decode(data[key]["f4"]), "<f4").reshape(data[key]["shape"])
        for key in ("input", "weight", "bias", "maps")
    }
    k, i, j = data["kernel"], data["row"], data["column"]
    patch = arrays["input"][0, i : i + 5, j : j + 5].astype(np.float64)
    value = (patch * arrays["weight"][k, 0]).sum() + arrays["bias"][k]
    assert value == pytest.approx(row["map"], rel=1e-5, abs=1e-6)
    assert arrays["maps"][k, i, j] == np.float32(row["map"])
    cells = re.findall(r'data-grid="patch".*?</table>', page(document), re.S)[0]
    printed = [float(n) for n in re.findall(r">(-?\d\.\d\d)<", cells.replace("−", "-"))]
    assert printed == pytest.approx(patch.ravel().tolist(), abs=0.00501)


def test_scores_before_and_after_are_those_of_the_record(document: Document) -> None:
    reader = Reader(page(document))
    record = document.record("ablation_scores")
    data = json.loads(next(s for s in reader.scripts if '"targets"' in s))
    assert data["targets"] == [row["target"] for row in record.rows] and data["classes"] == HOSTILE
    assert np.allclose(data["whole"], record.arrays["scores"].data, atol=6e-4)
    assert np.allclose(data["after"], record.arrays["scores_without"].data, atol=6e-4)


def test_cost_stands_beside_importance(document: Document) -> None:
    cost = document.record("cost")
    row = cost.row("conv2")
    row["removable"] = 0.625
    cost.method["params"] |= {"measure": "accuracy", "limit": 0.01, "measuring": 12}
    html = page(document)
    table = html[html.index("What could go") :].split("</table>")[0]
    assert 'href="#conv2"' in table and "62" in table and "one point of accuracy" in table
    del row["removable"]
    for other in cost.rows:
        other["removable"] = None
    assert "What could go" not in page(document)


def test_it_opens_with_four_sentences(document: Document) -> None:
    accuracy, faster, became, next_ = spoken(document)
    value = document.record("accuracy").rows[0]["accuracy"]
    assert f"{100 * value.value:.1f} % of 18 images" in accuracy and "95 % interval" in accuracy
    assert faster.startswith(
        "Its training step is 1.62 times faster than PyTorch's in the same process: 2 ms against 4 ms"
    )
    assert "slower in 1 round of 9" in faster and document.machine["name"] in faster and "thread" in faster
    assert became.startswith("Training moved the 6 kernels of conv1 by ") and "neighbouring weights correlate" in became
    assert "hubel" in next_
    text = Reader(page(document)).text
    positions = [text.index(sentence.split(" ")[0]) for sentence in (accuracy, faster, became)]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ([0.5, 0.52, 0.5, 0.48, 0.5, 0.51, 0.49, 0.5], "2.00 times slower than PyTorch's"),
        ([0.9, 1.1, 1.0, 1.2, 0.8, 1.01, 0.99, 1.05], "these rounds do not decide"),
    ],
)
def test_slower_and_undecided_are_said_as_plainly(document: Document, ratios: list[float], says: str) -> None:
    document.records = [r for r in document.records if r.id != "step"] + [step(ratios)]
    assert says in spoken(document)[1]
    assert "Hubel's was slower in" in " ".join(a.get("aria-label", "") for _, a in Reader(page(document)).elements)


def test_random_weights_say_so_in_the_title(document: Document) -> None:
    document.model["weights"] = "random"
    document.records = [r for r in document.records if r.id == "kernels"]
    assert "random weights" in title(document)
    reader = Reader(page(document))
    assert "random weights" in [w.strip() for w in reader.words], "in the heading too"


def test_labels_that_do_not_fit_come_first_and_results_stay_away(document: Document) -> None:
    document.records = [r for r in document.records if r.id not in ("accuracy", "classes", "step", "curves")]
    reason = "Labels and outputs may not be aligned: 9.0% of 18 images are right."
    document.records.append(Record(id="accuracy", kind="accuracy", status="insufficient_data", reason=reason))
    assert spoken(document)[0] == reason
    assert "Which it takes for which" not in Reader(page(document)).text


def test_an_interrupted_run_says_so_first(document: Document) -> None:
    document.status = "interrupted"
    assert "interrupted" in spoken(document)[0]


def test_undecided_effects_are_told_apart_without_colour(document: Document) -> None:
    for i, row in enumerate(document.record("ablation").rows):
        row["loss_change"] = Value(0.1, 0.05, 0.2, 0.95, 18, "images", "bootstrap", decided=i == 0)
    forest = page(document).partition('class="forest"')[2].partition("</table>")[0]
    assert forest.count("dot after") == 1 and forest.count("dot before") == 21
    assert "Decided for 1 of 22" in Reader(page(document)).text


def test_the_same_document_gives_the_same_bytes(document: Document, tmp_path: Path) -> None:
    first = hubel.report.render(document, tmp_path / "a" / "report.html").read_bytes()
    document.save(tmp_path)
    again = hubel.report.render(Document.load(tmp_path), tmp_path / "b.html").read_bytes()
    assert first == again, "a page is a function of the document that was kept"
    assert len(first) < 400_000


def test_no_path_and_no_user_is_told(document: Document) -> None:
    text = page(document)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
