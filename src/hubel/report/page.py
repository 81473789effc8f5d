"""A Document becomes one HTML file that asks nothing of anyone: style, script and pictures are inside it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from hubel.records import Document
from hubel.report.atlas import atlas
from hubel.report.html import Html, join, raw, tag
from hubel.report.sections.ablation import ablation
from hubel.report.sections.about import about
from hubel.report.sections.answers import answers
from hubel.report.sections.findings import findings
from hubel.report.sections.firmness import firmness
from hubel.report.sections.history import history
from hubel.report.sections.images import images
from hubel.report.sections.kernels import kernels
from hubel.report.sections.learning import learning
from hubel.report.sections.network import network
from hubel.report.sections.one_number import one_number
from hubel.report.sections.speed import speed
from hubel.report.sections.summary import header, summary, untrained

# The order in which a reader meets them. Each is given the Document; None: it has nothing to show.
SECTIONS: dict[str, Callable[[Document], Html | None]] = {
    "summary": summary,
    "findings": findings,
    "network": network,
    "images": images,
    "answers": answers,
    "one-number": one_number,
    "one-change": ablation,
    "kernels": kernels,
    "history": history,
    "firmness": firmness,
    "learning": learning,
    "speed": speed,
    "about": about,
}
_SHORT = {
    "findings": "Findings",
    "network": "Network",
    "images": "Images",
    "answers": "Answers",
    "one-number": "One number",
    "one-change": "One change",
    "kernels": "Kernels",
    "history": "History",
    "firmness": "Firmness",
    "learning": "Learning",
    "speed": "Speed",
    "about": "About",
}
# Nothing is fetched, nothing is sent; only what is written in this file runs.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def page(document: Document) -> Html:
    """The whole page."""
    built = {name: section(document) for name, section in SECTIONS.items()}
    links = [tag("a", _SHORT[name], href=f"#{name}") for name, body in built.items() if body and name in _SHORT]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"hubel {document.hubel}"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title(document)),
        tag("style", raw(_read("page.css"))),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#main", class_="skip"),
        header(document),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *built.values(), atlas(document), id="main"),
        tag("script", raw(_read("page.js"))),
        tag("script", raw(_read("atlas.js"))),
    )
    return join(raw("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n")


def title(document: Document) -> str:
    """`lenet5 on mnist`; random weights say so."""
    name = document.model["name"] + (f" on {document.data['name']}" if document.data else "")
    return f"{name} · random weights · hubel" if untrained(document) else f"{name} · hubel"


def _read(name: str) -> str:
    return resources.files("hubel.report").joinpath(name).read_text(encoding="utf-8")
