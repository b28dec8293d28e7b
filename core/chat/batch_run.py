"""Runs a batch of prompts through all columns, in the background, kept on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from core import fsio, paths
from core.chat.batch import BatchRow
from core.chat.client import WorkerClient
from core.chat.columns import Column
from core.chat.dialogue import Reply, Transcript
from core.chat.live import EndpointStream, ask
from core.chat.protocol import Compared
from core.errors import UserError, redacted
from core.inference.settings import GenerationSettings


class BatchRun:
    """One batch: every prompt is a conversation of its own. Read ``rows`` while it runs."""

    def __init__(
        self,
        prompts: Sequence[str],
        columns: Sequence[Column],
        settings: GenerationSettings,
        worker: WorkerClient,
        endpoints: EndpointStream,
        system: str = "",
    ) -> None:
        self.prompts = list(prompts)
        self.columns = list(columns)
        self.rows: list[BatchRow] = []
        self.error: UserError | None = None
        self.started = time.monotonic()
        self.file = (
            paths.chats_dir() / f"batch-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        )
        self._settings = settings.check()
        self._worker, self._endpoints = worker, endpoints
        self._blank = Transcript("batch", time.time(), self.columns, system)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> BatchRun:
        """Begin in a thread of its own."""
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        """Whether more rows may come."""
        return self._thread.is_alive()

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the pace so far; None before the first row."""
        done = len(self.rows)
        if not done or not self.running:
            return None
        return (time.monotonic() - self.started) / done * (len(self.prompts) - done)

    def stop(self) -> None:
        """End after the prompt that is being answered."""
        self._stop.set()

    def wait(self) -> None:
        """Block until it is over."""
        self._thread.join()

    def _run(self) -> None:
        try:
            for prompt in self.prompts:
                if self._stop.is_set():
                    break
                self.rows.append(self._row(prompt))
        except UserError as error:
            self.error = error
        self._save()

    def _row(self, prompt: str) -> BatchRow:
        live = ask(self._blank, prompt, self._settings, self._worker, self._endpoints)
        seen = -1
        while not live.done:
            seen = live.wait(seen, 0.5)
        replies = live.turn.replies
        return BatchRow(prompt, replies, self._worker.divergence(self._pairs(replies)))

    def _pairs(self, replies: Mapping[str, Reply]) -> list[Compared]:
        """Columns of this machine against the first one."""
        base = self.columns[0]
        if not base.local or replies[base.id].error:
            return []
        return [
            Compared(
                column.id,
                base.id,
                (replies[column.id].prompt_ids, replies[base.id].prompt_ids),
                replies[column.id].token_ids,
            )
            for column in self.columns[1:]
            if column.local and replies[column.id].token_ids
        ]

    def _save(self) -> None:
        record = {
            "schema": 1,
            "columns": [s.to_dict() for s in self.columns],
            "settings": self._settings.to_dict(),
            "rows": [
                {
                    "prompt": row.prompt,
                    "replies": {column: asdict(reply) for column, reply in row.replies.items()},
                    "kl": row.kl,
                }
                for row in self.rows
            ],
        }
        try:
            fsio.atomic_write_text(self.file, redacted(fsio.dump_json(record, indent=2)) + "\n")
        except UserError as error:
            self.error = self.error or error
