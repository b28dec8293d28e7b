"""What the documents name is there: files, functions, tests, commands and their options."""

from __future__ import annotations

import re
import shlex
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from core.commands.main import build_parser
from core.paths import REPO

pytestmark = pytest.mark.fast

DOCUMENTS = sorted(
    [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), REPO / "data_templates" / "README.md"]
)
README_CHARACTERS = 6_500
_CODE = re.compile(r"`([^`\n]+)`")
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")
_PATH = re.compile(
    r"(?<![\w/])(?:core|pages|tests|docs|benchmarks|data_templates|\.ci)/[\w./*{},-]+"
    r"|(?<![\w./-])[\w./*-]*\w\.(?:py|toml|po|mjs)\b"
)
#: ``core/x/y.py: name`` and ``package.module.name``.
_NAME_IN = re.compile(r"(core/[\w/]+\.py): (\w+)|((?:[a-z_]+\.)+)([a-z_]+)")
_TARGET = re.compile(r"(?:^|`|\$ )make ([a-z-]+)", re.MULTILINE)
_COMMAND = re.compile(r"python -m core (.+)")
#: What runs write, and what belongs to others.
_ELSEWHERE = {".streamlit/secrets.toml", "config.py", "luna/config.py", "convert_hf_to_gguf.py"}


@cache
def repository() -> frozenset[str]:
    """Every file and folder, by its path from the root."""
    skipped = {".git", ".venv", "workspace", "node_modules"}
    found: set[str] = set()
    waiting = [REPO]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.name not in skipped:
                found.add(path.relative_to(REPO).as_posix())
                if path.is_dir() and not path.is_symlink():
                    waiting.append(path)
    return frozenset(found)


def braces(text: str) -> list[str]:
    """``a/{b,c}.py`` -> both."""
    if not (match := re.search(r"\{([^{}]+)\}", text)):
        return [text]
    parts = match[1].split(",")
    return [*chain(*(braces(text[: match.start()] + p + text[match.end() :]) for p in parts))]


def is_there(name: str) -> bool:
    """By its path from the root, or by the end of one (``hooks.py``, ``models/template.py``)."""
    name = name.rstrip("/.")
    if "*" in name:
        return any(REPO.glob(name))
    return name in repository() or any(f.endswith(f"/{name}") for f in repository())


def paths_in(text: str) -> set[str]:
    """Paths of this repository in the code spans of a document."""
    found = (match for span in _CODE.findall(text) for match in _PATH.findall(span))
    return {name for match in found for name in braces(match)} - _ELSEWHERE


def defines(file: Path, name: str) -> bool:
    return bool(re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", file.read_text(), re.MULTILINE))


def missing_names(text: str) -> set[str]:
    """Functions that a document names with their module, and tests, that are not there."""
    wrong = set()
    for span in _CODE.findall(text):
        if match := _NAME_IN.fullmatch(span.removesuffix("()")):
            module = match[1] or f"core/{match[3].rstrip('.').replace('.', '/')}.py"
            if is_there(module) and not defines(REPO / module, match[2] or match[4]):
                wrong.add(span)
        elif re.fullmatch(r"test_\w+", span) and not is_there(f"{span}.py"):
            files = (REPO / "tests").rglob("test_*.py")
            if not any(defines(file, span) for file in files):
                wrong.add(span)
    return wrong


def commands_in(text: str) -> list[list[str]]:
    """What stands behind ``python -m core`` in code, with ``[options]`` given too."""
    code = "\n".join([*_BLOCK.findall(text), *_CODE.findall(_BLOCK.sub("", text))])
    lines = _COMMAND.findall(code.replace("\\\n", " "))
    return [shlex.split(line.partition(" > ")[0].translate({91: "", 93: ""})) for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(REPO).as_posix())
def test_what_a_document_names_is_there(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = document.read_text(encoding="utf-8")
    assert {name for name in paths_in(text) if not is_there(name)} == set()
    assert {link for link in _LINK.findall(text) if not (document.parent / link).exists()} == set()
    assert missing_names(text) == set()
    makefile = (REPO / "Makefile").read_text()
    assert {t for t in _TARGET.findall(text) if f"\n{t}:" not in makefile} == set()
    for arguments in commands_in(text):
        if arguments[0].isupper():  # COMMAND
            continue
        try:
            build_parser().parse_args(arguments)
        except SystemExit as ended:
            ended_well = ended.code == 0 or len(arguments) == 1  # only its name was given
            assert ended_well, (arguments, capsys.readouterr().err)


def test_the_readme_can_be_read_in_two_minutes() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8")) <= README_CHARACTERS


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("`core/training/gone.py`", paths_in),
        ("`core/{errors,gone}.py`", paths_in),
        ("`core/fsio.py: gone`", missing_names),
        ("`jobs.api.gone`", missing_names),
        ("`test_gone_with_the_wind`", missing_names),
    ],
)
def test_what_is_not_there_is_found(text: str, wrong: object) -> None:
    found = paths_in(text) if wrong is paths_in else missing_names(text)
    assert [name for name in found if wrong is missing_names or not is_there(name)]
