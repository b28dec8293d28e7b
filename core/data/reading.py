"""One object of a foreign file as a conversation, whatever tool wrote it.

Turns under ``messages``, ``conversations``, ``conversation``, ``data`` ... in any of the spellings
of OpenAI, ShareGPT, XTuner, UltraChat, Firefly, ms-swift, Axolotl and TRL; or a question and an
answer under any of their usual names, with system text and history. Keys that nothing here reads
are handed back, so that the importer can report each.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from core.conversation import Conversation, Kind, content_id
from core.data.fields import RowError, check_text, flag, is_nothing, says_nothing, whole
from core.data.talk import (
    ANSWER,
    CONTEXT,
    FLAGS,
    QUESTION,
    REJECTED,
    ROLE,
    ROLE_NAMES,
    SYSTEM,
    TURNS,
    WRITTEN,
    Keys,
    Row,
    Talk,
)
from core.data.written import turns_in
from core.text.normalize import locale_of

#: Rows that hang on something that is no text; without it the reply would be about nothing.
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
#: Names of turn keys by the format that ``--format`` names.
FORMAT_KEYS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "xtuner": ("conversation",),
    "ultrachat": ("data",),
    "alpaca": (),
}


@dataclass
class Read:
    """A row that was understood: the keys that were not, and what was done without being asked."""

    conversation: Conversation
    format: str
    left: dict[str, Any]
    notes: Counter[str]


def read_row(row: Row, fmt: str | None = None) -> Read | None:
    """The conversation of a row; None if no key of it is known.

    Args:
        fmt: a name of ``FORMAT_KEYS``, to choose among several; None = told from the keys.

    Raises:
        RowError: the row cannot be used, with the field at fault.
    """
    keys = Keys(_opened(row))
    for name in _MEDIA:
        key, value = keys.get(name)
        if value is not None:
            raise RowError(key, "the row belongs to a picture, film or sound", "leave it out")
    talk = Talk()
    name = "" if fmt else _read_written(keys, talk)
    name = name or _read_turns(keys, talk, FORMAT_KEYS[fmt] if fmt else TURNS)
    if name and talk.messages and talk.messages[-1]["role"] == "user" and keys.has(*ANSWER):
        _answer(talk, *keys.get(*ANSWER))
    elif not name:
        if not keys.has(*QUESTION, *CONTEXT, *ANSWER) or (fmt and fmt != "alpaca"):
            return None
        whole = any(_is_talk(keys.see(key)) for key in ANSWER)
        if keys.has(*QUESTION, *CONTEXT) != keys.has(*ANSWER) and not whole:
            raise _half(keys)
        name = "alpaca" if keys.has("instruction") else "question and answer"
        _read_exchange(keys, talk)
    _put_system(keys, talk, ours=row.get("kind") in get_args(Kind))
    _leave_out_rejected(keys, talk)
    _begin_with_a_question(talk)
    _check_order(talk)
    conversation = _conversation(keys, talk)
    left = {k: v for k, v in {**talk.left, **keys.left}.items() if not is_nothing(v)}
    return Read(conversation, name, left, talk.notes)


def _opened(row: Row) -> Row:
    """The row with what OpenAI's preference format keeps under ``input`` beside the replies."""
    inner = row.get("input")
    if isinstance(inner, Mapping) and Keys(inner).has(*TURNS):
        return {**{k: v for k, v in row.items() if k != "input"}, **inner}
    return row


def _read_written(keys: Keys, talk: Talk) -> str:
    """Read a conversation that is written as one text; "written" or ""."""
    for name in WRITTEN:
        value = keys.see(name)
        turns = turns_in(value) if isinstance(value, str) else []
        asks = name in QUESTION or name in CONTEXT
        if not turns or (asks and keys.has(*ANSWER) and turns[-1] != ("assistant", "")):
            continue
        key, _ = keys.get(name)
        for role, text in turns:
            if text or role == "user":
                talk.say(role, text, key)
                talk.flags += [(key, None)] * (role == "assistant")
        return "written"
    return ""


def _leave_out_rejected(keys: Keys, talk: Talk) -> None:
    _, value = keys.get(*REJECTED)
    if value is not None:
        talk.notes["the preferred reply of a pair was taken, the rejected one left out"] += 1


