"""What XTuner is given, so that it trains on the token ids that chat feeds.

XTuner renders training rows with a dictionary of its own (``PROMPT_TEMPLATE``). It is derived from
the tokenizer's template by rendering sentinels, and proved on sample conversations to give the same
token ids. A template that cannot be cut into such pieces is trained reply by reply: each row holds
the rendered prompt as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from core.conversation import Conversation, Message
from core.errors import UserError
from core.models.template import (
    EXCHANGE,
    IGNORE_INDEX,
    REPLY,
    SYSTEM,
    USER,
    ChatTemplate,
    Encoded,
)
from core.text import thoughts

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
#: XTuner's form of "the row holds the rendered text already".
_RENDERED = {"SYSTEM": "{system}", "INSTRUCTION": "{input}"}


class XTunerTemplate(ChatTemplate):
    """A chat template that training rows are written for."""

    def examples(self, row: Conversation) -> list[Encoded]:
        """Ids and labels of a training row: one pair, or one a reply (see the module)."""
        if self.pieces is not None:
            return [self.encode_supervised(row.messages, row.loss, row.cut)]
        pairs = []
        for part in self.training_rows(row):
            prompt, reply = (m["content"] for m in part.messages)
            before = self.after_bos(prompt)
            after = self.ids(reply + ("" if part.cut else self.turn_end))
            labels = after if part.loss[0] else [IGNORE_INDEX] * len(after)
            pairs.append((before + after, [IGNORE_INDEX] * len(before) + labels))
        return pairs

    def training_rows(self, row: Conversation) -> list[Conversation]:
        """The row as XTuner gets it, for ``xtuner_template``.

        Raises:
            UserError: the template writes a reply in another way than it asks for it.
        """
        turns, flags = self.accepted_with(row.messages, row.loss)
        turns = self.with_system(turns)
        if self.pieces is not None:
            return [dataclasses.replace(row, messages=self._glued(turns), loss=flags)]
        at = [i for i, m in enumerate(turns) if m["role"] == "assistant"]
        wanted = [i for i, flag in zip(at, flags, strict=True) if flag] or at[-1:]
        parts = []
        for count, index in enumerate(wanted):
            prompt, reply = self._prompt_and_reply(turns[: index + 1], row.id)
            messages: list[Message] = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": reply},
            ]
            name = row.id if len(wanted) == 1 else f"{row.id}#{count + 1}"
            cut = row.cut and index == len(turns) - 1
            part = dataclasses.replace(row, id=name, messages=messages, cut=cut, loss=[any(flags)])
            parts.append(part)
        return parts

    def _glued(self, turns: list[Message]) -> list[Message]:
        """User turns in a row as one, with what the template writes between them.

        XTuner would join them without a word; and it drops what no reply follows.
        """
        out: list[Message] = []
        for message in turns:
            if message["role"] == "user" and out and out[-1]["role"] == "user":
                between = self.apply([EXCHANGE[0], EXCHANGE[0]], False).split(USER)[1]
                text = f"{out.pop()['content']}{between}{message['content']}"
                message = {"role": "user", "content": text}
            out.append(message)
        return out

    def _prompt_and_reply(self, turns: Sequence[Message], row: str) -> tuple[str, str]:
        """The last reply and all before it, as the template writes them, without BOS and end."""
        whole, content = self.written(turns), turns[-1]["content"]
        for thinking in (False, True):
            prompt = self.apply(turns[:-1], True, thinking)
            if whole.startswith(prompt) and whole.endswith(self.tail):
                reply = whole[len(prompt) : len(whole) - len(self.tail)]
                return prompt.removeprefix(self.bos), reply
        # It writes what came before otherwise once a reply follows (Mistral's system turn), or
        # opens thoughts in the prompt alone (DeepSeek-R1): trained is what chat feeds and gets.
        thought = bool(thoughts.split(content)[0])
        prompt = self.apply(turns[:-1], True, thought)
        if thought and prompt.rstrip().endswith(thoughts.OPEN):
            content = content.lstrip().removeprefix(thoughts.OPEN).lstrip()
        for reply in (content, content.strip()):
            if whole.endswith(thoughts.answer(reply) + self.tail):
                return prompt.removeprefix(self.bos), self._lead + reply
        raise self.inexpressible(f"in {row or 'a row'} it writes a reply otherwise than it asks")

    @cached_property
    def _lead(self) -> str:
        """What the template puts between the prompt and a reply (Mistral's space)."""
        prompt, whole = self.apply(EXCHANGE[:1], True), self.apply(EXCHANGE, False)
        if not whole.startswith(prompt):
            return ""
        return whole[len(prompt) :].partition(REPLY)[0]

    def xtuner_template(self) -> dict[str, Any]:
        """The dictionary that XTuner's ``template_map_fn`` and EvaluateChatHook read.

        Raises:
            UserError: this template cannot be written in XTuner's form without changing tokens.
        """
        if not self.turn_end:
            raise self.inexpressible("it writes nothing after a reply, so none would ever end")
        if self.pieces is not None:
            return self.pieces
        for number, messages in enumerate(_PROOF):
            self.training_rows(Conversation(f"sample {number + 1}", list(messages)))
        return {**_RENDERED, **self._ending("")}

    def _ending(self, separator: str) -> dict[str, Any]:
        return {
            "SUFFIX": self.turn_end,
            "SUFFIX_AS_EOS": True,
            "SEP": separator,
            "STOP_WORDS": [self.turn_end],
        }

    @cached_property
    def pieces(self) -> dict[str, Any] | None:
        """The template in XTuner's pieces, proved; None if it is not made of such pieces."""
        template = self.text_pieces
        if template is None:
            return None
        for messages in _PROOF:
            try:
                wanted = self.encode_supervised(self.with_system(messages))
            except UserError:
                return None
            if self._as_xtuner(messages, template) != wanted:
                return None
        return template

    @cached_property
    def text_pieces(self) -> dict[str, Any] | None:
        """The pieces if they give the same text, whatever the tokenizer does at their edges."""
        template = self._cut_up()
        if template is None:
            return None
        for messages in _PROOF:
            text = self.bos + "".join(p for _, p in self._written(messages, template))
            if text != self.written(messages):
                return None
        return template

    def _cut_up(self) -> dict[str, Any] | None:
        """Pieces between sentinels; None where they depend on the position of a turn."""
        turns = [*EXCHANGE, *EXCHANGE]
        if self.takes_system:
            turns.insert(0, {"role": "system", "content": SYSTEM})
        text = self.written(turns)
        before, _, rest = text.rpartition(SYSTEM)
        pieces = rest.split(USER)
        if len(pieces) != 3 or any(p.count(REPLY) != 1 for p in pieces[1:]):
            return None  # a turn is dropped or written twice
        before_reply, between = pieces[1].split(REPLY)
        again, last = pieces[2].split(REPLY)
        user_head = between[len(last) :]
        if again != before_reply or not between.startswith(last):
            return None
        if not pieces[0].endswith(user_head):
            return None
        lead = pieces[0][: len(pieces[0]) - len(user_head)]
        if self.takes_system:
            # XTuner's encode_fn prepends the BOS token itself.
            system = _braces(before.removeprefix(self.bos)) + "{system}" + _braces(lead)
        elif lead in ("", self.bos):
            system = "{system}"  # never used: rows come with the system text folded
        else:
            return None
        return {
            "SYSTEM": system,
            "INSTRUCTION": _braces(user_head) + "{input}" + _braces(before_reply),
            **self._ending(last[len(self.turn_end) :]),
        }

    def differs(self, row: Conversation) -> bool:
        """Whether XTuner's tokens for the row are not those that chat feeds.

        A tokenizer may join a space at the edge of a turn with the template's newline.
        """
        if self.pieces is None:
            prompts = (part.messages[0]["content"] for part in self.training_rows(row))
            return any(self.after_bos(p) != self.ids(self.bos + p) for p in prompts)
        whole = self.ids(self.written(self.with_system(row.messages)))
        return self._as_xtuner(row.messages, self.pieces)[0] != whole

    def _as_xtuner(self, messages: Sequence[Message], template: dict[str, Any]) -> Encoded:
        """Encode piece by piece, as XTuner's openai_map_fn and encode_fn do."""
        ids = self.after_bos("")
        labels = [IGNORE_INDEX] * len(ids)
        for learned, text in self._written(messages, template):
            piece = self.ids(text)
            ids = ids + piece
            labels = labels + (piece if learned else [IGNORE_INDEX] * len(piece))
        return ids, labels

    def _written(
        self, messages: Sequence[Message], template: dict[str, Any]
    ) -> Iterator[tuple[bool, str]]:
        """The texts that XTuner encodes one by one, each with whether it is learned."""
        system = ""
        for message in self._glued(self.with_system(messages)):
            if message["role"] == "system":
                system = template["SYSTEM"].format(system=message["content"])
            elif message["role"] == "user":
                yield False, system + template["INSTRUCTION"].format(input=message["content"])
                system = ""
            else:
                yield True, message["content"] + template["SUFFIX"]
                yield False, template["SEP"]


def _braces(text: str) -> str:
    """XTuner runs str.format over the template."""
    return text.replace("{", "{{").replace("}", "}}")
