"""The texts that want a translation, read from the syntax trees; and the catalogue put in order.

``python -m tests.texts`` sorts core/language/zh.po and core.zh.po, adds what is missing with an
empty translation and drops what no text uses; then the empty ones are written by hand.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from core.language import translations
from core.paths import REPO
from tests.core_messages import Core

#: (one, many) of a text that counts, or the text.
Key = str | tuple[str, str]
#: Functions whose first argument is the English sentence; of the counting ones the first two.
PLAIN = {"t", "N_", "translate"}
COUNTING = {"tn", "translate_count"}
#: Without dates and names, which would conflict at every merge.
HEADER = """msgid ""
msgstr ""
"Language: zh_Hans\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).split(".")[-1]


def _texts(node: ast.expr) -> list[str]:
    """The constant texts that an argument may be; [] if it is computed."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return []


def keys_of(source: str) -> Iterator[tuple[int, Key]]:
    """(line, key) of every text that a module marks."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if _name(call) in PLAIN:
            for text in _texts(call.args[0]):
                yield call.lineno, text
        elif _name(call) in COUNTING:
            for one, many in zip(_texts(call.args[0]), _texts(call.args[1]), strict=True):
                yield call.lineno, (one, many)


def page_keys() -> dict[Key, str]:
    """Every marked text, with the first place where it stands."""
    found: dict[Key, str] = {}
    files = [*(REPO / "pages").rglob("*.py"), *(REPO / "core").rglob("*.py")]
    for path in sorted([*files, REPO / "streamlit_app.py"]):
        for line, key in keys_of(path.read_text(encoding="utf-8")):
            found.setdefault(key, f"{path.relative_to(REPO)}:{line}")
    return found


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, abort_invalid=True)


def write(path: Path, wanted: dict[Key, str]) -> list[Key]:
    """Put the catalogue in order; the keys that are still empty."""
    before = read(path) if path.is_file() else Catalog()
    after = Catalog(locale="zh_Hans")
    empty = []
    for key in wanted:
        known = before.get(key if isinstance(key, str) else key[0])
        string = known.string if known else ""
        if isinstance(string, tuple) and isinstance(key, str):
            string = string[0]
        if isinstance(string, str) and not isinstance(key, str):
            string = (string,)
        after.add(key, string).flags.clear()
        if not any(string):
            empty.append(key)
    with path.open("wb") as file:
        file.write(HEADER.encode())
        write_po(file, after, width=0, sort_output=True, omit_header=True)
    return empty


def core_keys() -> dict[Key, str]:
    """Every message of core that a page may show, with the place where it stands."""
    return dict(Core().messages())


if __name__ == "__main__":
    missing = write(translations.path_of("zh"), page_keys())
    missing += write(translations.path_of("zh", "core"), core_keys())
    for key in missing:
        print(f"no translation yet: {key!r}")
    sys.exit(bool(missing))
