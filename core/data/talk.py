"""The turns of a foreign conversation under construction, and the names that tools give to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.conversation import Message, Role
from core.data.fields import CONTROL, RowError, check_text, flag, is_nothing

Row = Mapping[str, Any]

#: Spellings of the roles that other tools write.
ROLE_NAMES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "用户"), "user"),
    **dict.fromkeys(
        (
            *("assistant", "gpt", "chatgpt", "chatbot", "bing", "bard", "bot", "model", "ai"),
            "助手",
        ),
        "assistant",
    ),
}
#: Keys in the order in which they are looked for; names as ``key_name`` makes them.
TURNS = (
    *("messages", "conversations", "conversation", "data", "dialogue", "dialog", "turns", "chat"),
    *("chat_messages", "contents"),
)
ROLE = ("role", "from", "sender")
QUESTION = (
    *("instruction", "question", "query", "prompt", "user", "human", "user_input"),
    *("user_message", "problem", "q", "inputs"),
    *("指令", "问题", "提问", "问", "問題", "質問"),
)
CONTEXT = ("input", "context", "输入")
ANSWER = (
    *("output", "answer", "response", "completion", "assistant", "gpt", "bot", "reply"),
    *("target", "targets", "assistant_message"),
    *("solution", "a", "输出", "回答", "答案", "回复", "答"),
    *("chosen", "preferred", "preferred_output", "chosen_response", "response_chosen"),
)
#: The other reply of a pair: what the model should rather not say.
REJECTED = (
    *("rejected", "non_preferred_output", "rejected_response", "response_rejected", "dispreferred"),
)
#: Where a whole conversation may be written as one text.
WRITTEN = (
    *("text", "chosen", "completion", "conversation", "content", "dialogue"),
    *("prompt", "instruction", "input", "question"),
)
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "系统", "系统提示")
LABELS = ("id", "kind", "intent", "cluster", "locale", "loss", "cut", "history")
_REASONING = ("reasoning_content", "reasoning", "thinking")
FLAGS = (
    *("loss", "output_with_loss", "train", "training", "trainable"),
    *("weight", "loss_scale", "loss_weight"),
)
_CONTENT = ("content", "value", "text", "parts")
_CALLS = ("tool_calls", "function_call")


def key_name(key: Any) -> str:
    """``System Prompt``, ``systemPrompt`` -> ``system_prompt``: keys are compared in this form."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key).strip())
    return re.sub(r"[\s_-]+", "_", words.lower())


class Keys:
    """An object whose keys are read by name; ``left`` holds what nobody has asked for."""

    def __init__(self, row: Row) -> None:
        self.left: dict[str, Any] = dict(row)
        self._names: dict[str, str] = {}
        for key in row:
            self._names.setdefault(key_name(key), key)

    def has(self, *names: str) -> bool:
        """Whether any of the keys exists, with whatever value."""
        return any(n in self._names for n in names)

    def see(self, name: str) -> Any:
        """The value of a key that stays to be read; None if there is none."""
        return self.left.get(self._names.get(name, ""))

    def get(self, *names: str) -> tuple[str, Any]:
        """(key as written, value) of the first of these that says something, else (name, None)."""
        present = [self._names[n] for n in names if self._names.get(n) in self.left]
        for key in [k for k in present if is_nothing(self.left[k])]:
            del self.left[key]
        chosen = next((k for k in present if k in self.left), None)
        return (chosen, self.left.pop(chosen)) if chosen else ((present or names)[0], None)


