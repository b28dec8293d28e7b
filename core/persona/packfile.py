"""Read a pack's YAML so that every problem can be told with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core import fsio, paths
from core.errors import MOST_PROBLEMS, UserError, UserErrors
from core.persona.schema import Pack

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml; ten times slower, same result
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

#: The largest pack file, in bytes. Ours have about 60 kB.
MAX_BYTES = 2_000_000

#: The numbers that a pack holds; YAML's own also allow sexagesimal and very long ones.
_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{0,15})?(?:[eE][-+]?[0-9]{1,2})?|\.[0-9]{1,15}")


class PackLoader(_SafeLoader):
    """Plain numbers only: ``1:30`` is 90 in YAML, and ``1:1:1:...`` a number of any size."""


def _number(loader: Any, node: yaml.ScalarNode) -> int | float:
    text = node.value
    if not _NUMBER.fullmatch(text):
        raise yaml.constructor.ConstructorError(
            problem=f"{text[:40]!r} is not a plain number; put it in quotes if it is a text",
            problem_mark=node.start_mark,
        )
    return int(text) if text.lstrip("+-").isdigit() else float(text)


PackLoader.add_constructor("tag:yaml.org,2002:int", _number)
PackLoader.add_constructor("tag:yaml.org,2002:float", _number)


class Document:
    """A parsed YAML file that knows the line of each field.

    ``base`` is the pack it extends: a field that this file does not have is looked up there.
    """

    def __init__(
        self, data: Any, root: yaml.Node | None, name: str, base: Document | None = None
    ) -> None:
        self.data = data
        self.name = name
        self._root = root
        self._base = base

    def where(self, *loc: str | int) -> str:
        """``assistant.yaml:12 intents.who.reply`` for a path into the document."""
        dotted = ".".join(map(str, loc))
        line, depth = self._line(loc)
        if self._base and self._base._line(loc)[1] > depth:
            return self._base.where(*loc)
        return f"{self.name}:{line} {dotted}".rstrip() if line else f"{self.name} {dotted}".rstrip()

    def _line(self, loc: Sequence[str | int]) -> tuple[int, int]:
        """(line of the deepest part found, number of parts found)."""
        node, line, depth = self._root, 0, 0
        for part in loc:
            found = _child(node, part)
            if found is not None:
                line, node = found
                depth += 1
        return line, depth


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def read_document(path: Path) -> Document:
    """Parse a file.

    Raises:
        UserError: it is missing, too large, not UTF-8, not YAML, or uses anchors (a few lines of
            them can stand for gigabytes), or a key twice.
    """
    return parse_document(yaml_text(path, "persona"), path.name)


def yaml_text(path: Path, what: str) -> str:
    """The text of a YAML file that a person writes; ``what`` it holds, for messages.

    Raises:
        UserError: it is missing, too large, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        raw = fsio.read_bytes(path) if size <= MAX_BYTES else b""
    except OSError as error:
        raise UserError(
            f"cannot read the {what} file {path}",
            why=error.strerror or str(error),
            fix="check the path",
        ) from error
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size:,} bytes",
            why=f"a {what} file has at most {MAX_BYTES:,}",
            fix=f"check that this is a {what} file",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"byte {error.start} is not UTF-8",
            fix="save the file as UTF-8",
            where=f"{path.name}:{line}",
        ) from error


def parse_document(text: str, name: str) -> Document:
    """Parse a text; ``name`` stands for the file in messages. Raises as ``read_document``.

    With ``extends: assistant`` the shipped pack of that name is the ground: mappings are merged
    key by key, lists and values replaced, and a key set to null removed.
    """
    document = parse_yaml(text, name)
    data = document.data
    if not isinstance(data, dict) or "extends" not in data:
        return document
    base = _shipped(data["extends"], document)
    own = {k: v for k, v in data.items() if k != "extends"}
    merged = _merge(_fitted(base.data, own), own)
    return Document(merged, document._root, name, base)


