"""The page in a real browser: it asks nobody for anything, reports no error, and axe-core finds nothing wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubel.records import Document
from hubel.report import render

from .browser import WIDTHS, browser, opened, violations


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with browser() as program:
        yield program


@pytest.fixture(scope="module")
def path(recorded: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(recorded, tmp_path_factory.mktemp("page") / "report.html")


def go(page: Any, address: str) -> None:
    page.evaluate("address => { location.hash = address }", address)
    arrived(page, address)


def arrived(page: Any, address: str) -> None:
    # A function, here and below: a bare expression is handed to `eval` at each look, which the page's policy forbids.
    page.wait_for_function("address => document.title.includes(address)", arg=address)


@pytest.mark.parametrize(("width", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_overview_layer_and_kernel_pages_are_accessible(running: Any, path: Path, width: str, theme: str) -> None:
    with opened(running, path, width=width, theme=theme) as page:
        assert violations(page) == []
        for address in ("conv1", "conv2:7"):
            go(page, address)
            assert page.locator("#view h1").inner_text() == address
            assert violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], "nothing sticks out"


def test_every_link_leads_somewhere(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
        assert all(link.startswith("#") for link in links) and "#conv2" in links
        for link in dict.fromkeys(links):
            page.evaluate("link => { location.hash = link }", link)
            page.wait_for_timeout(20)
            there = page.evaluate("document.getElementById(decodeURIComponent(location.hash.slice(1))) !== null")
            assert there or page.locator("#view h1").inner_text() == link[1:], link


def test_a_kernel_has_a_link_of_its_own(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        page.goto(path.as_uri() + "#conv2:3")
        page.wait_for_selector("#view .patches canvas")
        assert page.locator("#view h1").inner_text() == "conv2:3"
        assert not page.locator("#summary").is_visible()
        # Patches are cut from the images that are inside: something is drawn, and it is not one colour.
        colours = page.eval_on_selector(
            "#view .patches canvas",
            "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size",
        )
        assert colours > 2
        assert "L2 norm" in page.locator("#view .sheet").inner_text()
        page.locator("#view .crumbs a").first.click()
        page.wait_for_selector("#summary", state="visible")
        assert page.locator("#view").is_hidden()


def test_a_kernel_shows_its_maps_and_the_stripes_it_answers_to(running: Any, path: Path, recorded: Document) -> None:
    kept = recorded.record("feature_maps").arrays["conv2:kernels"].data
    with opened(running, path) as page:
        go(page, f"conv2:{kept[0]}")
        labels = page.eval_on_selector_all("#view canvas", "all => all.map(c => c.getAttribute('aria-label'))")
        for said in (f"Feature map of conv2:{kept[0]}, pictured image 1", "pictured image 2", "Answers to stripes"):
            assert any(said in label for label in labels), said
        drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        assert all(size > 2 for size in page.eval_on_selector_all("#view .answers canvas", f"all => all.map({drawn})"))


def test_two_checkpoints_stand_side_by_side(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        go(page, "conv2:3")
        labels = page.eval_on_selector_all("#view .weights canvas", "all => all.map(c => c.getAttribute('aria-label'))")
        assert len(labels) == 2 and "conv2:3 earlier" in labels[0] and "earlier" not in labels[1]
        assert page.locator("#view .weights figcaption").all_inner_texts() == ["in the earlier checkpoint", "now"]


def test_the_gallery_is_for_the_keyboard_too(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        go(page, "conv2")
        page.locator("#view .gallery a").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#conv2:1"
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        arrived(page, "conv2:15")


def test_kernels_stand_in_any_order_that_was_measured(running: Any, path: Path, recorded: Document) -> None:
    rows = [row for row in recorded.record("kernels").rows if row["target"].startswith("conv2:")]
    strongest = max(rows, key=lambda row: row["norm"])["target"]
    with opened(running, path) as page:
        go(page, "conv2")
        page.select_option("#order", "kernels/norm")
        assert page.locator("#view .gallery a").first.get_attribute("href") == f"#{strongest}"


def test_the_first_picture_does_not_wait_for_the_images(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        # A browser without a screen may paint a moment after the page is loaded.
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length == 1")
        assert page.evaluate("document.getElementsByTagName('*').length") < 3000
