"""Model text made safe to show as Markdown.

What a page's Markdown would otherwise do with text that a model wrote: fetch remote images (which
tells a stranger that the reply was read), run Streamlit's colour, badge and icon directives, set
text between two dollar signs as LaTeX, and swallow the rest of the page behind an unclosed code
fence. Raw HTML is escaped by Streamlit itself, and here too.

Only code spans that begin and end on one line, with no address running into them, and fences at
the left margin, are left as they are: only there this module and the Markdown parser are sure to
agree about what is code. Every other backtick is escaped.

Not covered: a link is still a link, and the reader decides whether to follow it; targets that run
code (``javascript:``) are removed by Streamlit's renderer and broken here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from core.text.thoughts import split as split_thoughts

#: A longer line is shown without formatting: Markdown parsers are quadratic in some of them.
LONG_LINE = 5_000
#: Beyond this a reply is shown as its head and tail; the whole is in the raw view and on disk.
LONG_TEXT = 60_000

_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
_PIECE = re.compile(
    r"(?P<escape>\\[!-/:-@\[-`{-~])"
    r"|(?P<code>(?<!`)(?P<ticks>`+)(?!`)(?P<inner>.+?)(?<!`)(?P=ticks)(?!`))"
    r"|(?P<lone>`+)"
)
_BAD_SCHEME = re.compile(
    r"(?i)(javascript|vbscript|data|file)(\s*)(:|&colon;|&#0*58;?|&#x0*3a;?)(?=\S)"
)
_BAD_LINK = re.compile(r"(?i)\]\((?=\s*<?\s*(?:javascript|vbscript|data|file)\s*(?::|&))")
#: Streamlit replaces these after parsing, so a backslash does not stop it; a word joiner does.
_SHORTCODE = re.compile(r":(?=material/|[\w+-]*[A-Za-z][\w+-]*:)")
_WORD_JOINER = "\u2060"
#: Control characters, and marks that reorder what is written around them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#!|$~&^])")
_AUTOLINK = re.compile(r"(?i)(\b(?:https?|ftp|mailto|xmpp):|\bwww(?=\.)|@)")
#: An address runs on to the next blank, also over a backtick, which then opens no code span.
_SWALLOWED = re.compile(r"(?i)(?:https?:|www\.|mailto:|xmpp:|@)[^\s`]*`")


def safe_markdown(text: str) -> str:
    """Text for ``st.markdown``: formatting stays, whatever acts or fetches is shown as written.

    What a reasoning model thought before its answer is quoted above it, so that a reply that
    never came to an answer is not an empty one.
    """
    thoughts, answer = split_thoughts(text)
    if thoughts:
        quoted = plain(thoughts).replace("  \n", "  \n> ")
        return f"> *Thinking*  \n> {quoted}\n\n{_formatted(answer) or '*No answer yet.*'}"
    return _formatted(answer)


def _formatted(text: str) -> str:
    text = _bounded(text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))
    lines: list[str] = []
    closing = ""
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if closing:
            if fence and fence["mark"].startswith(closing) and not fence["info"].strip():
                line, closing = closing, ""
            lines.append(line)
        elif fence and not (fence["mark"][0] == "`" and "`" in fence["info"]):
            closing = fence["mark"]
            # At the margin: a fence inside a list would end with the list, not at its mark. The
            # info string only names a language; anything else in it is dropped.
            lines.append(closing + re.sub(r"[^\w+#.-]", "", fence["info"].strip().split(" ")[0]))
        else:
            lines.append(_long_line(line) if len(line) > LONG_LINE else _line(line))
    if closing:
        lines.append(closing)
    return "\n".join(lines)


def _bounded(text: str) -> str:
    if len(text) <= LONG_TEXT:
        return text
    half = LONG_TEXT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n\n… {left_out:,} characters are not shown here …\n\n{text[-half:]}"


def _line(line: str) -> str:
    """Escape what is not a code span."""
    # In a table the cell border wins over the code span, so there a span protects nothing.
    trust_spans = "|" not in line and not _SWALLOWED.search(line)
    pieces: list[str] = []
    end = 0
    for piece in _PIECE.finditer(line):
        pieces.append(_escape(line[end : piece.start()]))
        if piece["escape"]:
            pieces.append(piece["escape"])
        elif piece["code"] and trust_spans:
            pieces.append(piece["code"])
        elif piece["code"]:
            ticks = "\\`" * len(piece["ticks"])
            pieces.append(ticks + _escape(piece["inner"].replace("`", "\\`")) + ticks)
        else:
            pieces.append("\\`" * len(piece["lone"]))
        end = piece.end()
    pieces.append(_escape(line[end:]))
    return "".join(pieces)


def _escape(text: str) -> str:
    text = _BAD_LINK.sub(r"]\\(", text)
    text = _BAD_SCHEME.sub(rf"\1{_WORD_JOINER}\2\3", text)
    text = text.replace("![", "\\!\\[").replace("<", "&lt;")
    # LaTeX: one dollar sign is enough to open it, whatever precedes it.
    text = text.replace("$", "\\$")
    text = _SHORTCODE.sub(f":{_WORD_JOINER}", text)
    # :red[..], :small[..], :blue-badge[..]
    return re.sub(r":(?=[A-Za-z])", "\\:", text)


def _long_line(line: str) -> str:
    """No formatting at all: every character that could mean something is escaped."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", _SHORTCODE.sub(f":{_WORD_JOINER}", line))


