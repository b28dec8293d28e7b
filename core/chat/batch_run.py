"""Runs a batch of prompts through all columns, in the background, kept on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from core import fsio, paths
from core.chat.batch import BatchRow
from core.chat.client import WorkerClient
from core.chat.live import EndpointStream, ask
from core.chat.sides import SideSpec
from core.chat.transcripts import Reply, Transcript
from core.errors import UserError
from core.inference.settings import ChatSettings


class BatchRun:
    """One batch: every prompt is a conversation of its own. Read ``rows`` while it runs."""

    def __init__(
        self,
        prompts: Sequence[str],
        sides: Sequence[SideSpec],
        settings: ChatSettings,
        worker: WorkerClient,
        endpoints: EndpointStream,
        system: str = "",
    ) -> None:
        self.prompts = list(prompts)
        self.sides = list(sides)
        self.rows: list[BatchRow] = []
        self.error: UserError | None = None
        self.started = time.monotonic()
        self.file = (
            paths.chats_dir() / f"batch-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        )
        self._settings = settings.check()
        self._worker, self._endpoints = worker, endpoints
        self._blank = Transcript("batch", time.time(), self.sides, system)
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
        return BatchRow(prompt, replies, self._worker.divergence(self._items(replies)))

    def _items(self, replies: Mapping[str, Reply]) -> list[dict[str, Any]]:
        """Columns of this machine against the first one."""
        base = self.sides[0]
        if not base.local or replies[base.id].error:
            return []
        return [
            {
                "side": side.id,
                "base": base.id,
                "prompts": [replies[side.id].prompt_ids, replies[base.id].prompt_ids],
                "reply": replies[side.id].token_ids,
            }
            for side in self.sides[1:]
            if side.local and replies[side.id].token_ids
        ]

    def _save(self) -> None:
        record = {
            "schema": 1,
            "sides": [s.to_dict() for s in self.sides],
            "settings": self._settings.to_dict(),
            "rows": [
                {
                    "prompt": row.prompt,
                    "replies": {side: asdict(reply) for side, reply in row.replies.items()},
                    "kl": row.kl,
                }
                for row in self.rows
            ],
        }
        try:
            fsio.write_json(self.file, record)
        except UserError as error:
            self.error = self.error or error