def _begin_with_a_question(talk: Talk) -> None:
    """Leave out what the assistant says before anybody has asked: no training reads it."""
    at = bool(talk.messages) and talk.messages[0]["role"] == "system"
    while len(talk.messages) > at + 1 and talk.messages[at]["role"] == "assistant":
        del talk.messages[at], talk.role_at[at], talk.flags[:1]
        talk.notes["replies before the first question were left out"] += 1


def _read_turns(keys: Keys, talk: Talk, names: Sequence[str]) -> str:
    """Read the turns under the first of ``names`` that has some; the format's name, or ""."""
    for name in names:
        if not keys.has(name):
            continue
        key, value = keys.get(name)
        turns = _listed(value, key)
        if isinstance(turns, list):
            talk.turns(turns, key)
            return next((f for f, known in FORMAT_KEYS.items() if name in known), "turns")
        if keys.has(*ANSWER) or name not in TURNS[:3]:
            if value is not None:
                keys.left[key] = value
            continue
        what = "there are no turns" if value is None else f"{key} is not a list"
        raise RowError(key, what, "write a list with a user turn and an assistant turn")
    return ""


def _listed(value: Any, key: str) -> Any:
    """Turns as a list: written as text, as tables hold them, or as columns of an object."""
    if isinstance(value, Mapping) and Keys(value).has(*ROLE):
        columns = [column for column in value.values() if isinstance(column, list)]
        if len(columns) == len(value) and len({len(column) for column in columns}) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*columns, strict=True)]
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(key, f"a list that is not JSON: {error}", "write it as JSON") from error


def _half(keys: Keys) -> RowError:
    missing = "question" if keys.has(*ANSWER) else "answer"
    return RowError(
        "",
        f"no {missing} among the keys {', '.join(list(keys.left)[:6])}",
        f"say which key holds it (--columns {missing}=KEY), or leave the row out",
    )


# --- a question and its answer ---------------------------------------------------------------


def _read_exchange(keys: Keys, talk: Talk) -> None:
    _read_history(keys, talk)
    key, question = keys.get(*QUESTION)
    context_key, context = keys.get(*CONTEXT)
    if context is not None and says_nothing(context):
        talk.notes["inputs that say nothing (<noinput>, N/A) were left out"] += 1
        context = None
    answer_key, answer = keys.get(*ANSWER)
    if isinstance(question, list) and all(isinstance(turn, Mapping) for turn in question):
        talk.turns(question, key)
    elif question is not None or context is not None or not _is_talk(answer):
        asked = [(key, question), (context_key, context)]
        texts = [check_text(v, k) for k, v in asked if v is not None]
        talk.say("user", "\n".join(texts), context_key if texts and question is None else key)
    _answer(talk, answer_key, answer)


def _answer(talk: Talk, key: str, answer: Any) -> None:
    """The reply to what was asked: a text, a turn, or turns (TRL repeats the question in them)."""
    if isinstance(answer, Mapping) and Keys(answer).has(*ROLE):
        answer = [answer]
    if _is_talk(answer):
        first = Keys(answer[0]).get(*ROLE)[1]
        if ROLE_NAMES.get(str(first).lower()) != "assistant":
            talk.messages.clear()
            talk.role_at.clear()
            talk.flags.clear()
        talk.turns(answer, key)
    elif isinstance(answer, str) and answer.strip().lower() in ("<nooutput>", "<no output>"):
        raise RowError(key, f"the row says {answer}", "write the reply, or remove the row")
    else:
        talk.say("assistant", answer, key)
        talk.flags.append((key, None))


def _is_talk(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, Mapping) and Keys(turn).has(*ROLE) for turn in value
    )


def _read_history(keys: Keys, talk: Talk) -> None:
    key, value = keys.get("history", "历史")
    history = _listed(value, key)
    if says_nothing(history):
        return
    if not isinstance(history, list):
        raise RowError(key, "history is not a list", "write a list of [user, reply] pairs")
    for at, pair in enumerate(history):
        here = f"{key}[{at}]"
        if isinstance(pair, Mapping):
            talk.turns([pair], key)
        elif isinstance(pair, list) and len(pair) == 2:
            if not all(map(is_nothing, pair)):
                talk.say("user", pair[0], f"{here}[0]")
                talk.say("assistant", pair[1], f"{here}[1]")
                talk.flags.append((here, None))
        else:
            raise RowError(here, "not a [user, reply] pair", "write two texts")


# --- the whole -------------------------------------------------------------------------------