@dataclass
class Talk:
    """The turns as they are read; ``at`` and ``role_at`` are the paths of each one's fields."""

    messages: list[Message] = field(default_factory=list)
    role_at: list[str] = field(default_factory=list)
    flags: list[tuple[str, bool | None]] = field(default_factory=list)
    explicit: str = ""
    left: dict[str, Any] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def say(self, role: Role, value: Any, at: str, role_at: str = "") -> None:
        """Add a turn; RowError if its text cannot be trained on."""
        if isinstance(value, (int, float)) and not is_nothing(value):
            self.notes["numbers were written as text"] += 1
        text = check_text(value, at)
        if CONTROL.search(text):
            self.notes["texts hold control characters, which will be learned as they are"] += 1
        self.messages.append({"role": role, "content": text})
        self.role_at.append(role_at or at)

    def turns(self, turns: Sequence[Any], key: str) -> None:
        """Add the turns of a list under ``key``."""
        for at, turn in enumerate(turns):
            here = f"{key}[{at}]"
            if isinstance(turn, str) and key not in ("messages", "conversations"):
                self.say("assistant" if at % 2 else "user", turn, here)
                self.flags += [(here, None)] * (at % 2)
            elif isinstance(turn, Mapping):
                keys = Keys(turn)
                self._turn(keys, here) if keys.has(*ROLE) else self._exchange(keys, here)
                for name, value in keys.left.items():
                    self.left.setdefault(f"{key}[].{name}", value)
            else:
                raise RowError(
                    here, "a turn is not an object", "write an object with role and text"
                )

    def _turn(self, keys: Keys, here: str) -> None:
        role_key, name = keys.get(*ROLE)
        _refuse_parts(keys, here)
        role = ROLE_NAMES.get(str(name).strip().lower())
        call_key, call = keys.get(*_CALLS)
        if role is None or call is not None:
            raise RowError(
                f"{here}.{role_key if role is None else call_key}",
                f"unknown role {name!r}" if role is None else "a call of a tool",
                "use system, user (human) or assistant (gpt); tool turns cannot be trained here",
            )
        key, value = keys.get(*(("value", "content") if role_key == "from" else _CONTENT))
        at, role_at = f"{here}.{key}", f"{here}.{role_key}"
        learned = self._learned(keys, here, role)
        if role == "system" and is_nothing(value):
            self.notes["system turns without a text were left out"] += 1
        elif role == "assistant":
            self.say(role, self._with_reasoning(keys, value), at, role_at)
            self.flags.append((here, learned))
        else:
            self.say(role, value, at, role_at)

    def _with_reasoning(self, keys: Keys, value: Any) -> Any:
        """The reply behind its reasoning, in the tags that reasoning models write themselves."""
        _, thought = keys.get(*_REASONING)
        if not isinstance(thought, str) or not isinstance(value, str):
            return value
        self.notes["reasoning was put before its reply as <think> text"] += 1
        return f"<think>\n{thought.strip()}\n</think>\n\n{value}"

    def _exchange(self, keys: Keys, here: str) -> None:
        """A question and its answer in one object, as XTuner and Firefly write them."""
        key, system = keys.get(*SYSTEM)
        if not is_nothing(system):
            if self.messages:
                raise RowError(
                    f"{here}.{key}",
                    "a system text after the first exchange",
                    "move it to the first exchange",
                )
            self.say("system", system, f"{here}.{key}")
        key, question = keys.get(*QUESTION, *CONTEXT)
        self.say("user", question, f"{here}.{key}")
        key, answer = keys.get(*ANSWER)
        self.say("assistant", answer, f"{here}.{key}")
        self.flags.append((here, self._learned(keys, here, "assistant")))

    def _learned(self, keys: Keys, here: str, role: Role) -> bool | None:
        """What a turn says about being trained on; a reply alone can be."""
        said: dict[str, bool] = {}
        for name in FLAGS:
            key, value = keys.get(name)
            if value is None:
                continue
            said[key] = flag(value, f"{here}.{key}")
            if role != "assistant" and said.pop(key):
                self.left.setdefault(f"{here.split('[')[0]}[].{key} of a {role} turn", value)
            elif name in ("loss", "output_with_loss"):
                self.explicit = key
        if len(set(said.values())) > 1:
            raise RowError(here, f"{' and '.join(said)} contradict each other", "keep one of them")
        return next(iter(said.values()), None)

    def loss(self) -> list[bool]:
        """One flag a reply, or [] if no turn says anything.

        A missing ``weight`` or ``train`` means "learn it" to the tools that write them; a missing
        ``loss`` means "do not" to XTuner, so it must not be guessed.
        """
        said = [learned for _, learned in self.flags]
        if all(learned is None for learned in said):
            return []
        if None in said and self.explicit:
            raise RowError(
                f"{self.flags[said.index(None)][0]}.{self.explicit}",
                f"some replies have {self.explicit!r} and some have none",
                "write it on every reply of the file, or on none: readers take a missing key "
                "for false",
            )
        return [learned is not False for learned in said]


def _refuse_parts(keys: Keys, here: str) -> None:
    """Axolotl marks parts of a text as not to be learned; here a reply is learned or not."""
    key, spans = keys.get("train_detail", "training_detail")
    if isinstance(spans, list) and any(
        isinstance(span, Mapping) and span.get("train") is False for span in spans
    ):
        raise RowError(
            f"{here}.{key}",
            "parts of the text are not to be learned",
            "cut the text there into turns of their own, or set train to false for all of it",
        )
