"""Model text on the page: what could act is shown as text."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.chat.render import highlighted, plain, safe_markdown
from core.text import thoughts

pytestmark = pytest.mark.fast

#: CommonMark with tables, links of bare addresses left out: what Streamlit's parser starts from.
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
_RISKY = ["`", "``", "```", "~~~", "![", "](http://x/y.png)", "|", "\\", "\n", "\n\n", "- ", "> ",
          "    ", "  ", "<img src=x>", "<script>", "$", ":red[", "]", "[a]: http://x", "1. ", "a",
          "`![x](http://x)`", "---", "|-|-|", "\t", "#", "&#33;", "*"]  # fmt: skip


def acting(markdown: str) -> list[str]:
    """Kinds of everything in the parsed text that fetches or runs."""
    found: list[str] = []
    for token in PARSER.parse(markdown):
        for inner in [token, *(token.children or [])]:
            if inner.type in ("image", "html_inline", "html_block"):
                found.append(inner.type)
            href = str(inner.attrs.get("href", ""))
            if href.lower().startswith(("javascript:", "data:", "vbscript:", "file:")):
                found.append(href)
    return found


def outside_code(markdown: str) -> str:
    """All text that is not code, unescaped as the parser sees it."""
    text = ""
    for token in PARSER.parse(markdown):
        for inner in token.children or []:
            text += inner.content if inner.type == "text" else "\n"
    return text


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(_RISKY), max_size=14).map("".join))
def test_nothing_acts_however_it_is_put_together(text: str) -> None:
    assert acting(safe_markdown(text)) == []
    assert acting(plain(text)) == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_accepted(text: str) -> None:
    assert acting(safe_markdown(text)) == []
    assert acting(highlighted([(text, "green"), (text, "")])) == []


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://a/b)",
        "` \n` ![x](http://a) `",
        "a ` | ![x](http://a) | ` b\n-|-|-\n1|2|3",
        "- a\n\n  ```\n  c\n![x](http://a)",
        "\\` ![x](http://a) `",
        "[![x](http://a)](http://b)",
        "![x][r]\n\n[r]: http://a",
        "<img src=http://a>",
        "> ```\n![x](http://a)\n```",
    ],
)
def test_no_image_is_fetched(text: str) -> None:
    assert "image" not in acting(safe_markdown(text))
    assert "html_inline" not in acting(safe_markdown(text))


def test_dollar_signs_and_directives_are_escaped_outside_code() -> None:
    safe = safe_markdown("It costs $5, `$HOME`, :red[x], :material/home: and 10:30 at http://x.y")
    assert "\\$5" in safe
    assert "`$HOME`" in safe
    assert "\\:red" in safe
    assert ":material/home:" not in safe
    assert "10:30" in safe
    assert "http://x.y" in safe


def test_ordinary_formatting_stays() -> None:
    text = "# Title\n\n1. **bold** and *it*\n    - nested `code`\n\n```python\nx = 1 < 2\n```\n"
    assert safe_markdown(text) == text


def test_an_unclosed_fence_is_closed() -> None:
    assert safe_markdown("```js\nlet x").endswith("\nlet x\n```")


def test_a_fence_keeps_only_the_name_of_its_language() -> None:
    assert safe_markdown("~~~ js :red[x]\n1\n~~~").startswith("~~~js\n")


def test_a_very_long_line_and_a_very_long_text_are_quick_and_bounded() -> None:
    start = time.monotonic()
    safe = safe_markdown("`*_[" * 50_000)
    assert time.monotonic() - start < 2
    assert len(safe) < 200_000
    assert "are not shown here" in safe


def test_plain_keeps_lines_and_indentation() -> None:
    assert plain("a\n  b\n\nc") == "a  \n\u00a0\u00a0b  \n\u00a0  \nc"


def test_highlight_marks_within_one_line_and_around_words_only() -> None:
    marked = highlighted([("same ", ""), (" new\nline ", "green")])
    assert ":green-background[new]" in marked
    assert ":green-background[line]" in marked
    assert not re.search(r"background\[\s|\s\]", marked)
    assert "[x\\]" in highlighted([("x]", "green")])


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("<think>\nHm.\n</think>\n\nTamsin.", ("Hm.", "Tamsin.")),
        ("<think>\n\n</think>\n\nTamsin.", ("", "Tamsin.")),
        ("<think>Hm. I was cut", ("Hm. I was cut", "")),
        ("Hm.\n</think>\nTamsin.", ("Hm.", "Tamsin.")),
        ("I wrote <think> once.", ("", "I wrote <think> once.")),
        ("Plain.", ("", "Plain.")),
        ("", ("", "")),
    ],
)
def test_thoughts_and_answer(text: str, wanted: tuple[str, str]) -> None:
    assert thoughts.split(text) == wanted


def test_thoughts_are_quoted_above_the_answer() -> None:
    shown = safe_markdown("<think>Hm.\n![x](http://e.org)\n\n# No</think>\n\n**Tamsin**")
    assert shown.startswith("> *Thinking*  \n> Hm") and shown.endswith("\n\n**Tamsin**")
    assert "![" not in shown and all(
        line.startswith("> ") for line in shown.split("\n\n**Tamsin")[0].split("\n")
    )
    assert "No answer yet" in safe_markdown("<think>Hm.")
    assert safe_markdown("<think>\n\n</think>\n\nHi") == "Hi"
