"""Text of others is text: on the pages, on a terminal and in exports."""

from __future__ import annotations

import ast
import os
import pty
import re
import subprocess
import sys
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.chat.columns import Column
from core.chat.dialogue import Reply, Transcript, Turn
from core.chat.export import to_html, to_markdown
from core.chat.render import code, literal, plain, safe_markdown
from core.console import printable
from core.inference.settings import GenerationSettings
from core.paths import REPO

pytestmark = pytest.mark.fast

MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")
#: GitHub's flavour, which the browser reads, takes an address with the backticks in it. From left
#: to right: code that begins before an address is code.
CODE_OR_ADDRESS = re.compile(
    r"(?P<code>(?<!`)(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`))"
    r"|(?i:(?<!\]\()(?:https?://|www\.|[\w.+-]+@)[^\s<]*)"
)

ATTACKS = [
    "http://a.b/` ![a](http://c.d/e) `",
    "www.a.b/` ![a](http://c.d/e) `",
    "me@a.bc` ![a](http://c.d/e) `",
    "HTTPS://a.b/``x ![a](http://c.d/e) ``",
    "![a](http://c.d/e)",
    "[![a](http://c.d/e)](http://x)",
    "![a][b]\n\n[b]: http://c.d/e",
    "<img src=http://c.d/e onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "a | ` ![a](http://c.d/e) ` |\n|-|\n",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "    indented",
    "```\nfence",
    ":x: :material/home: :red[x] $x$ $$y$$",
    "**bold** _em_ ~~gone~~",
    "| a | b |\n|---|---|\n| ![x](http://c.d/e) | y |",
    "\\![a](http://c.d/e)",
    "`\n![a](http://c.d/e)\n`",
    "a\u2028![a](http://c.d/e)",
    "&lt;img&gt; &#33;[a](http://c.d/e)",
]


def images(source: str) -> list[str]:
    """Elements that act: with addresses as text, and taken out first, as the browser does."""
    pages = MARKDOWN.render(source) + MARKDOWN.render(
        CODE_OR_ADDRESS.sub(lambda m: m["code"] or "", source)
    )
    return re.findall(r"<(?:img|script|iframe)[^>]*>", pages)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_fetched(attack: str) -> None:
    shown = [safe_markdown(attack), plain(attack), literal(attack), code(attack)]
    shown += [
        f"**{literal(attack)}**: {literal(attack)}",
        f"see {code(attack)}",
        f"- {literal(attack)}",
    ]
    for source in shown:
        assert images(source) == [], source


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_literal_is_one_line_of_text_and_no_more(attack: str) -> None:
    html = MARKDOWN.render(literal(attack))
    inner = html.strip().removeprefix("<p>").removesuffix("</p>")
    assert "<" not in inner, html
    assert not re.search(r"(?<!\\)[$]", literal(attack))
    assert not re.search(r":(?:material/|\w+:)", literal(attack).replace("\\", ""))
    assert not re.search(r"(?<!\\):[A-Za-z]", literal(attack))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ATTACKS, "`", " ", "x", "|", "\\", "http://", "<", "\n"]), max_size=6
    )
)
def test_no_combination_fetches(parts: list[str]) -> None:
    text = "".join(parts)
    for source in (safe_markdown(text), plain(text), literal(text), code(text)):
        assert images(source) == [], source


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_a_literal_reads_as_it_was_written(text: str) -> None:
    """But for control characters, runs of blanks and invisible joiners."""
    html = MARKDOWN.renderInline(literal(text))
    for mark, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        html = html.replace(mark, char)
    shown = html.replace("\u2060", "")
    visible = re.sub(
        "[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\u2060]",
        "",
        text,
    )
    assert shown == " ".join(visible.split())


ESCAPES = "\x1b]52;c;ZWNobyBoaQ==\x07\x1b[2J\x1b[31mred\x9b1m\r\x08\u202etxt"


def test_a_terminal_gets_no_sequences() -> None:
    assert printable(ESCAPES) == "red1mtxt"
    assert printable("a\tb\r\nc\n") == "a\tb\nc\n"
    assert printable("a\u061c\u200e\u200f\u202e\u2066b") == literal("a\u061c\u200eb") == "ab"


def test_what_the_command_line_prints_on_a_terminal_is_text() -> None:
    """A real terminal, and an error that quotes a stranger."""
    parent, child = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "core", "model", f"/no/{ESCAPES}".replace("\x00", "")],
            stdout=child, stderr=child, cwd=REPO, timeout=120, check=False,
        )  # fmt: skip
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 4096):
                shown += piece
        except OSError:
            pass
    finally:
        os.close(parent)
    assert b"error:" in shown
    assert b"\x1b" not in shown and b"\x07" not in shown


def transcript(text: str) -> Transcript:
    reply = Reply(text=text, tokens=1, finish_reason="stop")
    turns = [Turn(text, GenerationSettings(), {"a": reply})]
    return Transcript("c1", 0.0, [Column("a", "base", text, "bundled")], text, turns=turns)


@pytest.mark.parametrize("attack", ATTACKS)
def test_exports_hold_text(attack: str) -> None:
    assert "## 1. Prompt" in to_markdown(transcript(attack))
    assert images(to_markdown(transcript(attack))) == []
    page = to_html(transcript(attack))
    assert not re.findall(r"<(?:img|script)", page)


# -- the pages: raw interpolation is refused -------------------------------------------------

