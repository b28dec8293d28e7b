"""A Streamlit script behind a port of its own, for tests that talk to the real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.paths import REPO


@contextmanager
def streamlit_server(
    script: Path, log: Path, *options: str, home: Path | None = None
) -> Iterator[int]:
    """Start ``streamlit run``, wait until it answers, and yield its port; killed at the end.

    The settings are those of the repository's .streamlit folder, but for ``options``; the
    workspace is this test's own, or ``home``.
    """
    env = {**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    if home is not None:
        env["PERSONA_HOME"] = str(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}",
             *options],
            cwd=REPO, env=env, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.3)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
