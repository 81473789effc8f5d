"""A real browser for the pages: Debian's Chromium through playwright, which downloads nothing; no network at all.

Where there is no Chromium the tests that need one are skipped, and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = {"phone": 390, "desktop": 1440}


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium, closed at the end."""
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(running: Any, path: Path, *, width: str = "desktop", theme: str = "light") -> Iterator[Any]:
    """The file, as a double click opens it. A request for anything else, an error or a warning of the page's fails."""
    context = running.new_context(
        viewport={"width": WIDTHS[width], "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_offline(True)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(path.as_uri())
        yield page
        assert [url for url in asked if not url.startswith(("data:", "blob:", path.as_uri()))] == []
        assert said == []
    finally:
        context.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong on the page as it stands: rule, and the first element that breaks it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['target']} {v['nodes'][0]['html'][:120]}" for v in found]
