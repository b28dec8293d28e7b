"""A Streamlit server of its own, for tests that talk to the real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Self

from core.paths import REPO


class StreamlitServer:
    """``streamlit run`` in a process group of its own, its output in a file (a pipe could fill).

    The settings are those of the repository's .streamlit folder.
    """

    def __init__(
        self,
        home: Path,
        *,
        script: Path = REPO / "streamlit_app.py",
        program: tuple[str, ...] = ("-m", "streamlit"),
    ) -> None:
        """Start it and wait until it answers.

        Args:
            home: its workspace; its output goes to ``server.log`` there.
            program: what Python runs.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        log = home / "server.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, "run", str(script), f"--server.port={self.port}"],
                cwd=REPO,
                env={**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1",
                     "PERSONA_HOME": str(home)},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2):
                    return
            except OSError:
                died = self.process.poll() is not None
                assert not died and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """As a crash does: no chance to clean up."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
