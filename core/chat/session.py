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
from core.chat.live import EndpointStream, LiveTurn, ask
from core.chat.protocol import Preview
from core.chat.transcripts import Transcript, Turn
from core.errors import UserError
from core.inference.settings import GenerationSettings

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
        settings.check()
        if not prompt.strip():
            raise UserError("the message is empty", fix="write something")
        with self._lock:
            self._idle()
            live = ask(self.transcript, prompt, settings, self._worker, self._endpoints)
            self.live = live
        threading.Thread(target=self._keep, args=(live,), daemon=True).start()
        return live

    def preview(self, prompt: str, settings: GenerationSettings) -> dict[str, Preview]:
        """What each local column would be fed: exact prompt, messages cut, room for the reply.

        Raises:
            UserError: the worker is gone.
        """
        local = [s for s in self.transcript.columns if s.local]
        conversations = {s.id: self.transcript.messages(s, prompt) for s in local}
        return self._worker.plan(conversations, settings) if local else {}

    def stop(self, column: str | None = None) -> None:
        """End one column's reply or all; what is written stays, marked as cancelled."""
        live = self.live
        if live is None or live.done:
            return
        self._endpoints.cancel(column)
        if live.number:
            self._worker.stop(live.number, column)

    def regenerate(self, settings: GenerationSettings) -> LiveTurn:
        """Answer the last prompt again with these settings and the seed after the last one.

        Raises:
            UserError: there is no turn yet, or a reply is still streaming.
        """
        if not self.transcript.turns:
            raise UserError("there is nothing to answer again yet", fix="send a message first")
        last = self.transcript.turns[-1]
        seed = max(settings.seed, last.settings.seed + 1)
        again = dataclasses.replace(settings, seed=seed)
        return self.resend(len(self.transcript.turns) - 1, last.prompt, again)

    def resend(self, index: int, prompt: str, settings: GenerationSettings) -> LiveTurn:
        """Go back before turn ``index`` and send ``prompt`` from there."""
        self._idle()
        transcripts.truncate(self.transcript, index)
        return self.send(prompt, settings)

    def clear(self) -> None:
        """Forget all turns."""
        self._idle()
        transcripts.truncate(self.transcript, 0)
        self.live = None

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
                    self._save(transcripts.save_partial, live.turn)
                    saved = time.monotonic()
            self._save(transcripts.add_turn, live.turn)
        finally:  # whatever happens to the disk, the page must not wait for ever
            with self._lock:
                self.live = None

    def _save(self, write: Callable[[Transcript, Turn], None], turn: Turn) -> None:
        try:
            write(self.transcript, turn)
            self.save_error = ""
        except UserError as error:
            self.save_error = str(error)
