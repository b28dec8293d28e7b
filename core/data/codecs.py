"""Row by row: a conversation to the JSON object of each format and back, with checks.

Every check names the field at fault by its path in the row and says how to mend it. The formats
themselves are listed in ``core.data.formats``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from core.conversation import Conversation, Kind, Message, Role
from core.data.fields import RowError, check_text, flag
from core.fsio import dump_json

Row = Mapping[str, Any]

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_KINDS = get_args(Kind)

#: Spellings of the roles that other tools write.
ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


# --- shared checks ---------------------------------------------------------------------------


def guess_locale(text: str) -> str:
    """``"zh"`` if at least a fifth of the letters are CJK, else ``"en"``."""
    letters = sum(c.isalpha() for c in text)
    return "zh" if letters and len(_CJK.findall(text)) / letters >= 0.2 else "en"


def content_id(messages: Sequence[Message]) -> str:
    """A stable id (12 hex digits) of a conversation's text."""
    return hashlib.sha256(dump_json(list(messages)).encode()).hexdigest()[:12]


def check_order(messages: Sequence[Message], path: str, roles_at: str = ".role") -> None:
    """RowError unless the turns are [system,] user, assistant, user, assistant ... in pairs.

    XTuner's reader would join two user turns without a space, skip a leading assistant turn and
    drop a trailing user turn, all in silence.
    """
    if not messages:
        raise RowError(path, "there are no turns", "add a user turn and an assistant turn")
    offset = 1 if messages[0]["role"] == "system" else 0
    for at, message in enumerate(messages[offset:], start=offset):
        expected = "assistant" if (at - offset) % 2 else "user"
        found = message["role"]
        if found != expected:
            raise RowError(
                f"{path}[{at}]{roles_at}",
                f"{found} where {expected} is expected",
                _order_fix(found, at, offset),
            )
    if len(messages) == offset or messages[-1]["role"] != "assistant":
        raise RowError(
            f"{path}[{len(messages) - 1}]{roles_at}",
            f"the conversation ends with the {messages[-1]['role']} turn",
            "add the reply that the model should learn, or remove the last turn",
        )


def _order_fix(found: str, at: int, offset: int) -> str:
    if found == "system":
        return "keep one system turn, at the very start"
    if at == offset:
        return "begin with a user turn (after the system turn, if there is one)"
    return f"join the two {found} turns into one, or add the turn that is missing between them"


def _conversation(row: Row, messages: list[Message], loss: list[bool]) -> Conversation:
    replies = sum(m["role"] == "assistant" for m in messages)
    if loss and len(loss) != replies:
        raise RowError(
            "loss",
            f"{len(loss)} loss entries for {replies} replies",
            "write one true or false for each reply, or leave the key out",
        )
    label = {k: row[k] for k in ("intent", "cluster", "locale") if isinstance(row.get(k), str)}
    label.setdefault("locale", guess_locale(" ".join(m["content"] for m in messages)))
    identity = row.get("id")
    return Conversation(
        id=str(identity)
        if isinstance(identity, (str, int)) and identity != ""
        else content_id(messages),
        messages=messages,
        kind=_kind(row.get("kind")),
        loss=loss,
        cut=row.get("cut") is True,
        **label,
    )


def _kind(value: Any) -> Kind:
    return cast(Kind, value) if value in _KINDS else "own"


def _labels(conversation: Conversation) -> dict[str, Any]:
    labels = {k: getattr(conversation, k) for k in ("kind", "intent", "cluster", "locale")}
    return {**labels, "cut": True} if conversation.cut else labels


def _loss_list(row: Row) -> list[bool]:
    value = row.get("loss")
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("loss", "loss is not a list", "write one true or false for each reply")
    return [flag(v, f"loss[{i}]") for i, v in enumerate(value)]


def _system(row: Row) -> list[Message]:
    if row.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": check_text(row["system"], "system")}]


def _list_of(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list):
        raise RowError(key, f"{key} is not a list", f"write {key} as a list of turns")
    return value


# --- OpenAI messages and ShareGPT ------------------------------------------------------------


def from_turns(row: Row, key: str) -> Conversation:
    """OpenAI messages or ShareGPT, under ``key``; raises RowError.

    Tools mix the two spellings of role and text, so either is read under either key.
    """
    messages: list[Message] = []
    flags: list[tuple[int, Any]] = []
    for at, turn in enumerate(_list_of(row, key)):
        here = f"{key}[{at}]"
        if not isinstance(turn, Mapping):
            raise RowError(here, "a turn is not an object", "write an object with role and text")
        role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
        role = ROLE_NAMES.get(str(turn.get(role_key, "")).lower())
        if role is None:
            raise RowError(
                f"{here}.{role_key}",
                f"unknown role {turn.get(role_key)!r}",
                "use system, user (human) or assistant (gpt); tool turns cannot be trained here",
            )
        messages.append(
            {"role": role, "content": check_text(turn.get(text_key), f"{here}.{text_key}")}
        )
        if role == "assistant":
            flags.append((at, turn.get("loss")))
    check_order(messages, key)
    return _conversation(row, messages, _loss_of_turns(flags, key) or _loss_list(row))


def _loss_of_turns(flags: Sequence[tuple[int, Any]], key: str) -> list[bool]:
    present = [value is not None for _, value in flags]
    if not any(present):
        return []
    if not all(present):
        at = flags[present.index(False)][0]
        raise RowError(
            f"{key}[{at}].loss",
            "some replies have a loss key and some have none",
            "write loss on every assistant turn of the file, or on none: readers take "
            "a missing key for false",
        )
    return [flag(value, f"{key}[{at}].loss") for at, value in flags]