def _put_system(keys: Keys, talk: Talk, *, ours: bool) -> None:
    """The system text beside the turns becomes the first turn; what we wrote is as we wrote it."""
    key, value = keys.get(*SYSTEM)
    if is_nothing(value) if ours else says_nothing(value):
        return
    text = check_text(value, key)
    if not talk.messages or talk.messages[0]["role"] != "system":
        talk.messages.insert(0, {"role": "system", "content": text})
        talk.role_at.insert(0, key)
    elif talk.messages[0]["content"].strip() != text.strip():
        raise RowError(key, "the first turn is another system text", "keep one of them")


def _check_order(talk: Talk) -> None:
    """RowError unless the turns are [system,] user, assistant, user, assistant ... in pairs.

    XTuner's reader would join two user turns without a space, skip a leading assistant turn and
    drop a trailing user turn, all in silence.
    """
    roles = [m["role"] for m in talk.messages]
    if not roles:
        raise RowError("messages", "there are no turns", "add a user turn and an assistant turn")
    offset = 1 if roles[0] == "system" else 0
    for at, found in enumerate(roles[offset:], start=offset):
        expected = "assistant" if (at - offset) % 2 else "user"
        if found != expected:
            raise RowError(
                talk.role_at[at],
                f"{found} where {expected} is expected",
                _order_fix(found, at, offset),
            )
    if roles[-1] != "assistant":
        raise RowError(
            talk.role_at[-1],
            f"the conversation ends with the {roles[-1]} turn",
            "add the reply that the model should learn, or remove the last turn",
        )


def _order_fix(found: str, at: int, offset: int) -> str:
    if found == "system":
        return "keep one system turn, at the very start"
    if at == offset:
        return "begin with a user turn (after the system turn, if there is one)"
    return f"join the two {found} turns into one, or add the turn that is missing between them"


def _conversation(keys: Keys, talk: Talk) -> Conversation:
    key, identity = keys.get("id")
    if identity is not None and not isinstance(identity, (str, int)):
        keys.left[key] = identity
        identity = None
    kind_key, kind = keys.get("kind")
    if kind is not None and kind not in get_args(Kind):
        keys.left[kind_key] = kind
        kind = None
    return Conversation(
        id=whole(str(identity), key) if identity is not None else content_id(talk.messages),
        messages=talk.messages,
        kind=cast(Kind, kind or "own"),
        intent=_label(keys, "intent"),
        cluster=_label(keys, "cluster"),
        locale=_locale(keys) or locale_of(" ".join(m["content"] for m in talk.messages)),
        loss=_loss(keys, talk),
        cut=_is_cut(keys),
    )


def _label(keys: Keys, name: str) -> str:
    key, value = keys.get(name)
    if value is not None and not isinstance(value, str):
        keys.left[key] = value
    return whole(value, key) if isinstance(value, str) else ""


def _locale(keys: Keys) -> str:
    """``en`` of ``en``, ``en-US`` or ``EN_us``; anything else is no locale."""
    key, value = keys.get("locale")
    found = re.fullmatch(r"([A-Za-z]{2,3})(?:[-_]\w+)?", value) if isinstance(value, str) else None
    if value is not None and not found:
        keys.left[key] = value
    return found[1].lower() if found else ""


def _is_cut(keys: Keys) -> bool:
    key, value = keys.get("cut")
    if value is not None and not isinstance(value, bool):
        keys.left[key] = value
    return value is True


def _loss(keys: Keys, talk: Talk) -> list[bool]:
    """The turns' own flags, else those beside them, as a list or one for the row."""
    flags = talk.loss()
    replies = len(talk.flags)
    for name in FLAGS:
        key, value = keys.get(name)
        if isinstance(value, list):
            flags = flags or [flag(v, f"{key}[{i}]") for i, v in enumerate(value)]
        elif value is not None:
            try:
                flags = flags or [flag(value, key)] * replies
            except RowError:
                if name == "loss":
                    raise
                keys.left[key] = value  # the weight of a row among others, not of a turn
    if flags and len(flags) != replies:
        raise RowError(
            "loss",
            f"{len(flags)} loss entries for {replies} replies",
            "write one true or false for each reply, or leave the key out",
        )
    return _judged(keys, flags or [True] * replies)


def _judged(keys: Keys, flags: list[bool]) -> list[bool]:
    """KTO marks a reply as good or bad; a bad one is not learned."""
    for name in ("kto_tag", "label"):
        key, value = keys.get(name)
        if isinstance(value, bool):
            flags = [*flags[:-1], flags[-1] and value]
        elif value is not None:
            keys.left[key] = value
    return flags
