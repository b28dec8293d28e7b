"""Killed at every write, or with the disk full: nothing, or a complete verified folder."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.weights import manifest
from core.weights.convert import convert
from core.weights.export import export_gguf, export_ollama
from core.weights.merge import merge
from tests.fakes import tiny_models as tiny

#: Every way in which merge, convert and export touch the disk.
_CALLS = ("write", "fsync", "fdatasync", "rename", "replace", "mkdir", "open")


def _hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _in_child(work: Callable[[], Any], at: int, act: Callable[[], None]) -> tuple[int, int]:
    """Run ``work`` in a fork; at the ``at``-th call that touches the disk, call ``act``.

    Returns (wait status, number of calls seen if it came to the end).
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        return os.waitpid(pid, 0)[1], int(text or 0)
    count = 0
    real = {name: getattr(os, name) for name in _CALLS}
    copy = shutil.copyfile

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                act()
            return function(*args, **kwargs)

        return call

    try:
        for name, function in real.items():
            setattr(os, name, counted(function))
        shutil.copyfile = counted(copy)  # type: ignore[assignment]
        work()
        real["write"](writer, str(count).encode())
    except BaseException:
        os._exit(3)
    os._exit(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Any, Path]:
    """Base and adapter; torch and what merge imports are loaded before the forks."""
    folder = tmp_path_factory.mktemp("inputs")
    base = tiny.save_base(folder / "base", tied=False)
    peft = tiny.save_adapter(base.path, folder / "adapter", target_modules=["q_proj"])
    tiny.save_checkpoint(peft, folder / "run" / "iter_3.pth")
    tiny.save_config(folder / "run" / "config.py", base.path)
    merge(base, folder / "adapter", folder / "warm-up")
    # Exports need a tokenizer that fits the vocabulary.
    whole = tiny.ref_of(tiny_llama)
    tiny.save_adapter(whole.path, folder / "second", target_modules=["q_proj"])
    merge(whole, folder / "second", folder / "merged")
    return base, folder


WORK: dict[str, Callable[[Any, Path, Path], Any]] = {
    "merge": lambda base, folder, out: merge(base, folder / "adapter", out, max_shard_size="200KB"),
    "convert": lambda base, folder, out: convert(
        folder / "run" / "iter_3.pth", folder / "run" / "config.py", out
    ),
    "ollama": lambda base, folder, out: export_ollama(folder / "merged", out),
    "gguf": lambda base, folder, out: export_gguf(folder / "merged", out),
}


@pytest.mark.parametrize("act", [_kill, _disk_full], ids=["killed", "disk-full"])
@pytest.mark.parametrize("name", WORK)
def test_at_every_write(
    inputs: tuple[Any, Path], tmp_path: Path, name: str, act: Callable[[], None]
) -> None:
    base, folder = inputs
    before = _hashes(folder)
    status, calls = _in_child(lambda: WORK[name](base, folder, tmp_path / "clean"), 0, act)
    assert status == 0 and calls >= 4
    manifest.verify(tmp_path / "clean")
    for at in range(1, calls + 1):
        out = tmp_path / f"out-{at}"
        _in_child(lambda out=out: WORK[name](base, folder, out), at, act)  # type: ignore[misc]
        if out.exists():
            manifest.verify(out)
            shutil.rmtree(out)
        elif at % 8 == 0:  # and it can be done again beside what was left
            WORK[name](base, folder, out)
            manifest.verify(out)
            assert not list(tmp_path.glob(f".{out.name}.*.partial")), "left over after a rerun"
            shutil.rmtree(out)
    assert _hashes(folder) == before


def test_a_file_size_limit_is_reported_and_leaves_nothing(
    inputs: tuple[Any, Path], tmp_path: Path
) -> None:
    base, folder = inputs
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="disk is full"):
            merge(base, folder / "adapter", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [tmp_path / "workspace"]


def test_no_room_is_said_before_anything_is_written(
    inputs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core import fsio

    base, folder = inputs
    monkeypatch.setattr(fsio, "free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match="not enough disk space"):
        merge(base, folder / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "workspace"]


def test_partial_folder_of_a_living_process_stays(inputs: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = inputs
    other = tmp_path / f".out.{os.getppid()}.partial"
    other.mkdir()
    merge(base, folder / "adapter", tmp_path / "out")
    assert other.is_dir()
