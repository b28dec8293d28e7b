"""Sentences with slots: a closed subset of Jinja, rendered once.

A sentence of a pack may hold ``{{ name }}``, ``{{ role | a }}``, ``{{ skills | words }}``,
``{{ limits | either }}`` and ``{% if tone == "formal" %}..{% endif %}``; loops, macros, calls,
attribute access, arithmetic and assignments are refused when the pack is read. Without them a
sentence cannot run longer than its own text plus its slots, so no time-out is needed. Slot values
are data: they are put in as they are (but for the capital of an article that begins a sentence)
and never rendered again, whatever braces they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.errors import UserError

#: Longest text that one sentence may render to, in characters.
MAX_RENDERED = 20_000
#: Longest sentence that a pack may hold, in characters.
MAX_SOURCE = 2_000

_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Filter,
    nodes.Const,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
)
_AN = ("hour", "honest", "heir", "honour", "honor")
_A = ("uni", "use", "usu", "eu", "one", "once", "ut")
_ARTICLES = ("a ", "an ", "the ", "my ", "your ", "our ")
#: Stands behind a value that ends a sentence while the text is put together; no text holds it.
_ENDED = "\udc00"
_MARKS = ".!?…。！？"
_TWICE = re.compile(rf"(?<=[?？]){_ENDED}[.!?。！？]*|{_ENDED}[.!。！]*")
#: A slot that begins a sentence: nothing, or the end of another sentence, stands before it.
_AT_HEAD = re.compile(r"(\A|[.!?]\s+)\{\{\s*(\w+)\s*\}\}")


def article(noun: Any) -> str:
    """``personal assistant`` -> ``a personal assistant``; ``AI guide`` -> ``an AI guide``."""
    text = str(noun)
    low = text.lower()
    if low.startswith(_ARTICLES):
        return text
    vowel = (low[:1] in "aeiou" and not low.startswith(_A)) or low.startswith(_AN)
    return f"{'an' if vowel else 'a'} {text}"


def either(items: Any) -> str:
    """Join a list slot behind a negation: ``can't a, b or c``."""
    return words(items, "or")


def words(items: Any, last: str = "and") -> str:
    """Join a list slot: ``a, b and c``; Chinese items are joined by ``、``."""
    parts = [items] if isinstance(items, str) else [str(item) for item in items]
    if any("\u4e00" <= char <= "\u9fff" for part in parts for char in part):
        return "、".join(parts)
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def _head(value: Any) -> Any:
    """``the Sundial Collective`` -> ``The Sundial Collective``; a name keeps its own spelling."""
    if isinstance(value, str) and value.startswith(_ARTICLES):
        return value[0].upper() + value[1:]
    return value


def marked(value: str) -> str:
    """A value to be put into a text that then goes through ``settled``."""
    return value + _ENDED if value.rstrip("\"'”’)）」』")[-1:] in _MARKS and value else value


def settled(text: str) -> str:
    """Drop the full stop behind a value that ends in one: ``made by Acme Inc.``, not ``Inc..``.

    A question mark stays, as it changes what the sentence is: ``made by Acme Inc.?``
    """
    return _TWICE.sub("", text) if _ENDED in text else text


def _finalize(value: Any) -> Any:
    return marked(value) if isinstance(value, str) else value


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    env.filters.clear()
    env.globals.clear()
    env.filters.update({"a": article, "words": words, "either": either, "head": _head})
    return env


_ENV = _environment()


def check(source: str, declared: Sequence[str]) -> str | None:
    """What is wrong with a sentence, or None.

    Args:
        declared: the slots and parameters that it may use.
    """
    if problem := _fault(source):
        return problem
    unknown = sorted(variables(source) - set(declared))
    if unknown:
        known = ", ".join(sorted(declared))
        return f"unknown slot {', '.join(map(repr, unknown))} (known: {known})"
    return None


@lru_cache(maxsize=16384)  # a pack of 2,000 sentences is checked at every look at its page
def _fault(source: str) -> str | None:
    """What is wrong with a sentence, whatever slots there are."""
    if len(source) > MAX_SOURCE:
        return f"{len(source):,} characters; a sentence may have {MAX_SOURCE:,}"
    if "{" not in source:
        return None
    try:
        if problem := _forbidden(_ENV.parse(source)):
            return problem
        # Only now: compiling computes constants, so 9 ** 9 ** 9 would already be computed.
        _ENV.from_string(source)
    except (TemplateError, ValueError) as error:
        return f"not a valid sentence: {str(error)[:200]}"
    except RecursionError:
        return "nested too deeply"
    return None


def _forbidden(tree: nodes.Node) -> str | None:
    for node in _walk(tree):
        if not isinstance(node, _ALLOWED):
            return f"{type(node).__name__.lower()} is not allowed in a sentence"
        if isinstance(node, nodes.Filter) and (node.args or node.kwargs):
            return f"the filter {node.name!r} takes no arguments"
    return None


def _walk(node: nodes.Node) -> list[nodes.Node]:
    found = [node]
    for child in node.iter_child_nodes():
        found += _walk(child)
    return found


@lru_cache(maxsize=16384)
def variables(source: str) -> frozenset[str]:
    """The slots that a sentence uses."""
    if "{" not in source:
        return frozenset()
    return frozenset(meta.find_undeclared_variables(_ENV.parse(source)))


@lru_cache(maxsize=16384)
def _compiled(source: str) -> Template:
    return _ENV.from_string(_AT_HEAD.sub(r"\1{{ \2 | head }}", source))


def render(source: str, values: Mapping[str, Any]) -> str:
    """Put ``values`` into a sentence that passed ``check``; values are never rendered again.

    Raises:
        UserError: the result is longer than MAX_RENDERED characters.
    """
    text = settled(_compiled(source).render(values)) if "{" in source else source
    if len(text) > MAX_RENDERED:
        raise UserError(
            f"a sentence grew to {len(text):,} characters: {source[:80]!r}",
            why=f"with its slots filled it may have {MAX_RENDERED:,}",
            fix="shorten the values of its slots",
        )
    return text
