"""What `hubel check` concluded, worst first: a sentence each, where it is, and what to do about it."""

from __future__ import annotations

from hubel.records import Document, Finding
from hubel.report.html import Html, tag
from hubel.report.parts import section
from hubel.report.text import count

# Addresses that a finding names on the page; the others are counted.
_NAMED = 6
# Findings that stand open; the others wait behind a line.
_FIRST = 6
_WORDS = {"error": "Error", "warning": "Warning", "note": "Note"}


def findings(document: Document) -> Html | None:
    if not document.findings:
        return None
    ranked = sorted(document.findings, key=lambda f: (-f.rank, f.code, f.targets))
    undecided = sum(not f.decided for f in ranked)
    lead = f"{count(len(ranked), 'finding')}, the weightiest first"
    lead += f"; {undecided} of them these images do not decide." if undecided else "."
    items = [tag("li", *_finding(document, f), class_=f.severity) for f in ranked]
    first, rest = tag("ol", *items[:_FIRST], class_="findings"), None
    if len(items) > _FIRST:
        more = tag("ol", *items[_FIRST:], class_="findings", start=str(_FIRST + 1))
        rest = tag("details", tag("summary", f"The other {len(items) - _FIRST}"), more)
    return section("findings", "What to look at", tag("p", lead, class_="lead"), first, rest)


def _finding(document: Document, finding: Finding) -> list[Html]:
    word = _WORDS[finding.severity] + ("" if finding.decided else ", undecided")
    head = tag("p", tag("b", word), " ", finding.message, " ", tag("small", f"{finding.code} {finding.name}"))
    lines = [head]
    named = [t for t in finding.targets if t != "model"]
    if named:
        links = [[", " if i else None, tag("a", t, href=f"#{t}")] for i, t in enumerate(named[:_NAMED])]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else None
        lines.append(tag("p", *links, more, class_="targets"))
    if finding.remedy:
        lines.append(tag("p", finding.remedy["text"], class_="remedy"))
    return lines
