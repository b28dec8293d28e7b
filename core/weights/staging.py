"""A folder that appears whole or not at all: written beside its place, renamed into it last."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core import fsio
from core.errors import UserError


def check_output(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place that exists, or that lies in an input or around one.

    Raises:
        UserError: naming the rule that is broken.
    """
    if out.is_symlink() or out.exists():
        raise UserError(
            f"{out} exists already",
            why="nothing that was written before is overwritten",
            fix="choose another folder, or remove this one",
        )
    target = out.resolve()
    for source in inputs:
        folder = source.resolve()
        if target.is_relative_to(folder) and folder.is_dir():
            raise UserError(
                f"{out} lies inside {source}",
                why="the inputs are left untouched",
                fix="choose a folder outside of it",
            )
        if folder.is_relative_to(target):
            raise UserError(
                f"{out} would replace the folder that holds {source}",
                fix="choose another folder",
            )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_abandoned(out: Path) -> None:
    """Partial folders of processes that were killed; those of living processes stay."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        match = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.partial", left.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def staged(out: Path, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``out`` if the block ends well, else it is removed.

    Every file in it is forced to the disk before the rename, so that a power cut leaves nothing
    or everything.

    Raises:
        UserError: ``check_output``'s reasons; the disk is full or cannot be written.
    """
    check_output(out, inputs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        partial = out.parent / f".{out.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise disk_error(out, error) from error
    try:
        yield partial
        for file in partial.rglob("*"):
            _fsync(file)
        _fsync(partial)
        os.rename(partial, out)
        _fsync(out.parent)
    except OSError as error:
        raise disk_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fsync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # folders cannot be synced elsewhere, and need not be
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(out: Path, error: OSError) -> UserError:
    """An OSError of writing ``out``, in words."""
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return UserError(
        f"cannot write {out}",
        why=f"{'the disk is full' if full else error.strerror or error}; "
        f"{fsio.human_bytes(fsio.free_bytes(out.parent))} free",
        fix="free disk space or choose another folder",
    )
