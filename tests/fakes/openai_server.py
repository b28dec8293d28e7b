"""A small OpenAI-compatible server for tests: real HTTP, scripted answers and faults."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (request number, request body) -> a text to answer with, or an HTTP fault.
Script = Callable[[int, dict[str, Any]], "str | Fault"]


class Fault:
    """``status`` 0: hang for ``seconds``; else that status with ``body``."""

    def __init__(self, status: int, body: str = "", seconds: float = 0.0, **headers: str) -> None:
        self.status = status
        self.body = body
        self.seconds = seconds
        self.headers = headers


class Server:
    """``url`` ends in /v1; ``requests`` are the bodies received, ``keys`` their bearer tokens."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(handler.headers.get("Authorization", ""))
        said = self.script(number, body)
        if isinstance(said, Fault):
            time.sleep(said.seconds)
            self._send(handler, said.status or 200, said.body, "text/html", said.headers)
            return
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": said},
        }
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "total_tokens": 8, "completion_tokens": 7},
        }
        self._send(handler, 200, json.dumps(answer), "application/json", {})

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, body: str, kind: str, headers: dict[str, str]
    ) -> None:
        data = body.encode()
        # A client that gave up waiting has closed its end.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            Server._write(handler, status, data, kind, headers)

    @staticmethod
    def _write(
        handler: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        kind: str,
        headers: dict[str, str],
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def serve(script: Script) -> Iterator[Server]:
    """Run the server in a thread until the block ends."""
    server = Server(script)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
