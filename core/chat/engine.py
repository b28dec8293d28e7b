"""The chat engine: few resident models, several columns, all streaming at once.

Columns that share a base share its weights: base, base with a persona prompt, and base + any
number of adapters are one resident copy. A merged model is a second one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.chat.context import Plan, context_length, plan
from core.chat.sides import SideSpec
from core.conversation import Message
from core.errors import ErrorRecord, UserError
from core.inference import adapters, load
from core.inference.runner import Runner, make_runner, release_memory
from core.inference.settings import ChatSettings
from core.inference.stream import Emit, Stream, error_record
from core.models import catalog, lora
from core.models import device as devices
from core.models.template import ChatTemplate

#: Token ids fed to a column, and to the base.
PromptPair = tuple[list[int], list[int]]


@dataclass
class Resident:
    """One copy of weights in memory, with the adapters that hang on it."""

    path: Path
    model: Any
    tokenizer: Any
    template: ChatTemplate
    runner: Runner
    stop_ids: frozenset[int]
    context: int
    adapters: dict[str, str] = field(default_factory=dict)  # folder -> name in PEFT

    def bytes(self) -> int:
        """Bytes of all parameters and buffers, shared ones counted once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in (*self.model.parameters(), *self.model.buffers())
        }
        return sum(storages.values())


@dataclass(frozen=True)
class Slot:
    """Where a column's replies come from."""

    resident: str
    adapter: str | None


