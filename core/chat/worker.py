"""The chat worker: a process that holds the models. ``python -m core.chat.worker``.

A process of its own, because ending it is the only way that surely frees a GPU's memory, and
because drawing the page must not take the interpreter away from decoding. It speaks JSON lines:
requests on stdin ``{"id", "op", ...}``, events on stdout ``{"id", "type", ...}``. It ends when
its stdin closes (the server is gone) or after a while without work.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from core import paths
from core.chat.sides import SideSpec
from core.errors import UserError
from core.inference.settings import ChatSettings
from core.inference.stream import error_record
from core.jobs.locks import DeviceLock, device_holder, is_held
from core.models import trust

#: Weights are let go after this long without a request ...
IDLE_S = float(os.environ.get("PERSONA_CHAT_IDLE_S", "900"))
#: ... or after this long, if a job waits for the device.
IDLE_WANTED_S = min(30.0, IDLE_S)
_LOOK_EVERY_S = 1.0

Request = dict[str, Any]


class Worker:
    """Answers one request at a time; ``stop`` is heard at once, whatever runs."""

    def __init__(self, out: TextIO, on_gone: Callable[[], None] = lambda: None) -> None:
        """``on_gone`` is called when the other side has gone, whatever is being computed."""
        self._out = out
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._engine: Any = None
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
                    self._send({"id": 0, "type": "idle"})
                    return None

    def _read(self, lines: TextIO) -> None:
        for line in lines:
            request = json.loads(line)
            if request["op"] == "stop":
                self._stop(request)
            else:
                self._requests.put(request)
        if self._engine is not None:
            self._engine.cancel()
        self._requests.put(None)
        self._on_gone()

    def _stop(self, request: Request) -> None:
        target, side = int(request["target"]), request.get("side")
        if target == self._current:
            self._engine.cancel(side)
        elif side is None:
            # It has not begun: remembered, so that it ends as soon as it begins.
            self._cancelled.add(target)

    def _answer(self, request: Request) -> None:
        operation: Callable[[Request], Mapping[str, Any]] = getattr(self, f"_do_{request['op']}")
        try:
            result: Mapping[str, Any] = operation(request)
            self._send({"id": request["id"], "type": "finished", **result})
        except Exception as error:
            self._send({"id": request["id"], "type": "failed", "error": error_record(error)})

    def _send(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False)
        with self._lock:
            self._out.write(line + "\n")
            self._out.flush()

    def _ready(self) -> Any:
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

    def _do_load(self, request: Request) -> Mapping[str, Any]:
        self._take_device()
        engine = self._ready()
        errors = engine.load([SideSpec.from_dict(s) for s in request["sides"]])
        return {"errors": errors, "memory": engine.memory()}

    def _do_unload(self, _: Request) -> Mapping[str, Any]:
        engine = self._ready()
        engine.unload()
        self._device.release()
        self._held = False
        return {"memory": engine.memory()}

    def _do_plan(self, request: Request) -> Mapping[str, Any]:
        plans = self._ready().plans(
            request["conversations"], ChatSettings.from_dict(request["settings"])
        )
        return {"plans": {side: _plan_record(plan) for side, plan in plans.items()}}

    def _do_generate(self, request: Request) -> Mapping[str, Any]:
        number = int(request["id"])
        engine = self._ready()

        def emit(event: dict[str, Any]) -> None:
            if event["type"] == "start":
                self._current = number  # from here on a stop reaches the engine
                if number in self._cancelled:
                    engine.cancel()
            self._send({"id": number, **event})

        try:
            engine.generate(
                request["conversations"], ChatSettings.from_dict(request["settings"]), emit
            )
        finally:
            self._current = 0
        return {"memory": engine.memory()}

    def _do_divergence(self, request: Request) -> Mapping[str, Any]:
        """Per pair of columns; a pair that cannot be compared is left out."""
        found: dict[str, float] = {}
        for item in request["items"]:
            try:
                found[item["side"]] = self._ready().divergence(
                    (item["side"], item["base"]), tuple(item["prompts"]), item["reply"]
                )
            except UserError:
                continue
        return {"kl": found}


def _a_job_waits() -> bool:
    """Whether a run stands in the queue for the device."""
    tickets = paths.runs_dir() / ".queue"
    return tickets.is_dir() and any(is_held(ticket) for ticket in tickets.iterdir())


def _plan_record(plan: Any) -> dict[str, Any]:
    if isinstance(plan, Exception):
        return {"error": error_record(plan)}
    return {
        "text": plan.text,
        "token_ids": plan.token_ids,
        "cut": len(plan.cut),
        "limit": plan.limit,
    }


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