def plain(text: str) -> str:
    """Text without any formatting, for ``st.markdown``: shown as it was written, line by line."""
    text = _bounded(text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))
    # A no-break space keeps indentation, and keeps an empty line from ending the paragraph.
    lines = [re.sub(r"^[ \t]+", lambda m: "\u00a0" * len(m[0]), line) for line in text.split("\n")]
    return "  \n".join(_long_line(line) or "\u00a0" for line in lines)


def literal(value: object) -> str:
    """Anything of others as one line of a sentence: names, ids, messages, file names, addresses.

    The one function for text that this program did not write. Whatever could mean something to
    Streamlit (Markdown, HTML, images, links, LaTeX, directives, icons, emoji) is shown as written,
    control characters and marks that turn the reading direction are left out.
    """
    line = " ".join(_INVISIBLE.sub("", str(value)[: 2 * LONG_LINE]).split())
    line = _PUNCTUATION.sub(r"\\\1", _SHORTCODE.sub(f":{_WORD_JOINER}", line))
    line = re.sub(r":(?=[A-Za-z])", "\\:", line)
    line = _AUTOLINK.sub(rf"\1{_WORD_JOINER}", line)
    # What would begin a list, a heading or a rule if it comes first.
    return re.sub(r"^([-+=]|\d+(?=[.)]))", _first_escaped, line)


def _first_escaped(match: re.Match[str]) -> str:
    return f"{match[1]}{_WORD_JOINER}" if match[1].isdigit() else f"\\{match[1]}"


def code(value: object) -> str:
    """Anything of others in the typewriter face, inside a sentence."""
    line = " ".join(_INVISIBLE.sub("", str(value)[: 2 * LONG_LINE]).split()) or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    # In a table the cell border would win over the code.
    return f"{ticks}{pad}{line}{pad}{ticks}" if "|" not in line else literal(line)


def highlighted(pieces: Iterable[tuple[str, str]]) -> str:
    """Plain text with some runs on a coloured ground.

    Args:
        pieces: (text, colour) with colour "" for none, or one that Streamlit knows: "green",
            "orange", "violet", ...
    """
    out: list[str] = []
    for text, colour in pieces:
        if not colour:
            out.append(plain(text) if text.strip() else text.replace("\n", "  \n"))
            continue
        # A directive must not span lines, and must not begin or end with a blank.
        for line in re.split(r"(\n)", text):
            body = line.strip()
            if not body:
                out.append("  \n" if line == "\n" else line)
                continue
            start = line.index(body)
            marked = f":{colour}-background[{_long_line(body)}]"
            out.append(line[:start] + marked + line[start + len(body) :])
    return "".join(out)
