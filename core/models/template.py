"""One rendering of a conversation, for training, evaluation, chat and export.

Everything asks this class and this class asks the tokenizer's own chat template. What a template
does not take is decided here, once: a system turn is folded into the first user turn where there
is no place for it, turns of one side are joined where turns must alternate, and templates that can
think write no thoughts.

What XTuner makes of it is in ``core.models.xtuner_template``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from core.conversation import Message
from core.errors import UserError
from core.models import sandbox
from core.text import thoughts
from core.text.vendor import identity_in

IGNORE_INDEX = -100
#: sha256 of templates that are known to be harmless and are rendered without a child: plain
#: ChatML, which the bundled model has.
_KNOWN = frozenset({"f91864928fccff928b3068ca784db6275e655e400ccbb28f61d92c0090caf3b3"})
USER, REPLY, SYSTEM = "@USER-SENTINEL@", "@REPLY-SENTINEL@", "@SYSTEM-SENTINEL@"
EXCHANGE: list[Message] = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": REPLY},
]
#: Token ids and labels.
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
        return self.apply(self.accepted(messages), add_generation_prompt)

    def apply(
        self, messages: Sequence[Message], add_generation_prompt: bool, thinking: bool = False
    ) -> str:
        """The template on exactly these messages.

        Args:
            thinking: lets templates that can think open a reply for thoughts; without, they write
                what says that there are none. Persona replies have none, and a reply that begins
                with them would have to be sampled for a long time.
        """
        text = self._apply(messages, add_generation_prompt, thinking)
        if add_generation_prompt and not thinking and text.rstrip().endswith(thoughts.OPEN):
            # It opens the thoughts whatever it is told (DeepSeek-R1): closed as others close them.
            return f"{text.rstrip()}\n\n{thoughts.CLOSE}\n\n"
        return text

    def _apply(
        self, messages: Sequence[Message], add_generation_prompt: bool, thinking: bool
    ) -> str:
        source = self.tokenizer.get_chat_template()
        if hashlib.sha256(source.encode("utf-8", "replace")).hexdigest() in _KNOWN:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        written = _as_parts(messages) if self._reads_parts else messages
        return self._in_child(written, add_generation_prompt, thinking)

    def _in_child(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, thinking: bool
    ) -> str:
        return sandbox.render(
            self.tokenizer.get_chat_template(),
            messages,
            add_generation_prompt=add_generation_prompt,
            thinking=thinking,
            special_tokens=self.tokenizer.special_tokens_map,
            name=self._name,
        )

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether a turn's text must be a list of parts, as templates made for pictures have it.

        Raises:
            UserError: the template writes a user's words in neither form.
        """
        for parts in (False, True):
            turns = _as_parts(EXCHANGE) if parts else EXCHANGE
            try:
                text = self._in_child(turns, False, False)
            except sandbox.TemplateRefused:
                if parts:
                    return False  # it refuses any exchange, and says why when it is asked
                continue
            if USER in text:
                return parts
        raise UserError(
            f"the chat template of {self._name} leaves out what the user says",
            why="it writes a turn's text neither as a text nor as a list of parts",
            fix="edit chat_template in the model's tokenizer_config.json, or choose another model",
        )

    def _taken(self, *messages: Message) -> str | None:
        """The rendering, or None if the template refuses these turns."""
        try:
            return self.apply(messages, False)
        except sandbox.TemplateRefused:
            return None

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn (Gemma's raises, others drop it)."""
        text = self._taken({"role": "system", "content": SYSTEM}, EXCHANGE[0])
        return text is not None and SYSTEM in text and USER in text

    @cached_property
    def alternates(self) -> bool:
        """Whether the template refuses two turns of one side in a row."""
        return self._taken(EXCHANGE[0], EXCHANGE[0]) is None

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as this template takes them; see the module's docstring."""
        return self.accepted_with(messages, None)[0]

    def accepted_with(
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
                whole, so that turns cannot be told apart.
        """
        turns, flags = self.accepted_with(messages, loss)
        ids = self.ids(self.written(turns))
        if not self.tail and turns and turns[-1]["role"] == "assistant" and not cut:
            ids += self.ids(self.turn_end)
        labels = [IGNORE_INDEX] * len(ids)
        remaining = iter(flags)
        for index, message in enumerate(turns):
            if message["role"] != "assistant" or not next(remaining):
                continue
            start = len(self.encode(turns[:index]))
            through = self.ids(self.written(turns[: index + 1]))
            if ids[: len(through)] != through:
                raise self.inexpressible("a later turn changes how an earlier one is written")
            end = len(through) + len(self.ids(self.turn_end)) - len(self.ids(self.tail))
            labels[start:end] = ids[start:end]
        tail = len(self.ids(self.tail))
        if cut and tail and turns and turns[-1]["role"] == "assistant":
            ids, labels = ids[:-tail], labels[:-tail]
        return ids, labels

    def written(self, messages: Sequence[Message]) -> str:
        """The conversation as it stands while more may follow."""
        text = self.render(messages)
        return text.removesuffix(self._closing) if self._closing else text

    @cached_property
    def bos(self) -> str:
        """The BOS token, if the template begins with it: XTuner then puts it there itself."""
        bos = str(self.tokenizer.bos_token or "")
        return bos if bos and self.apply(EXCHANGE[:1], False).startswith(bos) else ""

    def after_bos(self, text: str) -> list[int]:
        return ([self.tokenizer.bos_token_id] if self.bos else []) + self.ids(text)

    @property
    def _name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "") or "this model")

    @cached_property
    def _after_last(self) -> str:
        """The text after the last reply of a conversation that is over."""
        return self.apply(EXCHANGE, False).rpartition(REPLY)[2]

    @cached_property
    def _after_earlier(self) -> str:
        """The text after a reply that is not the last, up to the next user's words."""
        return self.apply([*EXCHANGE, EXCHANGE[0]], False).rpartition(REPLY)[2].split(USER)[0]

    @cached_property
    def tail(self) -> str:
        """The text right after every reply: the turn end, then white space that is not supervised.

        Phi-4 writes an eos token behind a conversation that is over; that is no part of it.
        """
        last, earlier = self._after_last, self._after_earlier
        if earlier.startswith(last):
            return last
        letters = zip(last, earlier, strict=False)
        same = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters))
        while same and self.ids(earlier)[: len(self.ids(same))] != self.ids(same):
            same = same[:-1]  # the beginning of a token is not the token
        return same

    @cached_property
    def _closing(self) -> str:
        """What stands behind the last turn end of a conversation that is over."""
        return self._after_last[len(self.tail) :]

    @cached_property
    def turn_end(self) -> str:
        """The text that ends a reply, whole: one special token, several tokens, or a blank line.

        Where the template writes nothing after a reply (GLM-4), the special token that opens the
        next turn: such models are taught to write it when they are done. '' if there is none.
        """
        if self.tail:
            return self.tail.rstrip() or self.tail
        first = self.ids(self._after_earlier)[:1]
        return str(self.tokenizer.decode(first)) if self._special(first) else ""

    def _special(self, ids: Sequence[int]) -> bool:
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return bool(ids) and special.issuperset(ids)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply by themselves: a turn end that is special, and eos."""
        first = self.ids(self.turn_end)[:1]
        eos = self.tokenizer.eos_token_id
        ends = first if self._special(first) else []
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
        plain = self.apply(EXCHANGE[:1], False)
        system = self.apply([{"role": "system", "content": SYSTEM}, EXCHANGE[0]], False)
        head, _, tail = system.partition(SYSTEM)
        if plain.startswith(head) and plain.endswith(tail) and len(plain) > len(head) + len(tail):
            return plain[len(head) : len(plain) - len(tail)]
        return ""

    @cached_property
    def introduces(self) -> str:
        """The words of the default system turn that give the model an identity ('' for none)."""
        return identity_in(self.default_system)

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the template's default system turn written out, if it has one.

        XTuner adds a system block only if the row has one, so training rows must carry it.
        """
        turns = self.accepted(messages)
        if self.default_system and turns and turns[0]["role"] != "system":
            return [{"role": "system", "content": self.default_system}, *turns]
        return turns

    def inexpressible(self, why: str) -> UserError:
        return UserError(
            f"the chat template of {self._name} cannot be used for training with XTuner",
            why=why,
            fix="edit chat_template in the model's tokenizer_config.json, or choose another model",
        )


def _as_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Each turn's text as the one part of a list."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


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
