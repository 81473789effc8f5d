"""Writing HTML so that nothing unescaped can get in: text is escaped unless it is already `Html`.

tag("p", "a class called ", tag("b", name), class_="note")   ->   <p class="note">a class called <b>…</b></p>
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Html(str):
    """Text that is markup already. Made by this module only."""


Child = Html | str | int | float | None | Iterable["Child"]


def join(*children: Child) -> Html:
    """Children in a row; None is left out, lists are flattened, everything that is not Html is escaped."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(html.escape(str(child), quote=True))
        else:
            parts.append(join(*child))
    return Html("".join(parts))


def tag(element: str, /, *children: Child, **attributes: Any) -> Html:
    """One element. `class_` loses its underscore, the others turn into dashes; None and False are left out."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"')
    head = f"<{element}{''.join(written)}>"
    return Html(head) if element in _VOID else Html(f"{head}{join(*children)}</{element}>")


def raw(markup: str) -> Html:
    """Our own files (style, script) and constants. Never anything that a user named."""
    return Html(markup)


def plain(markup: Html) -> str:
    """The text of an element, for a terminal. Our own markup only: tags are cut by their brackets."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def json_script(id: str, data: Any) -> Html:
    """Data for the page's script. `<`, `>`, `&` and the two line ends of JavaScript are written as escapes, so that no
    name can close the element or open another."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Html(text), type="application/json", id=id)
