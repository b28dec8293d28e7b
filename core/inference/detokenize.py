"""Token ids to text while they arrive."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"
#: A UTF-8 character has at most four bytes, so at most four byte tokens are held back.
_HELD_AT_MOST = 4


class IncrementalDecoder:
    """Emits text as soon as it is final; joined, it equals decoding all ids at once.

    A token may hold half a character (byte-level BPE), and SentencePiece drops the space before
    the first token of a sequence, so a token is decoded together with some before it, and text
    that ends in a replacement character waits for its remaining bytes. Cost per token does not
    grow with the length of the reply.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._prefix = 0  # first id of the decoded window
        self._done = 0  # ids whose text was emitted

    def push(self, token: int) -> str:
        """Text that became final with this token ('' while a character is incomplete)."""
        self._ids.append(token)
        before = self._decode(self._prefix, self._done)
        now = self._decode(self._prefix, len(self._ids))
        incomplete = now.endswith(_REPLACEMENT) and len(self._ids) - self._done < _HELD_AT_MOST
        if len(now) <= len(before) or incomplete:
            return ""
        return self._emit(now[len(before) :])

    def finish(self) -> str:
        """Whatever is still held back, broken bytes as replacement characters."""
        before = self._decode(self._prefix, self._done)
        now = self._decode(self._prefix, len(self._ids))
        return self._emit(now[len(before) :])

    def _emit(self, text: str) -> str:
        self._prefix, self._done = self._done, len(self._ids)
        return text

    def _decode(self, start: int, end: int) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[start:end],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )
