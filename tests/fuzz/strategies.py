"""Hostile inputs: odd JSON values, and files that were once good and have been spoilt."""

# ruff: noqa: E501  (examples of what parsers trip over)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

#: Pieces that parsers trip over.
_TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\xe2\x80\xa8", b"\xed\xa0\x80",
    b"\\ud800", b"\\u0000", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b":", b"- ", b"&a ", b"*a",
    b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!binary x", b"!!set", b"? ", b"|\n", b">\n",
    b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 400, b"1_0", b"0x", b"2026-13-45", b"12:61:61", b"null",
    b"true", b"~", b"<|im_end|>", b"{{ x }}", b"{% for %}", b"{{ 9**9**9 }}", b"\x1b]52;c;x\x07",
    b"\xf0\x9f\x98\x80", b"[" * 2000, b'{"a":' * 2000, b"\t", b";", b"x" * 5000, b"/", b"../", b"%00",
]  # fmt: skip

_EDIT = st.tuples(
    st.integers(0, 1 << 16),
    st.integers(0, 40),
    st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=12), st.just(b"")),
)


@st.composite
def spoilt(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    """A good file after a few edits: pieces cut out, put in, doubled, or its end lost."""
    data = draw(st.sampled_from(good))
    for at, cut, piece in draw(st.lists(_EDIT, max_size=6)):
        place = at % (len(data) + 1)
        data = data[:place] + piece + data[place + cut :]
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    if draw(st.integers(0, 19)) == 0:
        data = data + draw(st.sampled_from(good))
    return data


ODD_TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "", " ", "\x00", "\ud800", "x" * 300, "../x", "/etc/passwd", "con", "é" * 200, "nan", "1e999",
        "<|im_end|>", "{{ x }}", "{% endfor %}", "![a](http://c.d/e)", "\x1b[2J", "(a+)+$", "\u2028",
    ]),
)  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ODD_TEXT,
    st.sampled_from([10**400, -1, 0, 2**63, -(2**63), 1e308, 0.1]),
)  # fmt: skip

VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT, inner, max_size=4),
    max_leaves=10,
)


def records(keys: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with keys that a reader knows, and values that it does not expect."""
    return st.dictionaries(st.sampled_from(list(keys)) | ODD_TEXT, VALUES, max_size=8)


def changed(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good record with some values replaced, at its top or one level down, and some keys lost."""
    keys = list(good)

    @st.composite
    def draw_one(draw: st.DrawFn) -> dict[str, Any]:
        record = {**good}
        for key in draw(st.lists(st.sampled_from(keys), max_size=3)):
            inner = record.get(key)
            if isinstance(inner, dict) and inner and draw(st.booleans()):
                record[key] = {**inner, draw(st.sampled_from(list(inner))): draw(VALUES)}
            elif isinstance(inner, list) and inner and draw(st.booleans()):
                at = draw(st.integers(0, len(inner) - 1))
                record[key] = [*inner[:at], draw(VALUES), *inner[at + 1 :]]
            elif draw(st.integers(0, 4)) == 0:
                record.pop(key, None)
            else:
                record[key] = draw(VALUES)
        return record

    return draw_one()
