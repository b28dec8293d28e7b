"""One rendering of a conversation, for training, evaluation, chat and export.

Everything asks this class and this class asks the tokenizer's own chat template. What a template
does not take is decided here, once: a system turn is folded into the first user turn where there
is no place for it, turns of one side are joined where turns must alternate, and templates that can
think write no thoughts.

XTuner renders training rows with a dictionary of its own (``PROMPT_TEMPLATE``);
``xtuner_template`` derives that dictionary from the tokenizer's template by rendering sentinels,
and proves on sample conversations that both give the same token ids. A template that cannot be cut
into such pieces is trained reply by reply: each row holds the rendered prompt as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from core.conversation import Conversation, Message
from core.errors import UserError
from core.models import sandbox
from core.text.vendor import identity_in

IGNORE_INDEX = -100
#: sha256 of templates that are known to be harmless and are rendered without a child: plain
#: ChatML, which the bundled model has.
_KNOWN = frozenset({"f91864928fccff928b3068ca784db6275e655e400ccbb28f61d92c0090caf3b3"})
_USER, _REPLY, _SYSTEM = "@USER-SENTINEL@", "@REPLY-SENTINEL@", "@SYSTEM-SENTINEL@"
_EXCHANGE: list[Message] = [
    {"role": "user", "content": _USER},
    {"role": "assistant", "content": _REPLY},
]
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

Encoded = tuple[list[int], list[int]]


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
        return self._apply(self.accepted(messages), add_generation_prompt)

    def _apply(
        self, messages: Sequence[Message], add_generation_prompt: bool, thinking: bool = False
    ) -> str:
        """The template on exactly these messages.

        Args:
            thinking: lets templates that can think open a reply for thoughts; without, they write
                what says that there are none. Persona replies have none, and a reply that begins
                with them would have to be sampled for a long time.
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
            thinking=thinking,
            special_tokens=self.tokenizer.special_tokens_map,
            name=self._name,
        )

    def _taken(self, *messages: Message) -> str | None:
        """The rendering, or None if the template refuses these turns."""
        try:
            return self._apply(messages, False)
        except sandbox.TemplateRefused:
            return None

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn (Gemma's raises, others drop it)."""
        text = self._taken({"role": "system", "content": _SYSTEM}, _EXCHANGE[0])
        return text is not None and _SYSTEM in text and _USER in text

    @cached_property
    def alternates(self) -> bool:
        """Whether the template refuses two turns of one side in a row."""
        return self._taken(_EXCHANGE[0], _EXCHANGE[0]) is None

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as this template takes them; see the module's docstring."""
        return self._accepted(messages, None)[0]

    def _accepted(
        self, messages: Sequence[Message], loss: Sequence[bool] | None
    ) -> tuple[list[Message], list[bool]]:
        """The same with the loss flags of the replies; joined replies are learned if all are."""
        flags = iter(loss) if loss is not None else iter(lambda: True, False)
        marked = [(m, m["role"] == "assistant" and next(flags)) for m in messages]
        if not self.takes_system:
            marked = list(_folded(marked))
        if self.alternates:
            marked = _joined(marked)
        return [m for m, _ in marked], [flag for m, flag in marked if m["role"] == "assistant"]

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """What the model is fed to answer ``messages``."""
        return self.ids(self.render(messages, add_generation_prompt))

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

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text."""
        # The template writes every special token itself.
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_supervised(
        self,
        messages: Sequence[Message],
        loss: Sequence[bool] | None = None,
        cut: bool = False,
    ) -> Encoded:
        """Token ids and labels (-100 where there is no loss), both of the same length.

        Supervised are the tokens of each assistant turn with ``loss``, its turn end included:
        what the model must produce, and nothing else. With ``cut`` the last reply has no turn
        end: the ids stop where the reply was stopped.

        Raises:
            UserError: the template renders a prefix of the conversation differently from the
                whole, so that turns cannot be told apart; ``examples`` takes such a one apart.
        """
        turns, flags = self._accepted(messages, loss)
        ids = self.encode(turns, add_generation_prompt=False)
        labels = [IGNORE_INDEX] * len(ids)
        remaining = iter(flags)
        for index, message in enumerate(turns):
            if message["role"] != "assistant" or not next(remaining):
                continue
            start = len(self.encode(turns[:index]))
            through = self.encode(turns[: index + 1], add_generation_prompt=False)
            if ids[: len(through)] != through:
                raise self._inexpressible("a later turn changes how an earlier one is written")
            end = len(through) - len(self._after_turn_end)
            labels[start:end] = ids[start:end]
        if cut and turns and turns[-1]["role"] == "assistant":
            tail = len(self.ids(self._tail))
            ids, labels = ids[:-tail], labels[:-tail]
        return ids, labels

    def examples(self, row: Conversation) -> list[Encoded]:
        """Ids and labels of a training row: one pair, or one a reply (see the module)."""
        if self.pieces is not None:
            return [self.encode_supervised(row.messages, row.loss, row.cut)]
        pairs = []
        for part in self.training_rows(row):
            prompt, reply = (m["content"] for m in part.messages)
            before = self._after_bos(prompt)
            after = self.ids(reply + ("" if part.cut else self.turn_end))
            labels = after if part.loss[0] else [IGNORE_INDEX] * len(after)
            pairs.append((before + after, [IGNORE_INDEX] * len(before) + labels))
        return pairs

    def training_rows(self, row: Conversation) -> list[Conversation]:
        """The row as XTuner gets it, for ``xtuner_template``.

        Raises:
            UserError: the template writes a reply in another way than it asks for it.
        """
        turns, flags = self._accepted(self.with_system(row.messages), row.loss)
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
                between = self._apply([_EXCHANGE[0], _EXCHANGE[0]], False).split(_USER)[1]
                text = f"{out.pop()['content']}{between}{message['content']}"
                message = {"role": "user", "content": text}
            out.append(message)
        return out

    def _prompt_and_reply(self, turns: Sequence[Message], row: str) -> tuple[str, str]:
        """The last reply and all before it, as the template writes them, without BOS and end."""
        whole = self._apply(turns, False)
        for thinking in (False, True):
            prompt = self._apply(turns[:-1], True, thinking)
            if whole.startswith(prompt) and whole.endswith(self._tail):
                reply = whole[len(prompt) : len(whole) - len(self._tail)]
                return prompt.removeprefix(self._bos), reply
        raise self._inexpressible(f"in {row or 'a row'} it writes a reply otherwise than it asks")

    @cached_property
    def _bos(self) -> str:
        """The BOS token, if the template begins with it: XTuner then puts it there itself."""
        bos = str(self.tokenizer.bos_token or "")
        return bos if bos and self._apply(_EXCHANGE[:1], False).startswith(bos) else ""

    def _after_bos(self, text: str) -> list[int]:
        return ([self.tokenizer.bos_token_id] if self._bos else []) + self.ids(text)

    @property
    def _name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "") or "this model")

    @cached_property
    def _tail(self) -> str:
        """The text right after a reply: the turn end, then whitespace that is not supervised."""
        return self._apply(_EXCHANGE, False).rpartition(_REPLY)[2]

    @cached_property
    def turn_end(self) -> str:
        """The text that ends a reply, whole: one special token, several tokens, or a blank line."""
        return self._tail.rstrip() or self._tail

    @cached_property
    def _after_turn_end(self) -> list[int]:
        """Ids between the turn end and the next turn (ChatML's newline)."""
        return self.ids(self._tail)[len(self.ids(self.turn_end)) :]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply by themselves: a turn end that is special, and eos."""
        first = self.ids(self.turn_end)[:1]
        eos = self.tokenizer.eos_token_id
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        ends = [i for i in first if i in special]
        return list(dict.fromkeys([*ends, *([eos] if eos is not None else [])]))

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end a reply and are made of ordinary tokens: the whole turn end, or none.

        Ordinary tokens may be cut otherwise in a reply than here (the last letter of the reply
        with the first of the end), so it is the text that counts.
        """
        ids = self.ids(self.turn_end)
        return (self.turn_end,) if ids and ids[0] not in self.stop_ids else ()

    @cached_property
    def stops(self) -> list[str]:
        """Everything that ends a reply, as text, for other programs."""
        eos = self.tokenizer.eos_token_id
        texts = [self.turn_end, self.tokenizer.decode([eos]) if eos is not None else ""]
        return [text for text in dict.fromkeys(texts) if text]

    @cached_property
    def default_system(self) -> str:
        """What the template says for the system when the messages do not ('' for nothing)."""
        if not self.takes_system:
            return ""
        plain = self._apply(_EXCHANGE[:1], False)
        system = self._apply([{"role": "system", "content": _SYSTEM}, _EXCHANGE[0]], False)
        head, _, tail = system.partition(_SYSTEM)
        if plain.startswith(head) and plain.endswith(tail) and len(plain) > len(head) + len(tail):
            return plain[len(head) : len(plain) - len(tail)]
        return ""

    @cached_property
    def introduces(self) -> str:
        """The words of the default system turn that give the model an identity ('' for none)."""
        return identity_in(self.default_system)

    def xtuner_template(self) -> dict[str, Any]:
        """The dictionary that XTuner's ``template_map_fn`` and EvaluateChatHook read.

        Raises:
            UserError: this template cannot be written in XTuner's form without changing tokens.
        """
        if not self.turn_end:
            raise self._inexpressible("it writes nothing after a reply, so none would ever end")
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
        template = self._cut_up()
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

    def _cut_up(self) -> dict[str, Any] | None:
        """Pieces between sentinels; None where they depend on the position of a turn."""
        turns = [*_EXCHANGE, *_EXCHANGE]
        if self.takes_system:
            turns.insert(0, {"role": "system", "content": _SYSTEM})
        text = self._apply(turns, False)
        before, _, rest = text.rpartition(_SYSTEM)
        pieces = rest.split(_USER)
        if len(pieces) != 3 or any(p.count(_REPLY) != 1 for p in pieces[1:]):
            return None  # a turn is dropped or written twice
        before_reply, between = pieces[1].split(_REPLY)
        again, last = pieces[2].split(_REPLY)
        user_head = between[len(last) :]
        if again != before_reply or not between.startswith(last):
            return None
        if not pieces[0].endswith(user_head):
            return None
        lead = pieces[0][: len(pieces[0]) - len(user_head)]
        if self.takes_system:
            # XTuner's encode_fn prepends the BOS token itself.
            system = _braces(before.removeprefix(self._bos)) + "{system}" + _braces(lead)
        elif lead in ("", self._bos):
            system = "{system}"  # never used: rows come with the system text folded
        else:
            return None
        return {
            "SYSTEM": system,
            "INSTRUCTION": _braces(user_head) + "{input}" + _braces(before_reply),
            **self._ending(last[len(self.turn_end) :]),
        }

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the template's default system turn written out, if it has one.

        XTuner adds a system block only if the row has one, so training rows must carry it.
        """
        turns = self.accepted(messages)
        if self.default_system and turns and turns[0]["role"] != "system":
            return [{"role": "system", "content": self.default_system}, *turns]
        return turns

    def differs(self, row: Conversation) -> bool:
        """Whether XTuner's tokens for the row are not those that chat feeds.

        A tokenizer may join a space at the edge of a turn with the template's newline.
        """
        if self.pieces is None:
            prompts = (part.messages[0]["content"] for part in self.training_rows(row))
            return any(self._after_bos(p) != self.ids(self._bos + p) for p in prompts)
        whole = self.encode(self.with_system(row.messages), add_generation_prompt=False)
        return self._as_xtuner(row.messages, self.pieces)[0] != whole

    def _as_xtuner(self, messages: Sequence[Message], template: dict[str, Any]) -> Encoded:
        """Encode piece by piece, as XTuner's openai_map_fn and encode_fn do."""
        ids = self._after_bos("")
        labels = [IGNORE_INDEX] * len(ids)
        system = ""
        for message in self._glued(self.with_system(messages)):
            if message["role"] == "system":
                system = template["SYSTEM"].format(system=message["content"])
            elif message["role"] == "user":
                piece = self.ids(system + template["INSTRUCTION"].format(input=message["content"]))
                system = ""
                ids, labels = ids + piece, labels + [IGNORE_INDEX] * len(piece)
            else:
                piece = self.ids(message["content"] + template["SUFFIX"])
                sep = self.ids(template["SEP"])
                ids = ids + piece + sep
                labels = labels + piece + [IGNORE_INDEX] * len(sep)
        return ids, labels

    def _inexpressible(self, why: str) -> UserError:
        return UserError(
            f"the chat template of {self._name} cannot be used for training with XTuner",
            why=why,
            fix="edit chat_template in the model's tokenizer_config.json, or choose another model",
        )


_Marked = tuple[Message, bool]


def _folded(turns: Sequence[_Marked]) -> Iterator[_Marked]:
    """System text at the beginning of the user turn that follows it."""
    system: list[str] = []
    for message, flag in turns:
        if message["role"] == "system":
            system += [message["content"]] if message["content"].strip() else []
        elif message["role"] == "user" and system:
            yield {"role": "user", "content": "\n\n".join([*system, message["content"]])}, flag
            system = []
        else:
            yield message, flag
    if system:
        yield {"role": "user", "content": "\n\n".join(system)}, False


def _joined(turns: Sequence[_Marked]) -> list[_Marked]:
    """One turn where one side spoke several times in a row, a blank line between."""
    out: list[_Marked] = []
    for message, flag in turns:
        if out and out[-1][0]["role"] == message["role"]:
            before, learned = out.pop()
            text = f"{before['content']}\n\n{message['content']}"
            message, flag = {"role": message["role"], "content": text}, learned and flag
        out.append((message, flag))
    return out


def _braces(text: str) -> str:
    """XTuner runs str.format over the template."""
    return text.replace("{", "{{").replace("}", "}}")