def to_messages(c: Conversation) -> dict[str, Any]:
    """OpenAI messages, with ``loss`` on every assistant turn."""
    return c.to_row()


def to_sharegpt(c: Conversation) -> dict[str, Any]:
    """ShareGPT; ``loss`` is a list beside the turns, one entry a reply."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in c.messages]
    return {"id": c.id, "conversations": turns, "loss": c.loss, **_labels(c)}


# --- XTuner conversation ---------------------------------------------------------------------


def xtuner_turns(c: Conversation) -> list[dict[str, Any]]:
    """XTuner's own shape: one object for each exchange, the system text on the first."""
    system, pairs = split_pairs(c)
    return [
        {
            "system": system if at == 0 else "",
            "input": user,
            "output": reply,
            "output_with_loss": loss,
        }
        for at, ((user, reply), loss) in enumerate(zip(pairs, c.loss, strict=True))
    ]


def split_pairs(c: Conversation) -> tuple[str, list[tuple[str, str]]]:
    """(system text or "", [(user, reply), ...])."""
    texts = [m["content"] for m in c.messages]
    system = texts.pop(0) if c.messages and c.messages[0]["role"] == "system" else ""
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def to_xtuner(c: Conversation) -> dict[str, Any]:
    """XTuner's ``conversation``."""
    return {"id": c.id, "conversation": xtuner_turns(c), **_labels(c)}


def from_xtuner(row: Row) -> Conversation:
    """The inverse of ``to_xtuner``; raises RowError."""
    turns = _list_of(row, "conversation")
    messages: list[Message] = []
    flags: list[Any] = []
    for at, turn in enumerate(turns):
        here = f"conversation[{at}]"
        if not isinstance(turn, Mapping):
            raise RowError(here, "a turn is not an object", "write input and output")
        if turn.get("system"):
            if at:
                raise RowError(
                    f"{here}.system",
                    "a system text after the first exchange",
                    "move it to the first exchange",
                )
            system = check_text(turn["system"], f"{here}.system")
            messages += [{"role": "system", "content": system}]
        messages += _pair(turn.get("input"), turn.get("output"), f"{here}.input", f"{here}.output")
        flags.append(turn.get("output_with_loss"))
    check_order(messages, "conversation", "")
    return _conversation(row, messages, _loss_of_pairs(flags))


def _loss_of_pairs(flags: Sequence[Any]) -> list[bool]:
    if all(value is None for value in flags):
        return []
    if None in flags:
        at = list(flags).index(None)
        raise RowError(
            f"conversation[{at}].output_with_loss",
            "some exchanges have output_with_loss and some have none",
            "write it on every exchange, or on none",
        )
    return [flag(v, f"conversation[{at}].output_with_loss") for at, v in enumerate(flags)]


def _pair(user: Any, reply: Any, user_at: str, reply_at: str) -> list[Message]:
    return [
        {"role": "user", "content": check_text(user, user_at)},
        {"role": "assistant", "content": check_text(reply, reply_at)},
    ]


# --- Alpaca ----------------------------------------------------------------------------------


def to_alpaca(c: Conversation) -> dict[str, Any]:
    """Alpaca: the last exchange, with the earlier ones as ``history``."""
    system, pairs = split_pairs(c)
    return {
        "id": c.id,
        "instruction": pairs[-1][0],
        "input": "",
        "output": pairs[-1][1],
        "system": system,
        "history": [list(p) for p in pairs[:-1]],
        "loss": c.loss,
        **_labels(c),
    }


def from_alpaca(row: Row) -> Conversation:
    """The inverse of ``to_alpaca``; a filled ``input`` joins the instruction. Raises RowError."""
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history", "history is not a list", "write a list of [user, reply] pairs")
    for at, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{at}]", "not a [user, reply] pair", "write two texts")
        messages += _pair(pair[0], pair[1], f"history[{at}][0]", f"history[{at}][1]")
    question = check_text(row.get("instruction"), "instruction")
    if row.get("input"):
        question += "\n" + check_text(row["input"], "input")
    if row.get("output") == "<nooutput>":
        raise RowError("output", "the row says <nooutput>", "write the reply, or remove the row")
    messages += _pair(question, row.get("output"), "instruction", "output")
    return _conversation(row, messages, _loss_list(row))


# --- UltraChat -------------------------------------------------------------------------------


def to_ultrachat(c: Conversation) -> dict[str, Any]:
    """UltraChat: the texts in turn, user first."""
    system, pairs = split_pairs(c)
    return {
        "id": c.id,
        "data": [text for pair in pairs for text in pair],
        "system": system,
        "loss": c.loss,
        **_labels(c),
    }


def from_ultrachat(row: Row) -> Conversation:
    """The inverse of ``to_ultrachat``; raises RowError."""
    texts = _list_of(row, "data")
    messages = _system(row)
    for at, text in enumerate(texts):
        role: Role = "assistant" if at % 2 else "user"
        messages.append({"role": role, "content": check_text(text, f"data[{at}]")})
    if not texts or len(texts) % 2:
        raise RowError(
            "data",
            f"{len(texts)} texts; user and assistant come in pairs",
            "add the missing reply, or remove the last text",
        )
    return _conversation(row, messages, _loss_list(row))
