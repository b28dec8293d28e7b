"""A running conversation: sends a prompt to all columns and gathers what streams back.

It belongs to the server, not to a page: a page that is reloaded in the middle of a reply finds the
same session again and goes on drawing it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from core.chat import transcripts
from core.chat.client import WorkerClient
from core.chat.columns import Column
from core.chat.dialogue import Transcript
from core.chat.live import EndpointStream, LiveTurn, ask
from core.chat.protocol import Preview
from core.errors import UserError
from core.inference.settings import WEB_DEMO, GenerationSettings

#: A streaming reply is saved this often, so a killed server loses at most this much.
_SAVE_EVERY_S = 2.0


class ChatSession:
    """One conversation and the turn that streams in it, if any."""

    def __init__(
        self, transcript: Transcript, worker: WorkerClient, endpoints: EndpointStream
    ) -> None:
        self.transcript = transcript
        self.live: LiveTurn | None = None
        self._worker = worker
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self.save_error = ""

    def send(self, prompt: str, settings: GenerationSettings) -> LiveTurn:
        """Ask all columns. Returns at once; watch the returned turn.

        Raises:
            UserError: the prompt is empty, or a reply is still streaming.
        """
        return self._ask(prompt, settings)

    def _ask(
        self,
        prompt: str,
        settings: GenerationSettings,
        again: tuple[int, Column] | None = None,
        instead_of: int | None = None,
    ) -> LiveTurn:
        settings.check()
        if not prompt.strip():
            raise UserError("the message is empty", fix="write something")
        with self._lock:
            self._idle()
            if instead_of is not None:
                transcripts.go_back(self.transcript, instead_of)
            live = ask(self.transcript, prompt, settings, self._worker, self._endpoints, again)
            self.live = live
            # In the file it waits until the turn is there: the server may die before.
            self.transcript.draft = None if again is None else self.transcript.draft
        threading.Thread(target=self._keep, args=(live,), daemon=True).start()
        return live

    def preview(
        self, prompt: str, settings: GenerationSettings, before: int | None = None
    ) -> dict[str, Preview]:
        """What each local column would be fed: exact prompt, messages cut, room for the reply.

        Args:
            before: as if the conversation ended before this turn.

        Raises:
            UserError: the worker is gone.
        """
        local = [s for s in self.transcript.columns if s.local]
        conversations = {s.id: self.transcript.messages(s, prompt, before) for s in local}
        return self._worker.plan(conversations, settings) if local else {}

    def stop(self, column: str | None = None) -> None:
        """End one column's reply or all; what is written stays, marked as cancelled."""
        live = self.live
        if live is None or live.done:
            return
        self._endpoints.cancel(column)
        if live.number:
            self._worker.stop(live.number, column)

    def regenerate(self, column: str, settings: GenerationSettings) -> LiveTurn:
        """Answer the last prompt again in one column; the old reply is kept as a version.

        The seed is one that this column has not answered with. Greedy settings would give the
        same reply every time, so it is then drawn as InternLM's web demo draws.

        Raises:
            UserError: there is no turn yet, or a reply is still streaming.
        """
        turns = self.transcript.turns
        if not turns or column not in turns[-1].replies:
            raise UserError("there is nothing to answer again yet", fix="send a message first")
        _, versions = turns[-1].place(column)
        if settings.greedy:
            settings = dataclasses.replace(
                settings, temperature=WEB_DEMO.temperature, top_p=WEB_DEMO.top_p
            )
        drawn = dataclasses.replace(settings, seed=settings.seed + versions)
        asked = next(c for c in self.transcript.columns if c.id == column)
        return self._ask(turns[-1].prompt, drawn, (len(turns) - 1, asked))

    def resend(self, index: int, prompt: str, settings: GenerationSettings) -> LiveTurn:
        """Ask ``prompt`` in place of the question of turn ``index``, which is kept as a version."""
        return self._ask(prompt, settings, instead_of=index)

    def clear(self) -> None:
        """Begin again; what was said is put aside."""
        self._idle()
        transcripts.go_back(self.transcript, 0)

    def _idle(self) -> None:
        if self.live is not None:
            raise UserError("a reply is still streaming", fix="stop it first, or wait")

    def _keep(self, live: LiveTurn) -> None:
        """Save while it streams, and once it is over make it part of the conversation."""
        seen, saved = -1, time.monotonic()
        try:
            while not live.done:
                seen = live.wait(seen, 0.5)
                if time.monotonic() - saved > _SAVE_EVERY_S and not live.done:
                    self._save(self._save_partial, live)
                    saved = time.monotonic()
            self._save(self._save_whole, live)
        finally:  # whatever happens to the disk, the page must not wait for ever
            with self._lock:
                self.live = None

    def _save_partial(self, live: LiveTurn) -> None:
        if live.again is None:
            transcripts.save_partial(self.transcript, live.turn)
            return
        for column, reply in live.turn.replies.items():
            transcripts.save_partial_version(self.transcript, live.again, column, reply)

    def _save_whole(self, live: LiveTurn) -> None:
        if live.again is None:
            transcripts.add_turn(self.transcript, live.turn)
            return
        for column, reply in live.turn.replies.items():
            reply.settings = live.turn.settings
            transcripts.add_version(self.transcript, live.again, column, reply)

    def _save(self, write: Callable[[LiveTurn], None], live: LiveTurn) -> None:
        try:
            write(live)
            self.save_error = ""
        except UserError as error:
            self.save_error = str(error)