#: Streamlit calls whose first argument, help, text or label is read as Markdown.
_DRAWN = """
markdown caption write error warning info success subheader header title toast button
download_button expander popover metric checkbox toggle radio selectbox multiselect text_input
text_area number_input slider spinner status progress page_link link_button badge
form_submit_button file_uploader
"""
DRAWN = set(_DRAWN.split())
SAFE = {"literal", "code", "safe_markdown", "plain", "highlighted", "shown", "stats"}
#: Functions of ours and of the library whose result is digits and units.
NUMBERS = {
    "len", "human_bytes", "time_left", "count", "round", "min", "max", "sum",
    "duration", "number", "percent", "day", "clock", "moment",
}  # fmt: skip


def _numbers(spec: ast.expr | None) -> bool:
    return spec is not None and bool(re.search(r"[,.%de]", ast.unparse(spec)))


def raw(node: ast.expr) -> list[str]:
    """Interpolated expressions of a text that go through no safe function."""
    if isinstance(node, ast.JoinedStr):
        found = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and not _numbers(part.format_spec):
                found += value(part.value)
        return found
    if isinstance(node, ast.BinOp):
        return raw(node.left) + raw(node.right)
    if isinstance(node, ast.IfExp):
        return raw(node.body) + raw(node.orelse)
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"t", "tn"}:
        return translated(node)
    return []


def translated(call: ast.Call) -> list[str]:
    """What goes into the holes of ``t("...", name=...)``; one with a number's format is a number.

    A sentence that is not a constant is one marked with N_ (an upper-case name), or raw.
    """
    sentence = call.args[0]
    constant = isinstance(sentence, ast.Constant)
    numbers = {
        name
        for _, name, spec, _ in (Formatter().parse(sentence.value) if constant else ())
        if spec and re.search(r"[,.%de]", spec)
    }
    found = [] if constant else value(sentence)
    for keyword in call.keywords:
        if keyword.arg not in numbers:
            found += value(keyword.value)
    return found


def value(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant | ast.Compare):
        return []
    if isinstance(node, ast.IfExp | ast.BoolOp):
        parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
        return [x for part in parts for x in value(part)]
    if isinstance(node, ast.BinOp):
        return value(node.left) + value(node.right)
    if isinstance(node, ast.JoinedStr):
        return raw(node)
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).split(".")[-1]
        if name in {"t", "tn"}:
            return translated(node)
        if name in SAFE | NUMBERS:
            return []
    if isinstance(node, ast.Name | ast.Subscript) and ast.unparse(node).split("[")[0].isupper():
        return []
    return [ast.unparse(node)]


#: Interpolated names that hold numbers, or text of ours. Everything else is of others.
OURS = {
    "bootstrap.py": {"why"},
    "current.py": {"gone", "why"},
    "batch.py": {"kl", "line", "base", "waiting.said(holder)", "changed", "total", "done", "left"},
    "chat.py": {"question", "waiting.said(holder)"},
    "turns.py": {"drawn", "known", "key", "icon", "words", "colour", "place", "count"},
    "transcripts.py": {"listed(names)", "tally.ties", "tally.both_bad"},
    "scorecard_jobs.py": {"name", "form.title", "form.pick", "form.button", "form.none_yet"},
    "columns.py": {"letter.upper()", "values", "held", "first", "second", "name", "listed(names)"},
    "waiting.py": {"said(holder)"},
    "report.py": {"report.lengths.limit", "text"},
    "rows.py": {"kept", "held"},
    "sidebar.py": {"title", "about"},
    "intro.py": {"icon", "name", "about"},
    "watch.py": {"kept", "left", "title", "_icon(view)", "spent", "now.done", "now.total"},
    "result.py": {"took", "spent"},
    "state.py": {"done"},
    "details.py": {"now.left_over"},
    "source.py": {"changed"},
    "form.py": {"info.label"},
    "files.py": {"what.capitalize()"},
    "scorecard_view.py": {
        "after['n']",
        "after['hits']",
        "low",
        "high",
        "best['step']",
        "plain.SIZES[size]",
    },
    "faults.py": {"number"},
}


def texts(tree: ast.Module) -> list[ast.expr]:
    """Every text that a module draws: in the calls, and in its own functions that make them."""
    makers = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    found: list[ast.expr] = []
    asked: set[str] = set()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        drawn = [k.value for k in call.keywords if k.arg in {"help", "text", "label"}]
        if call.func.attr in DRAWN:
            drawn += call.args[:2]
        found += drawn
        for node in drawn:
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in makers:
                asked.add(called.id)
    for name in asked:
        inside = ast.walk(makers[name])
        found += [n for n in inside if isinstance(n, ast.JoinedStr) or _translates(n)]  # type: ignore[misc]
    return found


def _translates(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"t", "tn"}


def test_pages_interpolate_nothing_raw() -> None:
    found = []
    for path in sorted((REPO / "pages").rglob("*.py")):
        for node in texts(ast.parse(path.read_text(encoding="utf-8"))):
            names = set(raw(node)) - OURS.get(path.name, set())
            found += [f"{path.relative_to(REPO)}:{node.lineno} {name}" for name in names]
    assert found == [], "text of others goes through core.chat.render.literal or code"


def test_the_rule_sees_what_it_should() -> None:
    call = ast.parse("st.error(f'{run.name}: {n:,} {literal(x)}' + f'{len(y)} {z or w}')").body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    assert set(raw(call.value.args[0])) == {"run.name", "z", "w"}
    call = ast.parse("st.error(t('{a} {b} {n:,}', a=run.name, b=code(x), n=k) + t(said))").body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    assert set(raw(call.value.args[0])) == {"run.name", "said"}
    tree = ast.parse("def said(x): return f'{x.name}'\ndef draw(): st.caption(said(1))")
    assert {name for node in texts(tree) for name in raw(node)} == {"x.name"}
