"""An ``AppTest`` puts its script in the place of the main module (see tests/conftest.py)."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

from streamlit.testing.v1 import AppTest

_MAIN = sys.modules["__main__"]


def test_a_new_process_does_not_run_the_script(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    AppTest.from_string(f"open({str(runs)!r}, 'a').write('once')").run()
    assert sys.modules["__main__"] is not _MAIN
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    assert runs.read_text() == "once"


def test_the_main_module_is_back() -> None:
    assert sys.modules["__main__"] is _MAIN
