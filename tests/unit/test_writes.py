"""Case 11, writes that are whole or not there, and case 29, keys that reach no file of a run."""

from __future__ import annotations

import json
import os
import resource
import stat
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import fsio
from core.errors import UserError
from core.jobs import api, child, supervisor
from core.jobs.spec import read_spec
from core.jobs.state import Reason, State
from core.paths import RunPaths


@pytest.mark.parametrize("call", ["replace", "fsync", "fdopen"])
def test_11_a_write_that_breaks_off_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    fsio.write_json(path, {"old": True})

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        with pytest.raises(UserError, match="No space left"):
            fsio.write_json(path, {"new": "x" * 1000})
    assert fsio.read_json(path) == {"old": True}
    assert {p.name for p in tmp_path.iterdir()} == {"state.json", "workspace"}


def test_11_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A real limit of the kernel, in a process of its own: it cannot be lifted again."""
    path = tmp_path / "state.json"
    fsio.write_json(path, {"old": True})
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            fsio.write_json(path, {"new": "x" * 100_000})
        except UserError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert fsio.read_json(path) == {"old": True}
    assert {p.name for p in tmp_path.iterdir()} == {"state.json", "workspace"}


def test_11_the_end_of_a_run_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without exit.json a run reads as LOST, so a disk that is full for a moment is waited for."""
    run = api.create("train", {}, name="x")
    end = supervisor.Supervisor(run, read_spec(run))
    write, tries = fsio.write_json, []

    def full_twice(path: Path, value: Any) -> None:
        tries.append(path)
        if len(tries) <= 2:
            raise UserError("cannot write", why="No space left on device")
        write(path, value)

    monkeypatch.setattr(fsio, "write_json", full_twice)
    monkeypatch.setattr(supervisor.time, "sleep", lambda _seconds: None)
    end.finish(State.SUCCEEDED, Reason.COMPLETED)
    assert tries == [run.exit] * 3
    assert api.status(run).state is State.SUCCEEDED


def test_files_are_readable_as_others_are(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("x")
    fsio.write_json(ours, {})
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


KEY = "sk-canary-0123456789"


def _echoing_job(_params: Any, _run: RunPaths, _progress: Any) -> dict[str, Any]:
    """As a server does that quotes the key it refuses; libraries print what they meet."""
    print(f"POST with {KEY}")
    print(f"warning: {KEY}", file=sys.stderr)
    try:
        raise ConnectionError(f"401: Incorrect API key provided: {KEY}")
    except ConnectionError as error:
        raise UserError("the server refuses", why=str(error), fix=f"unset {KEY}") from error


def test_29_a_key_that_is_echoed_reaches_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    run = api.create("simulate", {"model": "endpoint:x"}, name="x")
    work = SimpleNamespace(Spec=SimpleNamespace(from_dict=dict), run=_echoing_job)
    monkeypatch.setattr(child, "kind_of", lambda _name: SimpleNamespace(work=work))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert child.main(["child", str(run.root)]) == 2
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, run.error.read_text()):
        assert "***" in text
        assert KEY not in text


class _Full:
    """A log on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None: ...


def test_11_last_words_on_a_full_disk_are_kept_in_error_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the log takes nothing, and a torn file was held open by the error's own frames."""
    run = api.create("simulate", {"model": "endpoint:x"}, name="x")
    torn: list[weakref.ref[Any]] = []

    def job(*_: Any) -> dict[str, Any]:
        held = run.root.joinpath("torn").open("wb")
        torn.append(weakref.ref(held))
        raise OSError(28, "No space left on device")

    def write(path: Path, value: Any) -> None:
        assert torn[0]() is None, "the torn file is open still"
        path.write_text(json.dumps(value))

    work = SimpleNamespace(Spec=SimpleNamespace(from_dict=dict), run=job)
    monkeypatch.setattr(child, "kind_of", lambda _name: SimpleNamespace(work=work))
    monkeypatch.setattr(fsio, "write_json", write)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", _Full())
    assert child.main(["child", str(run.root)]) == 1
    assert "No space left" in run.error.read_text()
