"""Kill, or run out of disk, at every call that touches the disk.

    python -m tests.fakes.write_faults INPUTS OUT [WORK ...]

A process of its own that imports everything, starts no thread, and forks once a trial: forking a
test process that has run torch or tokenizers can hang on a lock that some thread held. Prints one
JSON object: ``"merge killed": {"calls": 31, "bad": [...]}``.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.weights import manifest
from core.weights.convert import convert
from core.weights.export import export_gguf, export_ollama
from core.weights.merge import MergeSettings, merge
from tests.fakes import tiny_models as tiny
from tests.fakes import warm  # noqa: F401  nine of the ten seconds of a trial without it

#: Every way in which merge, convert and export touch the disk from Python; ``open`` to write.
CALLS = ("write", "fsync", "fdatasync", "rename", "replace", "mkdir", "open")
#: A trial takes a second; one that takes this long has hung.
PATIENCE = 100

WORK: dict[str, Callable[[Path, Path], Any]] = {
    "merge": lambda inputs, out: merge(
        tiny.ref_of(inputs / "base"), inputs / "adapter", out, MergeSettings(max_shard_size="250KB")
    ),
    "convert": lambda inputs, out: convert(
        inputs / "run" / "iter_3.pth", inputs / "run" / "config.py", out
    ),
    "gguf": lambda inputs, out: export_gguf(inputs / "merged", out),
    "ollama": lambda inputs, out: export_ollama(inputs / "merged", out),
}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


ACTS = {"killed": _kill, "disk-full": _disk_full}


def _child(work: Callable[[], Any], at: int, act: Callable[[], None], report: int) -> None:
    """Never returns: 0 done, 3 a UserError, 4 anything else; writes the number of calls."""
    signal.alarm(PATIENCE)
    count = 0
    write, opens, waits = os.write, os.open, (os.fsync, os.fdatasync)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if function is opens and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return function(*args, **kwargs)
            count += 1
            if count == at:
                act()
            # A killed process leaves the page cache as it is, so waiting for the disk at each of
            # thousands of syncs would test nothing and take minutes.
            return None if function in waits else function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    shutil.copyfile = counted(shutil.copyfile)
    status = 0
    try:
        work()
    except UserError:
        status = 3
    except BaseException:
        traceback.print_exc()
        status = 4
    write(report, str(count).encode())
    os._exit(status)


def trial(work: Callable[[], Any], at: int, act: Callable[[], None]) -> tuple[int, int]:
    """(exit status, or minus the signal; number of calls)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, at, act, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(text or 0)


def _judge(name: str, act: str, inputs: Path, folder: Path) -> dict[str, Any]:
    """All trials of one piece of work and one fault."""
    bad = []

    def do(out: Path) -> Callable[[], Any]:
        return lambda: WORK[name](inputs, out)

    clean = folder / f"{name}-{act}"
    status, calls = trial(do(clean), 0, _kill)
    if status:
        return {"calls": calls, "bad": [f"without a fault: status {status}"]}
    manifest.verify(clean)
    shutil.rmtree(clean)
    for at in range(1, calls + 1):
        out = folder / f"{name}-{act}-{at}"
        status, _ = trial(do(out), at, ACTS[act])
        if status not in (-signal.SIGKILL, 0, 3):
            bad.append(f"call {at}: status {status}")
        if out.exists():
            try:
                manifest.verify(out)
            except UserError as error:
                bad.append(f"call {at}: {error}")
            shutil.rmtree(out)
        elif at % 8 == 1:
            # It can be done again, and clears what was left.
            status, _ = trial(do(out), 0, _kill)
            left = list(folder.glob(f".{out.name}.*.partial"))
            if status or left:
                bad.append(f"again after call {at}: status {status}, left {left}")
            shutil.rmtree(out, ignore_errors=True)
    return {"calls": calls, "bad": bad}


def main() -> None:
    """The pieces of work that were named (default: all) under every fault."""
    inputs, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir()
    found = {}
    for name in sys.argv[3:] or WORK:
        for act in ACTS:
            start = time.monotonic()
            found[f"{name} {act}"] = _judge(name, act, inputs, folder)
            took = time.monotonic() - start
            print(f"{name} {act}: {took:.0f} s", file=sys.stderr, flush=True)
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
