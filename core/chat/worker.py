"""The chat worker: a process that holds the models. ``python -m core.chat.worker``.

A process of its own, because ending it is the only way that surely frees a GPU's memory, and
because drawing the page must not take the interpreter away from decoding. It speaks the lines of
``core.chat.protocol``: requests on stdin, answers and events on stdout. It ends when its stdin
closes (the server is gone) or after a while without work.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, assert_never

from core import paths
from core.chat import protocol
from core.chat.protocol import Answer, Request
from core.errors import UserError
from core.inference.events import Begun, Event
from core.inference.stream import column_error
from core.jobs.locks import DeviceLock, device_holder, is_held
from core.models import trust

#: Weights are let go after this long without a request ...
IDLE_S = float(os.environ.get("PERSONA_CHAT_IDLE_S", "900"))
#: ... or after this long, if a job waits for the device.
IDLE_WANTED_S = min(30.0, IDLE_S)
_LOOK_EVERY_S = 1.0

if TYPE_CHECKING:
    from core.chat.context import Feed
    from core.chat.engine import Engine


class Worker:
    """Answers one request at a time; ``stop`` is heard at once, whatever runs."""

    def __init__(self, out: TextIO, on_gone: Callable[[], None] = lambda: None) -> None:
        """``on_gone`` is called when the other side has gone, whatever is being computed."""
        self._out = out
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._engine: Engine | None = None
        self._cancelled: set[int] = set()
        self._current = 0  # number of the generate request that runs
        self._device = DeviceLock("chat")
        self._held = False

    def serve(self, lines: TextIO) -> None:
        """Read requests until the other side closes the pipe or nothing comes for IDLE_S."""
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        while True:
            request = self._next()
            if request is None:
                return
            self._answer(request)

    def _next(self) -> Request | None:
        """The next request; None when the other side has gone or nothing came for too long."""
        idle_since = time.monotonic()
        while True:
            try:
                return self._requests.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                idle = time.monotonic() - idle_since
                if idle > IDLE_S or (idle > IDLE_WANTED_S and self._held and _a_job_waits()):
                    return None

    def _read(self, lines: TextIO) -> None:
        for line in lines:
            request = protocol.request.validate_json(line)
            if isinstance(request, protocol.Stop):
                self._stop(request)
            else:
                self._requests.put(request)
        if self._engine is not None:
            self._engine.cancel()
        self._requests.put(None)
        self._on_gone()

    def _stop(self, request: protocol.Stop) -> None:
        if request.target == self._current:
            self._ready().cancel(request.column)
        elif request.column is None:
            # It has not begun: remembered, so that it ends as soon as it begins.
            self._cancelled.add(request.target)

    def _answer(self, request: Request) -> None:
        try:
            answer = self._result(request)
        except Exception as error:
            answer = protocol.Failed(column_error(error))
        self._send(dataclasses.replace(answer, id=request.id))

    def _result(self, request: Request) -> Answer:
        match request:
            case protocol.Load():
                self._take_device()
                errors = self._ready().load(request.columns)
                return protocol.Loaded(errors, self._ready().memory())
            case protocol.Ask(op="preview"):
                plans = self._ready().plans(request.conversations, request.settings)
                return protocol.Planned({column: _preview(p) for column, p in plans.items()})
            case protocol.Ask():
                return self._generate(request)
            case protocol.Diverge():
                return self._diverge(request)
            case protocol.Stop():
                raise AssertionError("a stop does not wait in the queue")
        assert_never(request)

    def _send(self, message: Answer | protocol.Told) -> None:
        line = protocol.message.dump_json(message).decode()
        with self._lock:
            self._out.write(line + "\n")
            self._out.flush()

    def _ready(self) -> Engine:
        if self._engine is None:
            from core.chat.engine import Engine

            self._engine = Engine()
        return self._engine

    def _take_device(self) -> None:
        """One owner of the device at a time: two would slow each other many times over."""
        if self._held:
            return
        if not self._device.acquire():
            holder = device_holder()
            raise UserError(
                "the device is busy",
                why=f"{holder.what if holder else 'another process'} is using it",
                fix="wait until it has finished, or stop it; then load the models again",
            )
        self._held = True

    def _generate(self, request: protocol.Ask) -> Answer:
        engine = self._ready()

        def emit(event: Event) -> None:
            if isinstance(event, Begun):
                self._current = request.id  # from here on a stop reaches the engine
                if request.id in self._cancelled:
                    engine.cancel()
            self._send(protocol.Told(event, id=request.id))

        try:
            engine.generate(request.conversations, request.settings, emit)
        finally:
            self._current = 0
        return protocol.Generated(engine.memory())

    def _diverge(self, request: protocol.Diverge) -> Answer:
        found: dict[str, float] = {}
        for pair in request.pairs:
            try:
                found[pair.column] = self._ready().divergence(
                    (pair.column, pair.base), pair.prompts, pair.reply
                )
            except UserError:
                continue
        return protocol.Diverged(found)


def _a_job_waits() -> bool:
    """Whether a run stands in the queue for the device."""
    tickets = paths.runs_dir() / ".queue"
    return tickets.is_dir() and any(is_held(ticket) for ticket in tickets.iterdir())


def _preview(plan: Feed | UserError) -> protocol.Preview:
    if isinstance(plan, UserError):
        return protocol.Preview(error=column_error(plan))
    return protocol.Preview(plan.text, plan.token_ids, len(plan.cut), plan.limit)


def main() -> None:
    """Keep the real stdout for the protocol and send everybody else's prints to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    trust.permit()
    # Nothing is left to save, and a model that is being loaded would hold the device for minutes.
    Worker(out, on_gone=lambda: os._exit(0)).serve(sys.stdin)
    # Threads of a cancelled reply may be inside a long kernel.
    os._exit(0)


if __name__ == "__main__":
    main()
