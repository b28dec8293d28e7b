"""Edit a Python config file by name, keeping its comments, order and layout (libcst).

Nothing here runs the config: it is parsed, changed and printed. Values are given as Python
source; literals from people must come through ``literal`` (repr), so that no text can become
code and nothing is substituted from the environment.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import libcst as cst

from core.errors import UserError

_Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement


def literal(value: Any) -> str:
    """``repr`` of plain data, checked to read back as the same value."""
    text = repr(value)
    try:
        same = ast.literal_eval(text) == value
    except (SyntaxError, ValueError):
        same = False
    if not same:
        raise ValueError(f"{value!r} is not plain data")
    return text


def parse(source: str, where: str) -> cst.Module:
    """Parse without running. Raises UserError with line and column if it is not Python."""
    try:
        ast.parse(source)  # stricter than libcst, and it names the line
        return cst.parse_module(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, cst.ParserSyntaxError) as error:
        # The last two: brackets nested by the thousand, on which Python's own parser gives up.
        line = getattr(error, "lineno", None) or getattr(error, "raw_line", 0)
        reason = getattr(error, "msg", None) or str(error) or "nested too deeply"
        raise UserError(
            f"the config is not valid Python: {reason}",
            fix="mend the line, or start again from the stock config",
            where=f"{where}:{line}" if line else where,
        ) from error


def _expression(code: str) -> cst.BaseExpression:
    return cst.parse_expression(code)


def _statement(code: str) -> cst.SimpleStatementLine:
    statement = cst.parse_statement(code)
    if not isinstance(statement, cst.SimpleStatementLine):
        raise ValueError(f"not a simple statement: {code}")
    return statement


def _assigned(statement: cst.CSTNode) -> str | None:
    """Name that a plain top-level ``name = value`` line assigns."""
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        return None
    node = statement.body[0]
    if isinstance(node, cst.Assign) and len(node.targets) == 1:
        target = node.targets[0].target
        return target.value if isinstance(target, cst.Name) else None
    return None


def _without_comments(comma: cst.Comma | cst.MaybeSentinel) -> cst.Comma:
    """A comma that breaks the line as ``comma`` does, without the comment that follows it."""
    if not isinstance(comma, cst.Comma):
        return cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    after = comma.whitespace_after
    if isinstance(after, cst.ParenthesizedWhitespace):
        line = after.first_line.with_changes(comment=None, whitespace=cst.SimpleWhitespace(""))
        after = after.with_changes(first_line=line, empty_lines=[])
    return cst.Comma(whitespace_after=after)


def _insert_keyword(call: cst.Call, key: str, value: cst.BaseExpression) -> cst.Call:
    """Add ``key=value`` before the last argument, laid out like its neighbours."""
    arg = cst.Arg(
        value=value,
        keyword=cst.Name(key),
        equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
    )
    args = list(call.args)
    if not args:
        return call.with_changes(args=[arg])
    if len(args) == 1 and not isinstance(args[0].comma, cst.Comma):
        first = args[0].with_changes(comma=_without_comments(cst.MaybeSentinel.DEFAULT))
        return call.with_changes(args=[first, arg])
    model = args[-2].comma if len(args) > 1 else args[-1].comma
    args.insert(len(args) - 1, arg.with_changes(comma=_without_comments(model)))
    return call.with_changes(args=args)


def _set_in_call(call: cst.BaseExpression, path: Sequence[str], code: str) -> cst.Call:
    if not isinstance(call, cst.Call):
        raise KeyError(".".join(path))
    key, rest = path[0], path[1:]
    args = list(call.args)
    for index, arg in enumerate(args):
        if arg.keyword is not None and arg.keyword.value == key:
            value = _set_in_call(arg.value, rest, code) if rest else _expression(code)
            args[index] = arg.with_changes(value=value)
            return call.with_changes(args=args)
    if rest:
        inner = _set_in_call(cst.ensure_type(_expression("dict()"), cst.Call), rest, code)
        return _insert_keyword(call, key, inner)
    return _insert_keyword(call, key, _expression(code))


def _remove_in_call(call: cst.BaseExpression, path: Sequence[str]) -> cst.BaseExpression:
    if not isinstance(call, cst.Call):
        return call
    args: list[cst.Arg] = []
    for arg in call.args:
        if arg.keyword is not None and arg.keyword.value == path[0]:
            if len(path) == 1:
                continue
            arg = arg.with_changes(value=_remove_in_call(arg.value, path[1:]))
        args.append(arg)
    if args and args[-1] is not call.args[-1]:  # the bracket's line break hangs on the last comma
        args[-1] = args[-1].with_changes(comma=call.args[-1].comma)
    return call.with_changes(args=args)


class ConfigEditor:
    """A config being edited. Paths are ``name`` or ``name.key.key`` into ``dict(...)`` calls."""

    def __init__(self, source: str, where: str = "config.py") -> None:
        self._module = parse(source, where)

    @property
    def code(self) -> str:
        """The edited source."""
        return self._module.code

    def _index(self, name: str) -> int | None:
        for index, statement in enumerate(self._module.body):
            if _assigned(statement) == name:
                return index
        return None

    def has(self, name: str) -> bool:
        """Whether ``name`` is assigned at top level."""
        return self._index(name) is not None

    def value(self, path: str) -> str | None:
        """Source of the value at ``path``, or None."""
        name, *keys = path.split(".")
        index = self._index(name)
        if index is None:
            return None
        node = self._assign_value(index)
        for key in keys:
            if not isinstance(node, cst.Call):
                return None
            found = [a.value for a in node.args if a.keyword and a.keyword.value == key]
            if not found:
                return None
            node = found[0]
        return self._module.code_for_node(node)

    def _assign_value(self, index: int) -> cst.BaseExpression:
        statement = cst.ensure_type(self._module.body[index], cst.SimpleStatementLine)
        return cst.ensure_type(statement.body[0], cst.Assign).value

    def _replace(self, index: int, statements: Sequence[_Statement]) -> None:
        body = list(self._module.body)
        body[index : index + 1] = list(statements)
        self._module = self._module.with_changes(body=body)

    def _with_value(self, index: int, value: cst.BaseExpression) -> cst.SimpleStatementLine:
        statement = cst.ensure_type(self._module.body[index], cst.SimpleStatementLine)
        assign = cst.ensure_type(statement.body[0], cst.Assign)
        return statement.with_changes(body=[assign.with_changes(value=value)])

    def assign(self, name: str, code: str, *, after: str | None = None, comment: str = "") -> None:
        """Set a top-level name; a new one goes below ``after``. ``comment`` ends the line."""
        index = self._index(name)
        if index is not None:
            statement = self._with_value(index, _expression(code))
            self._replace(index, [self._commented(statement, comment)])
            return
        if after is None or (at := self._index(after)) is None:
            raise KeyError(name)
        new = self._commented(_statement(f"{name} = {code}\n"), comment)
        old = self._module.body[at]
        assert isinstance(old, cst.SimpleStatementLine)
        self._replace(at, [old, new])

    @staticmethod
    def _commented(statement: cst.SimpleStatementLine, comment: str) -> cst.SimpleStatementLine:
        if not comment:
            return statement
        trailing = cst.TrailingWhitespace(
            whitespace=cst.SimpleWhitespace("  "), comment=cst.Comment(f"# {comment}")
        )
        return statement.with_changes(trailing_whitespace=trailing)

    def rename(self, old: str, new: str, code: str, *, comment: str = "") -> bool:
        """Replace ``old = ...`` by ``new = code`` in place; False if ``old`` is not there."""
        index = self._index(old)
        if index is None:
            return False
        lead = cst.ensure_type(self._module.body[index], cst.SimpleStatementLine).leading_lines
        statement = _statement(f"{new} = {code}\n").with_changes(leading_lines=lead)
        self._replace(index, [self._commented(statement, comment)])
        return True

    def set(self, path: str, code: str) -> None:
        """Set the value at ``path``; keys that are missing are added."""
        name, *keys = path.split(".")
        index = self._index(name)
        if index is None:
            raise KeyError(path)
        if not keys:
            self.assign(name, code)
            return
        value = _set_in_call(self._assign_value(index), keys, code)
        self._replace(index, [self._with_value(index, value)])

    def remove(self, path: str) -> None:
        """Remove the key at ``path`` if it is there."""
        name, *keys = path.split(".")
        index = self._index(name)
        if index is None:
            return
        if not keys:
            self._replace(index, [])
            return
        value = _remove_in_call(self._assign_value(index), keys)
        self._replace(index, [self._with_value(index, value)])

    def remove_list_item(self, name: str, type_name: str) -> None:
        """Drop ``dict(type=type_name, ...)`` from the top-level list ``name``."""
        index = self._index(name)
        if index is None:
            return
        items = self._assign_value(index)
        if not isinstance(items, cst.List):
            return
        kept = [e for e in items.elements if _type_of(e.value) != type_name]
        if kept and kept[-1] is not items.elements[-1]:
            kept[-1] = kept[-1].with_changes(comma=items.elements[-1].comma)
        value = items.with_changes(elements=kept)
        self._replace(index, [self._with_value(index, value)])

    def ensure_import(self, module: str, name: str) -> None:
        """Add ``from module import name`` unless a top-level import already binds ``name``."""
        last = 0
        for index, statement in enumerate(self._module.body):
            if not isinstance(statement, cst.SimpleStatementLine):
                continue
            node = statement.body[0]
            if isinstance(node, (cst.ImportFrom, cst.Import)):
                last = index
                names = node.names if not isinstance(node.names, cst.ImportStar) else []
                if any(self._module.code_for_node(n.name) == name for n in names):
                    return
        code = f"import {name}\n" if not module else f"from {module} import {name}\n"
        self._replace(last, [self._module.body[last], _statement(code)])


def _type_of(node: cst.BaseExpression) -> str | None:
    if isinstance(node, cst.Call):
        for arg in node.args:
            if arg.keyword and arg.keyword.value == "type" and isinstance(arg.value, cst.Name):
                return arg.value.value
    return None