def _shipped(name: Any, document: Document) -> Document:
    path = paths.TEMPLATES / f"{name}.yaml"
    if not isinstance(name, str) or not fsio.NAME_RULE.fullmatch(name) or not path.is_file():
        names = ", ".join(p.stem for p in sorted(paths.TEMPLATES.glob("*.yaml")))
        raise UserError(
            f"there is no pack {name!r} to extend",
            fix=f"use one of {names}",
            where=document.where("extends"),
        )
    base = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(base.data, dict) or "extends" in base.data:
        raise UserError(
            f"{path.name} extends a pack itself",
            why="one step is enough to follow by eye",
            fix="extend that one directly",
            where=document.where("extends"),
        )
    return base


def _fitted(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The ground without the languages that ``own`` does not speak and the intents it removes."""
    head = own.get("persona")
    spoken = head.get("locales") if isinstance(head, dict) else None
    own_locales = {x for x in spoken if isinstance(x, str)} if isinstance(spoken, list) else set()
    unspoken = set(base["persona"]["locales"]) - own_locales
    intents = own.get("intents")
    removed = {k for k, v in intents.items() if v is None} if isinstance(intents, dict) else set()
    return _without(base, (unspoken if spoken else set()) | removed)


def _without(value: Any, names: set[str]) -> Any:
    """Drop mapping keys in ``names`` and the edges that lead to one."""
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    if isinstance(value, list):
        return [
            _without(v, names) for v in value if not (isinstance(v, dict) and v.get("to") in names)
        ]
    return value


def _merge(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    merged = {**under, **{k: _merge(under.get(k), v) for k, v in over.items()}}
    return {k: v for k, v in merged.items() if v is not None or k not in over}


def parse_yaml(text: str, name: str) -> Document:
    """YAML of others: no anchors, which could grow without end, no key twice, no tags.

    Raises:
        UserError: it is not that, with the line.
    """
    try:
        # Events first: composing would already expand anchors.
        for event in yaml.parse(text, PackLoader):
            if getattr(event, "anchor", None):
                raise UserError(
                    "anchors and aliases are not allowed",
                    fix="write the value out",
                    where=_at(name, event.start_mark),
                )
        loader = PackLoader(text)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root is not None else None
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply", fix="flatten it") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            "this is not valid YAML",
            why=str(getattr(error, "problem", None) or error).split("\n")[0],
            fix="check quotes, indentation and colons on this line and the one before",
            where=_at(name, mark),
        ) from error
    twice = list(islice(_repeated(root, name), MOST_PROBLEMS))
    if twice:
        raise UserErrors(twice)
    return Document(data, root, name)


def _at(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}" if mark else name


def _repeated(node: yaml.Node | None, name: str) -> Iterator[UserError]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield UserError(
                    f"{key.value!r} is written twice (first on line {seen[key.value]})",
                    fix="keep one of them",
                    where=f"{name}:{line}",
                )
            seen.setdefault(key.value, line)
            yield from _repeated(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value, name)


def to_pack(document: Document) -> Pack:
    """Check the fields. Raises UserErrors with every fault, its line and a fix."""
    if not isinstance(document.data, dict):
        raise UserError(
            "a persona file is a mapping that starts with 'schema: persona/1'",
            fix="start from a pack in data_templates/",
            where=f"{document.name}:1",
        )
    try:
        return Pack.model_validate(document.data)
    except ValidationError as error:
        found = error.errors()  # the line of each is looked for from the top
        problems = [_problem(e, document) for e in found[:MOST_PROBLEMS]]
        raise UserErrors(problems, more=len(found) - len(problems)) from error


_FIXES = {
    "extra_forbidden": "remove it or correct its spelling",
    "missing": "add it",
    "string_type": "put the text in quotes (YAML reads a bare no, on or 1.10 as something else)",
    "literal_error": "choose one of the values named",
}


def _problem(error: Any, document: Document) -> UserError:
    loc = [part for part in error["loc"] if not _is_union_tag(part)]
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error.get("input"))
    if error["type"] in ("string_type", "literal_error", "string_pattern_mismatch"):
        message += f" (found {shown[:60]})"
    field = loc[-1] if loc else ""
    what = {
        "extra_forbidden": f"unknown field {field!r}",
        "missing": f"{field!r} is missing",
    }.get(error["type"], message)
    return UserError(what, fix=_FIXES.get(error["type"], ""), where=document.where(*loc))


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and ("[" in part or part == "[key]")
