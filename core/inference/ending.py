"""What ends a reply: tokens that do so by themselves, and texts made of ordinary tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ending:
    """The end of a model's turn.

    Args:
        ids: a reply is over at any of these tokens.
        texts: a reply is over where it holds one of these. They count as text, whatever tokens
            they are written in: the first letter of the end may share a token with the reply.
        tokenizer: reads the texts; needed only if there are any.
    """

    ids: frozenset[int]
    texts: tuple[str, ...] = ()
    tokenizer: Any = None

    def reached(self, reply: Sequence[int]) -> bool:
        """Whether the last token completed one of the texts."""
        if not self.texts:
            return False
        # A token is at least one byte, so more of them cannot belong to the end.
        longest = max(len(text.encode()) for text in self.texts)
        tail = self._text(reply[-(longest + 4) :])
        return any(text in tail for text in self.texts)

    def without(self, reply: list[int]) -> tuple[list[int], str]:
        """A reply that reached a text, without it: the tokens that lie before it, and its text."""
        text = self.cut(self._text(reply))
        kept = len(reply)
        while kept and not text.startswith(self._text(reply[:kept])):
            kept -= 1
        return reply[:kept], text

    def cut(self, text: str) -> str:
        """The text before the first of the texts that end a reply."""
        found = [text.index(end) for end in self.texts if end in text]
        return text[: min(found)] if found else text

    def held(self, text: str) -> int:
        """How many last characters may be the beginning of an end, so are not to be shown yet."""
        lengths = range(max((len(end) for end in self.texts), default=0), 0, -1)
        return next(
            (
                n
                for n in lengths
                if n <= len(text) and any(e.startswith(text[-n:]) for e in self.texts)
            ),
            0,
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