class Engine:
    """Loads columns and answers. Used by the worker process, by benchmarks and by tests.

    Not safe for two ``generate`` calls at once; the worker queues them.
    """

    def __init__(self, *, device: str | None = None, threads: int | None = None) -> None:
        self._device = device
        self._threads = threads or devices.describe().threads
        self._residents: dict[str, Resident] = {}
        self._slots: dict[str, Slot] = {}
        self._cancel: dict[str, threading.Event] = {}

    def load(self, sides: Sequence[SideSpec]) -> dict[str, ErrorRecord]:
        """Make exactly these columns ready; weights that none of them needs are let go.

        Returns:
            Errors by column id (what/why/fix); empty when every column is ready.
        """
        wanted = [s for s in sides if s.local]
        errors: dict[str, ErrorRecord] = {}
        keys: dict[str, str] = {}
        for side in wanted:
            try:
                keys[side.id] = self._key(side)
            except UserError as error:
                errors[side.id] = error_record(error)
        for stale in set(self._residents) - set(keys.values()):
            del self._residents[stale]
        release_memory()
        self._slots = {}
        for side in wanted:
            if side.id in keys:
                try:
                    self._slots[side.id] = self._attach(side, keys[side.id])
                except Exception as error:  # one column's failure must not take the others along
                    errors[side.id] = error_record(error)
        return errors

    def unload(self) -> None:
        """Let go of all weights. Best effort: only the end of the process frees everything."""
        self._residents.clear()
        self._slots.clear()
        release_memory()

    def _key(self, side: SideSpec) -> str:
        path = str(catalog.resolve(side.model).path)
        if side.adapter and not lora.shareable(Path(side.adapter)):
            return f"{path}+{side.adapter}"
        return path

    def _attach(self, side: SideSpec, key: str) -> Slot:
        resident = self._residents.get(key) or self._load(catalog.resolve(side.model).path)
        self._residents[key] = resident
        if not side.adapter:
            return Slot(key, None)
        if side.adapter not in resident.adapters:
            name = f"adapter{len(resident.adapters)}"
            resident.model = adapters.attach(resident.model, Path(side.adapter), name)
            resident.adapters[side.adapter] = name
            resident.runner = make_runner(resident.model)
        return Slot(key, resident.adapters[side.adapter])

    def _load(self, path: Path) -> Resident:
        tokenizer = load.load_tokenizer(path)
        model = load.load_model(path, device=self._device)
        template = ChatTemplate(tokenizer)
        return Resident(
            path=path,
            model=model,
            tokenizer=tokenizer,
            template=template,
            runner=make_runner(model),
            stop_ids=frozenset((*template.stop_ids, *_model_stops(model))),
            context=context_length(model.config, tokenizer),
        )

    def plans(
        self, conversations: Mapping[str, Sequence[Message]], settings: ChatSettings
    ) -> dict[str, Plan | UserError]:
        """What each column would be fed, and what would be cut, without running anything."""
        plans: dict[str, Plan | UserError] = {}
        for side, messages in conversations.items():
            try:
                resident = self._resident(side)
                plans[side] = plan(
                    resident.template, messages, settings.max_new_tokens, resident.context
                )
            except UserError as error:
                plans[side] = error
        return plans

    def generate(
        self,
        conversations: Mapping[str, Sequence[Message]],
        settings: ChatSettings,
        emit: Emit,
    ) -> None:
        """Answer in all columns at once; returns when the last reply is over.

        Args:
            conversations: per column id the messages, ending in a user turn.
            emit: called from several threads with the events of ``core.inference.stream``.
        """
        settings.check()
        streams: dict[str, list[Stream]] = {}
        self._cancel = {side: threading.Event() for side in conversations}
        for side, planned in self.plans(conversations, settings).items():
            if isinstance(planned, UserError):
                emit({"type": "error", "side": side, "error": error_record(planned)})
                continue
            emit(_start(side, planned))
            stream = self._stream(side, planned, conversations[side], settings, emit)
            streams.setdefault(self._slots[side].resident, []).append(stream)
        self._run(streams)

    def _stream(
        self,
        side: str,
        planned: Plan,
        messages: Sequence[Message],
        settings: ChatSettings,
        emit: Emit,
    ) -> Stream:
        resident = self._resident(side)
        return Stream(
            side=side,
            prompt=planned.token_ids,
            settings=settings,
            stop_ids=resident.stop_ids,
            tokenizer=resident.tokenizer,
            emit=emit,
            adapter=self._slots[side].adapter,
            limit=planned.limit,
            head=resident.template.head(messages, planned.token_ids),
            cancelled=self._cancel[side],
        )

    def _run(self, streams: Mapping[str, list[Stream]]) -> None:
        """One thread a resident model; each gets its share of the processor's threads."""
        share = max(1, self._threads // max(1, len(streams)))
        threads = [
            threading.Thread(target=self._residents[key].runner.run, args=(group, share))
            for key, group in streams.items()
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
        logs = [
            self._resident(side).runner.log_probabilities(
                [*prompt, *reply], len(prompt) - 1, self._slots[side].adapter
            )[:-1]
            for side, prompt in zip(pair, prompts, strict=True)
        ]
        if logs[0].shape != logs[1].shape:
            raise UserError(
                "these columns have different vocabularies",
                fix="compare a model with the base that it was trained from",
            )
        return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())

    def cancel(self, side: str | None = None) -> None:
        """Stop one column or all; the partial replies stand, with reason ``cancelled``."""
        for name, event in self._cancel.items():
            if side in (None, name):
                event.set()

    def memory(self) -> dict[str, int]:
        """Bytes: weights of each resident model by folder, and what the process holds in all."""
        import psutil

        sizes = {str(r.path): r.bytes() for r in self._residents.values()}
        sizes["process"] = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            sizes["gpu"] = torch.cuda.memory_allocated()
        return sizes

    def source(self, side: str) -> tuple[Resident, str | None]:
        """The weights of a loaded column, and the name of its adapter on them.

        Raises:
            UserError: the column is not loaded.
        """
        return self._resident(side), self._slots[side].adapter

    def _resident(self, side: str) -> Resident:
        if side not in self._slots:
            raise UserError(
                f"column {side!r} is not loaded", fix="choose its model again and load it"
            )
        return self._residents[self._slots[side].resident]


def _start(side: str, planned: Plan) -> dict[str, Any]:
    return {
        "type": "start",
        "side": side,
        "prompt": planned.text,
        "prompt_ids": planned.token_ids,
        "cut": len(planned.cut),
    }


def _model_stops(model: Any) -> list[int]:
    """Stop tokens of the generation config: one id, a list, or none."""
    stored = getattr(model.generation_config, "eos_token_id", None)
    if stored is None:
        return []
    return list(stored) if isinstance(stored, (list, tuple)) else [int(stored)]
