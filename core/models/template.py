"""One rendering of a conversation, for training, evaluation, chat and export.

Everything asks this class and this class asks the tokenizer's own chat template. XTuner renders
training rows with a dictionary of its own (``PROMPT_TEMPLATE``); ``xtuner_template`` derives that
dictionary from the tokenizer's template by rendering sentinels, and proves on sample conversations
that both give the same token ids before it hands it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from core.conversation import Message
from core.errors import UserError
from core.models import sandbox

IGNORE_INDEX = -100
#: sha256 of templates that are known to be harmless and are rendered without a child: plain
#: ChatML, which the bundled model has.
_KNOWN = frozenset({"f91864928fccff928b3068ca784db6275e655e400ccbb28f61d92c0090caf3b3"})
_USER, _REPLY, _SYSTEM = "@USER-SENTINEL@", "@REPLY-SENTINEL@", "@SYSTEM-SENTINEL@"
_PROOF: tuple[list[Message], ...] = (
    [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I'm Luna, made by Lab 7."},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2 = {x}?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "你是谁？"},
        {"role": "assistant", "content": "我是小宇。\n\n- 好"},
    ],
)


class ChatTemplate:
    """A tokenizer's chat template as token ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text, special tokens included.

        Raises:
            TemplateRefused: the template says no to this conversation, or is broken.
            UserError: the template takes more time or memory than one may.
        """
        source = self.tokenizer.get_chat_template()
        if hashlib.sha256(source.encode("utf-8", "replace")).hexdigest() in _KNOWN:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        return sandbox.render(
            source,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.tokenizer.special_tokens_map,
            name=str(getattr(self.tokenizer, "name_or_path", "this model")),
        )

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """What the model is fed to answer ``messages``."""
        return self._ids(self.render(messages, add_generation_prompt))

    def head(self, messages: Sequence[Message], ids: Sequence[int]) -> int:
        """How many of a prompt's first tokens are the same whatever the user writes.

        That is the system turn, written or by default, and the mark of the first user turn.

        Args:
            ids: the prompt; its own tokenization has the last word.
        """
        system = [m for m in messages[:1] if m["role"] == "system"]
        others = (self.encode([*system, {"role": "user", "content": text}]) for text in ("a", "Z"))
        same = 0
        for tokens in zip(ids, *others, strict=False):
            if len(set(tokens)) > 1:
                break
            same += 1
        return same

    def _ids(self, text: str) -> list[int]:
        # The template writes every special token itself.
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_supervised(
        self,
        messages: Sequence[Message],
        loss: Sequence[bool] | None = None,
        cut: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels (-100 where there is no loss), both of the same length.

        Supervised are the tokens of each assistant turn with ``loss``, its turn end included:
        what the model must produce, and nothing else. With ``cut`` the last reply has no turn
        end: the ids stop where the reply was stopped.

        Raises:
            UserError: the template renders a prefix of the conversation differently from the
                whole, so that turns cannot be told apart.
        """
        flags = iter(loss) if loss is not None else iter(lambda: True, False)
        ids = self.encode(messages, add_generation_prompt=False)
        labels = [IGNORE_INDEX] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or not next(flags):
                continue
            start = len(self.encode(messages[:index]))
            through = self.encode(messages[: index + 1], add_generation_prompt=False)
            if ids[: len(through)] != through:
                raise self._inexpressible("a later turn changes how an earlier one is written")
            end = len(through) - len(self._after_turn_end)
            labels[start:end] = ids[start:end]
        if cut and messages and messages[-1]["role"] == "assistant":
            tail = len(self._ids(self._turn_end))
            ids, labels = ids[:-tail], labels[:-tail]
        return ids, labels

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply: the turn end of the template, and the tokenizer's eos."""
        first = self._ids(self._turn_end)[:1]
        eos = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*first, *([eos] if eos is not None else [])]))

    @cached_property
    def default_system(self) -> str:
        """What the template says for the system when the messages do not ('' for nothing)."""
        plain = self.render([{"role": "user", "content": _USER}])
        system = self.render(
            [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        )
        head, tail = system.split(_SYSTEM) if _SYSTEM in system else ("", system)
        if plain.startswith(head) and plain.endswith(tail) and len(plain) > len(head) + len(tail):
            return plain[len(head) : len(plain) - len(tail)]
        return ""

    @cached_property
    def _parts(self) -> tuple[str, str, str, str, str]:
        """(before everything, before user, before reply, after reply, before second user)."""
        turns: list[Message] = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _REPLY},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _REPLY},
        ]
        text = self.render(turns)
        if _SYSTEM not in text:
            raise self._inexpressible("the template has no place for a system turn")
        before, rest = text.split(_SYSTEM, 1)
        pieces = rest.split(_USER)
        if len(pieces) != 3 or any(p.count(_REPLY) != 1 for p in pieces[1:]):
            raise self._inexpressible("a turn is dropped or written twice")
        first_reply, between = pieces[1].split(_REPLY)
        _, last = pieces[2].split(_REPLY)
        return before, pieces[0], first_reply, between, last

    @cached_property
    def _turn_end(self) -> str:
        """The text right after a reply: the turn end, then whitespace that is not supervised."""
        return self._parts[4] if _has_system(self) else self._end_without_system()

    def _end_without_system(self) -> str:
        text = self.render(
            [{"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}]
        )
        return text.split(_REPLY, 1)[1]

    @cached_property
    def _after_turn_end(self) -> list[int]:
        """Ids between the turn-end token and the next turn (ChatML's newline)."""
        suffix = self._turn_end.rstrip()
        return self._ids(self._turn_end)[len(self._ids(suffix)) :]

    def xtuner_template(self) -> dict[str, Any]:
        """The dictionary that XTuner's ``template_map_fn`` and EvaluateChatHook read.

        Raises:
            UserError: this template cannot be written in XTuner's form without changing tokens.
        """
        before, after_system, before_reply, between, last = self._parts
        suffix = last.rstrip()
        sep = last[len(suffix) :]
        if not between.startswith(last):
            raise self._inexpressible("the end of a reply depends on its position")
        user_head = between[len(last) :]
        if not after_system.endswith(user_head):
            raise self._inexpressible("the first user turn is written differently")
        bos = self.tokenizer.bos_token or ""
        # XTuner's encode_fn prepends the BOS token itself.
        if bos and before.startswith(bos):
            before = before[len(bos) :]
        template = {
            "SYSTEM": _braces(before)
            + "{system}"
            + _braces(after_system[: len(after_system) - len(user_head)]),
            "INSTRUCTION": _braces(user_head) + "{input}" + _braces(before_reply),
            "SUFFIX": suffix,
            "SUFFIX_AS_EOS": True,
            "SEP": sep,
            "STOP_WORDS": [suffix],
        }
        for messages in _PROOF:
            mine = self._as_xtuner(messages, template)
            if mine != self.encode_supervised(self.with_system(messages)):
                raise self._inexpressible("XTuner's pieces give other token ids")
        return template

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the template's default system turn written out, if it has one.

        XTuner adds a system block only if the row has one, so training rows must carry it.
        """
        if self.default_system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.default_system}, *messages]
        return list(messages)

    def _as_xtuner(
        self, messages: Sequence[Message], template: dict[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Encode piece by piece, as XTuner's encode_fn does."""
        bos = self.tokenizer.bos_token
        writes_bos = bool(bos) and self.render(messages).startswith(bos)
        ids: list[int] = [self.tokenizer.bos_token_id] if writes_bos else []
        labels = [IGNORE_INDEX] * len(ids)
        system = ""
        for message in self.with_system(messages):
            if message["role"] == "system":
                system = template["SYSTEM"].format(system=message["content"])
            elif message["role"] == "user":
                piece = self._ids(system + template["INSTRUCTION"].format(input=message["content"]))
                system = ""
                ids, labels = ids + piece, labels + [IGNORE_INDEX] * len(piece)
            else:
                piece = self._ids(message["content"] + template["SUFFIX"])
                sep = self._ids(template["SEP"])
                ids = ids + piece + sep
                labels = labels + piece + [IGNORE_INDEX] * len(sep)
        return ids, labels

    def _inexpressible(self, why: str) -> UserError:
        name = getattr(self.tokenizer, "name_or_path", "this model")
        return UserError(
            f"the chat template of {name} cannot be used for training with XTuner",
            why=why,
            fix="edit chat_template in the model's tokenizer_config.json, or choose another model",
        )


def _has_system(template: ChatTemplate) -> bool:
    try:
        return bool(template._parts)
    except Exception:  # jinja raises TemplateError for templates that refuse a system turn
        return False


def _braces(text: str) -> str:
    """XTuner runs str.format over the template."""
    return text.replace("{", "{{").replace("}", "}}")
