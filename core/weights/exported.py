"""The chat template that leaves with a tuned model, for programs that are not ours.

A base may introduce itself where nobody wrote a system turn ("You are Qwen, created by ..."). The
tuned model was taught another identity, with that turn before it and with the persona's own
(``system_share`` of the rows), so the copy that is shipped says the persona's. The base's own
folder is left as it is: checkpoints are trained, scored and chatted with under its template, and a
merged folder under the one it carries, token for token the same in this program and in others.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import Message
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.template import ChatTemplate

_FOLD = (
    "{%- if messages[0]['role'] == 'system' and messages[1:] %}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + "
    "messages[1]['content']}] + messages[2:] %}{%- endif -%}\n"
)
_DEFAULT = (
    "{%%- if messages[0]['role'] != 'system' %%}{%%- set messages = "
    "[{'role': 'system', 'content': %s}] + messages %%}{%%- endif -%%}\n"
)


def folding(template: ChatTemplate) -> str:
    """The template's source; one that refuses a system turn folds it in by itself then."""
    source = str(template.tokenizer.chat_template)
    return source if template.takes_system else _FOLD + source


def introducing(template: ChatTemplate, system: str) -> str:
    """The template's source with ``system`` where it introduced somebody else.

    Unchanged if its default system turn names nobody, or if there is nothing to say instead.

    Raises:
        UserError: no way to say it was found that leaves all other turns as they are.
    """
    source = str(template.tokenizer.chat_template)
    if not system or not template.introduces:
        return source
    for candidate in _candidates(source, template.default_system, system):
        if _same_but_for_default(template, candidate, system):
            return candidate
    raise UserError(
        "the default system turn of this chat template cannot be replaced",
        why=f"it says: {template.default_system[:200]}",
        fix="edit chat_template in the base's tokenizer_config.json and merge again",
    )


def _candidates(source: str, before: str, after: str) -> Iterator[str]:
    """In place of the old text, escaped as in a literal or plain; else in front of everything."""
    escaped = json.dumps(after, ensure_ascii=False)[1:-1].replace("'", "\\'")
    for old in (before, json.dumps(before, ensure_ascii=False)[1:-1]):
        if old in source:
            yield source.replace(old, escaped)
            yield source.replace(old, after)
    yield _DEFAULT % json.dumps(after, ensure_ascii=False) + source


def with_source(template: ChatTemplate, source: str) -> ChatTemplate:
    """The same tokenizer with another template."""
    tokenizer = copy.copy(template.tokenizer)
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


def _same_but_for_default(template: ChatTemplate, source: str, system: str) -> bool:
    new = with_source(template, source)
    user: Message = {"role": "user", "content": "Hi"}
    spoken: list[Message] = [{"role": "system", "content": system}, user]
    other: list[Message] = [{"role": "system", "content": "Be brief."}, user]
    reply: Message = {"role": "assistant", "content": "Hello."}
    try:
        return all(
            new.render([user, *rest], prompt) == template.render([*spoken, *rest], prompt)
            and new.render([*other, *rest], prompt) == template.render([*other, *rest], prompt)
            for rest, prompt in (([], True), ([reply], False), ([reply, user], True))
        )
    except UserError:
        return False


def rewrite(folder: Path, system: str) -> str:
    """Let a model folder introduce itself with ``system`` where its template names a vendor.

    Returns:
        What there is to know about it ('' if its template names nobody).
    """
    try:
        template = ChatTemplate(load_tokenizer(folder))
    except UserError:
        return ""  # without a chat template nobody is introduced; the proof needs one and says so
    named = template.introduces
    if not named:
        return ""
    if not system:
        return f"without a system turn the chat template still says: {template.default_system}"
    source = introducing(template, system)
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = fsio.read_json(path) if path.is_file() else {}
    if config.pop("chat_template", None) is not None:
        fsio.write_json(path, config)
    (folder / "chat_template.json").unlink(missing_ok=True)
    fsio.atomic_write_text(folder / "chat_template.jinja", source)
    return (
        f"without a system turn the base says: {template.default_system!r}; "
        f"this model says: {system!r}"
    )
