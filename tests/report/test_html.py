"""Nothing unescaped gets in."""

from __future__ import annotations

import json

import pytest

from hubel.report.html import join, json_script, plain, raw, tag


def test_text_and_attributes_are_escaped() -> None:
    got = tag("p", "<b>&\"'", title='"><script>')
    assert got == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;&quot;&#x27;</p>'


def test_markup_of_ours_is_kept_and_lists_are_flattened() -> None:
    assert tag("p", [tag("b", "a"), None, ["<", 1]], raw("<hr>")) == "<p><b>a</b>&lt;1<hr></p>"


def test_attributes_are_named_as_in_html() -> None:
    assert tag("img", class_="a", aria_label="b", hidden=True, id=None, alt="") == (
        '<img class="a" aria-label="b" hidden alt="">'
    )


@pytest.mark.parametrize("name", ["</script>", "<!--", "]]>", "\u2028", "a&b", "</ScRiPt >"])
def test_data_cannot_close_its_element(name: str) -> None:
    got = json_script("x", {name: [name]})
    body = got.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert not set(body) & set("<>&\u2028\u2029")
    assert json.loads(body) == {name: [name]}


def test_data_has_no_numbers_that_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_script("x", float("nan"))


def test_plain_is_what_a_reader_sees() -> None:
    assert plain(join("a < b ", tag("b", "&"))) == "a < b &"
