"""What large inputs of others cost: equal rows, a server that does not stop, uploads, many windows.

    python benchmarks/load_figures.py [--rows 30000] [--stream-mb 30] [--uploads 20]

Prints a line a figure: what, the figure, the limit. Exits with 1 if one is above its limit. Seconds
are of the processor, since a loaded machine stretches those of the clock, which are printed too.
The windows are those of ``benchmarks/train_page_sessions.py``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["PERSONA_HOME"] = tempfile.mkdtemp(prefix="load-benchmark-")
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def told(what: str, figure: float, limit: float, unit: str, more: str = "") -> bool:
    """Print a line; True if the figure is within its limit."""
    print(f"{what:44} {figure:8.2f} {unit} (at most {limit:g}) {more}", flush=True)
    return figure <= limit


def equal_rows(count: int) -> bool:
    """Import rows that are all the same."""
    from core.data.importer import import_file

    data = (json.dumps(ROW) + "\n").encode() * count
    clock, busy = time.monotonic(), time.process_time()
    report = import_file(io.BytesIO(data))
    assert len({row.id for row in report.rows}) == count
    spent = time.process_time() - busy
    return told(f"{count:,} equal rows imported", spent, 10, "s", f"{time.monotonic() - clock:.1f}")


class Endless(BaseHTTPRequestHandler):
    """Streams ``size`` bytes for whatever is asked."""

    size = 30_000_000

    def do_POST(self) -> None:
        """An answer of OpenAI's kind, in pieces of 10,000 characters."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        choice = {"index": 0, "delta": {"content": "x" * 10_000}}
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        line = b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n"
        try:
            for _ in range(self.size // 10_000):
                self.wfile.write(line)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def endless_stream(megabytes: int) -> bool:
    """Ask for four tokens of a server that sends megabytes."""
    from core import paths
    from core.chat import transcripts
    from core.chat.client import WorkerClient
    from core.chat.columns import Column
    from core.chat.endpoint import Endpoints
    from core.chat.session import ChatSession
    from core.inference.settings import GenerationSettings

    Endless.size = megabytes * 10**6
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    column = Column("a", "endpoint", "S", "m", base_url=url)
    session = ChatSession(transcripts.create([column]), WorkerClient(), Endpoints())
    clock, busy = time.monotonic(), time.process_time()
    live = session.send("x", GenerationSettings(max_new_tokens=4))
    while session.live is live:
        live.wait(-1, 0.05)
    spent, waited = time.process_time() - busy, time.monotonic() - clock
    server.shutdown()
    kept = sum(p.stat().st_size for p in paths.chats_dir().glob("*.jsonl")) / 1e6
    in_time = told(f"{megabytes} MB streamed for four tokens", spent, 5, "s", f"{waited:.1f}")
    return told("kept of it in the conversation", kept, 0.1, "MB") and in_time


def uploads(count: int, megabytes: int = 2) -> bool:
    """Upload one file after the other in one window: what is held after the last."""
    from streamlit.testing.v1 import AppTest

    from tests.fakes.upload_page import importing

    app = AppTest.from_function(importing, default_timeout=300).run()
    row = (json.dumps(ROW | {"pad": "x" * 10_000}) + "\n").encode()
    data = row * (megabytes * 10**6 // len(row))
    for index in range(count):
        app.file_uploader[0].upload(f"{index}.jsonl", data + b"\n" * index, "application/json")
        app.run()
        assert not app.exception
    held = app.session_state["held"] / len(data)
    return told(f"{count} uploads of {megabytes} MB: files held", held, 1.5, "files")


def main() -> int:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--stream-mb", type=int, default=30)
    parser.add_argument("--uploads", type=int, default=20)
    args = parser.parse_args()
    fine = [equal_rows(args.rows), endless_stream(args.stream_mb), uploads(args.uploads)]
    windows = subprocess.run([sys.executable, str(REPO / "benchmarks" / "train_page_sessions.py")])
    return int(not all(fine) or windows.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
