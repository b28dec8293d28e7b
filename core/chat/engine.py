"""The chat engine: few resident models, several columns, all streaming at once.

Columns that share a base share its weights: base, base with a persona prompt, and base + any
number of adapters are one resident copy. A merged model is a second one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.chat.columns import Column
from core.chat.context import Feed, context_length, plan
from core.conversation import Message
from core.errors import ErrorRecord, UserError
from core.inference import decoding, scoring
from core.inference.events import Begun, Emit, Ended
from core.inference.resident import Resident, Residents, Voice
from core.inference.scoring import Passage
from core.inference.settings import GenerationSettings
from core.inference.stream import Stream, column_error
from core.models import catalog
from core.models import device as devices

#: Token ids fed to a column, and to the base.
PromptPair = tuple[list[int], list[int]]
#: A shorter beginning saves nothing, a longer one costs more memory than its time is worth.
HEAD_TOKENS = range(16, 513)


@dataclass(frozen=True)
class _Asked:
    """What was planned last for a column; ``head`` as of ``Request``."""

    messages: list[Message]
    max_new_tokens: int
    plan: Feed
    head: int


class Engine:
    """Loads columns and answers. Used by the worker process, by benchmarks and by tests.

    Not safe for two ``generate`` calls at once; the worker queues them.
    """

    def __init__(self, *, device: str | None = None, threads: int | None = None) -> None:
        self._threads = threads or devices.describe().threads
        self._residents = Residents(device)
        self._voices: dict[str, Voice] = {}
        self._asked: dict[str, _Asked] = {}
        self._cancel: dict[str, threading.Event] = {}

    def load(self, columns: Sequence[Column]) -> dict[str, ErrorRecord]:
        """Make exactly these columns ready; weights that none of them needs are let go.

        Returns:
            Errors by column id (what/why/fix); empty when every column is ready.
        """
        errors: dict[str, ErrorRecord] = {}
        wanted: dict[str, tuple[Path, Path | None]] = {}
        keys: set[str] = set()
        for column in (s for s in columns if s.local):
            where = Path(column.adapter) if column.adapter else None
            try:
                model = catalog.resolve(column.model).path
                keys.add(self._residents.key(model, where))
                wanted[column.id] = model, where
            except UserError as error:
                errors[column.id] = column_error(error)
        self._voices, self._asked = {}, {}
        self._residents.keep(keys)
        for name, (model, adapter) in wanted.items():
            try:
                self._voices[name] = self._residents.get(model, adapter).voice(adapter)
            except Exception as error:  # one column's failure must not take the others along
                errors[name] = column_error(error)
        for voice in self._voices.values():
            _ = voice.resident.backend  # made now: the first reply should not wait for it
        return errors

    def plans(
        self, conversations: Mapping[str, Sequence[Message]], settings: GenerationSettings
    ) -> dict[str, Feed | UserError]:
        """What each column would be fed, and what would be cut, without running anything."""
        plans: dict[str, Feed | UserError] = {}
        for column, messages in conversations.items():
            try:
                plans[column] = self._plan(column, list(messages), settings.max_new_tokens).plan
            except UserError as error:
                plans[column] = error
        return plans

    def _plan(self, column: str, messages: list[Message], max_new_tokens: int) -> _Asked:
        """Plan a prompt, once for the preview and the reply."""
        resident = self.voice(column).resident
        asked = self._asked.get(column)
        if asked and (asked.messages, asked.max_new_tokens) == (messages, max_new_tokens):
            return asked
        context = context_length(resident.model.config, resident.tokenizer)
        planned = plan(resident.template, messages, max_new_tokens, context)
        head = resident.template.head(messages, planned.token_ids)
        kept = head if head in HEAD_TOKENS else 0
        self._asked[column] = _Asked(messages, max_new_tokens, planned, kept)
        return self._asked[column]

    def generate(
        self,
        conversations: Mapping[str, Sequence[Message]],
        settings: GenerationSettings,
        emit: Emit,
    ) -> None:
        """Answer in all columns at once; returns when the last reply is over.

        Args:
            conversations: per column id the messages, ending in a user turn.
            emit: called from several threads with each column's events.
        """
        settings.check()
        streams: dict[Resident, list[Stream]] = {}
        self._cancel = {column: threading.Event() for column in conversations}
        for column, messages in conversations.items():
            try:
                asked = self._plan(column, list(messages), settings.max_new_tokens)
            except UserError as error:
                emit(Ended(column, "", "error", error=column_error(error)))
                continue
            fed = asked.plan
            emit(Begun(column, fed.text, fed.token_ids, len(fed.cut)))
            stream = self._stream(column, asked, settings, emit)
            streams.setdefault(self.voice(column).resident, []).append(stream)
        self._run(streams, settings)

    def _stream(
        self, column: str, asked: _Asked, settings: GenerationSettings, emit: Emit
    ) -> Stream:
        voice, limit = self.voice(column), asked.plan.limit
        return Stream(
            prompt=asked.plan.token_ids,
            stop_ids=voice.resident.stop_ids,
            limit=limit,
            adapter=voice.adapter,
            seed=settings.seed,
            head=asked.head,
            at_limit="length" if limit == settings.max_new_tokens else "context",
            cancelled=self._cancel[column],
            stop_texts=voice.resident.template.stop_texts,
            column=column,
            tokenizer=voice.resident.tokenizer,
            emit=emit,
        )

    def _run(self, streams: Mapping[Resident, list[Stream]], settings: GenerationSettings) -> None:
        """One thread a resident model; each gets its share of the processor's threads."""
        share = max(1, self._threads // max(1, len(streams)))
        threads = [
            threading.Thread(
                target=decoding.stream, args=(resident.backend, group, settings, share)
            )
            for resident, group in streams.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def divergence(self, pair: tuple[str, str], prompts: PromptPair, reply: list[int]) -> float:
        """Mean KL(column || base) over the tokens of a reply, in nats; teacher forced.

        Args:
            pair: ids of the column and of the base.
            prompts: what each of them is fed before the reply (they differ by a system prompt).
            reply: the column's reply, token ids.

        Raises:
            UserError: a column is not loaded, or both have different vocabularies.
        """
        if not reply:
            return 0.0
        tuned, base = (
            next(scoring.log_probs(self.voice(column), [Passage(prompt, reply)])).cpu()
            for column, prompt in zip(pair, prompts, strict=True)
        )
        if tuned.shape != base.shape:
            raise UserError(
                "these columns have different vocabularies",
                fix="compare a model with the base that it was trained from",
            )
        return float(scoring.kl(tuned, base).mean())

    def cancel(self, column: str | None = None) -> None:
        """Stop one column or all; the partial replies stand, with reason ``cancelled``."""
        for name, event in self._cancel.items():
            if column in (None, name):
                event.set()

    def memory(self) -> dict[str, int]:
        """Bytes: weights of each resident model by folder, and what the process holds in all."""
        import psutil

        sizes = self._residents.sizes()
        sizes["process"] = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            sizes["gpu"] = torch.cuda.memory_allocated()
        return sizes

    def voice(self, column: str) -> Voice:
        """Who answers in a column.

        Raises:
            UserError: the column is not loaded.
        """
        if column not in self._voices:
            raise UserError(
                f"column {column!r} is not loaded", fix="choose its model again and load it"
            )
        return self._voices[column]
