"""Why a job ended badly: one reason from its exit status, its own account, and its last lines."""

from __future__ import annotations

import re
import signal
from typing import Any

from core.jobs.state import Reason

#: First match wins, so the specific comes before the general. Matched against the error message
#: and the end of the log.
_PATTERNS: tuple[tuple[str, Reason], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        Reason.OOM_GPU,
    ),
    (r"No space left on device|ENOSPC|Disk quota exceeded|File too large", Reason.DISK_FULL),
    (
        r"Found no NVIDIA driver|No CUDA GPUs are available|Torch not compiled with CUDA"
        r"|CUDA driver version is insufficient|no CUDA-capable device",
        Reason.NO_GPU,
    ),
    (
        r"\bMemoryError\b|DefaultCPUAllocator: (?:can't|not enough)|Cannot allocate memory",
        Reason.OOM_HOST,
    ),
    (r"ModuleNotFoundError|ImportError|undefined symbol", Reason.IMPORT_ERROR),
    (r"(?:loss|Loss) is (?:nan|NaN|not a number)|non-finite loss", Reason.NAN_LOSS),
    # Not the machine's fault and not a crash of ours: what was asked for cannot be had.
    (
        r"GatedRepoError|401 Client Error|RepositoryNotFoundError|LocalEntryNotFoundError"
        r"|OfflineModeIsEnabled|outgoing traffic has been disabled",
        Reason.BAD_CONFIG,
    ),
    (r"Address already in use|EADDRINUSE", Reason.BAD_CONFIG),
    (
        r"ConfigParsingError|SyntaxError|is not in the .* registry|KeyError: .*registry",
        Reason.BAD_CONFIG,
    ),
    (r"JSONDecodeError|UnicodeDecodeError|DatasetGenerationError|ArrowInvalid", Reason.BAD_DATA),
)

#: Reason -> (why, fix), for anyone who only has the reason. ``core.training.faults`` knows more.
EXPLAINED: dict[Reason, tuple[str, str]] = {
    Reason.COMPLETED: ("the job finished and its result was checked", ""),
    Reason.USER_STOP: ("somebody asked it to stop", "start a new run, or resume this one"),
    Reason.OOM_GPU: (
        "the GPU ran out of memory",
        "lower the maximum length or the batch size, or load the base in 4 bits",
    ),
    Reason.OOM_HOST: (
        "the machine probably ran out of memory: the system killed the process",
        "close other programs, or lower the batch size or the maximum length",
    ),
    Reason.DISK_FULL: ("the disk is full", "free disk space, or keep fewer checkpoints"),
    Reason.BAD_DATA: ("the dataset cannot be read", "check it on the Dataset page"),
    Reason.BAD_CONFIG: (
        "the run asks for something that cannot be had",
        "read the message, change the setting it names, start a new run",
    ),
    Reason.IMPORT_ERROR: (
        "a library is missing or of the wrong version",
        "install the pinned requirements again: make setup",
    ),
    Reason.NAN_LOSS: ("the loss is not a number any more", "lower the learning rate"),
    Reason.INCOMPLETE: (
        "it ended before its result was there",
        "read the log; resume from the newest checkpoint if there is one",
    ),
    Reason.KILLED_SIGNAL: (
        "another program or the system ended the process",
        "start it again; resume from the newest checkpoint if there is one",
    ),
    Reason.LOST: (
        "the supervising process is gone, after a crash or a restart of the machine",
        "resume from the newest checkpoint if there is one",
    ),
    Reason.NO_GPU: ("no usable GPU was found", "turn DeepSpeed and multi-GPU off, or use 'cpu'"),
}


def classify(returncode: int, error: dict[str, Any] | None, log_tail: str) -> Reason:
    """The reason for an exit that nobody asked for and that is not a checked success.

    Args:
        returncode: as subprocess gives it, negative for a signal.
        error: ``error.json``, if the child could still write it.
        log_tail: the end of ``log.txt``.
    """
    if error is not None and error.get("reason") in set(Reason):
        return Reason(error["reason"])
    for text in (_message(error), log_tail[-8000:]):
        for pattern, reason in _PATTERNS:
            if text and re.search(pattern, text):
                return reason
    if returncode == -signal.SIGKILL:
        return Reason.OOM_HOST  # nobody asked for it, so most likely the kernel's OOM killer
    if returncode < 0:
        return Reason.KILLED_SIGNAL
    if error is not None and error.get("kind") == "user":
        return Reason.BAD_CONFIG
    return Reason.INCOMPLETE


def _message(error: dict[str, Any] | None) -> str:
    if error is None:
        return ""
    parts = [str(error.get(key, "")) for key in ("what", "why")]
    return " ".join(parts + [_message(problem) for problem in error.get("problems", [])])


def explain_exit(
    returncode: int, reason: Reason, error: dict[str, Any] | None, log_tail: str
) -> dict[str, Any]:
    """The error shown for a failed run: the job's own words if it had any."""
    if error is not None and error.get("kind") == "user":
        return error
    why, fix = EXPLAINED[reason]
    last = next((row for row in reversed(log_tail.splitlines()) if row.strip()), "")
    what = (error or {}).get("what") or last[:500]
    if returncode < 0:
        how = f"the job was killed by {signal.Signals(-returncode).name}"
    elif returncode == 0:
        how = "the job ended without an error but left no result"
    else:
        how = f"the job ended with status {returncode}"
    return {
        "schema": 1,
        "kind": "crash",
        "what": f"{how}: {what}" if what else how,
        "why": why,
        "fix": fix,
        "where": "",
        "problems": [],
    }


def given_up(reason: Reason) -> dict[str, Any]:
    """The error of a run that the supervisor ended itself."""
    why, fix = EXPLAINED[reason]
    return {
        "schema": 1,
        "kind": "crash",
        "what": "the run was ended by its supervisor",
        "why": why,
        "fix": fix,
        "where": "",
        "problems": [],
    }
