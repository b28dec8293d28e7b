"""Why a job ended badly: one reason from its exit status, its own account, and its last lines.

The rules below hold for every job. A kind may have a table of its own (``Kind.faults``), with more
rules and with fixes that fit its settings; it is imported when a run of that kind has failed.
"""

from __future__ import annotations

import importlib
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import ErrorRecord, UserError
from core.jobs.kinds import kind_of
from core.jobs.spec import RunSpec
from core.jobs.state import Reason
from core.paths import RunPaths

#: How much of a log is looked at, from its end.
TAIL = 64_000


@dataclass(frozen=True)
class Fix:
    """Something to try. ``overrides``: settings of a new run that has it; empty: by hand."""

    label: str
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """``line``: what gave it away in the log, else its end. ``cause``: empty if the job told."""

    reason: Reason
    cause: str
    fixes: tuple[Fix, ...]
    line: str = ""


@dataclass(frozen=True)
class Rule:
    """A pattern of log lines and what it means."""

    reason: Reason
    pattern: re.Pattern[str]
    cause: str
    fixes: tuple[Fix, ...]


@dataclass(frozen=True)
class Table:
    """What is known of the failures of one kind of job.

    Attributes:
        rules: the first that matches wins, so the specific come before the general.
        memory: what to try when the system killed the job, most likely for want of memory.
        again: what to try after an end that explains nothing.
    """

    rules: tuple[Rule, ...]
    memory: tuple[Fix, ...]
    again: tuple[Fix, ...]


def by_hand(*labels: str) -> tuple[Fix, ...]:
    """Fixes that a person has to carry out."""
    return tuple(map(Fix, labels))


def rule(reason: Reason, pattern: str, cause: str, *fixes: str | Fix) -> Rule:
    """A rule whose pattern ignores case."""
    made = tuple(Fix(fix) if isinstance(fix, str) else fix for fix in fixes)
    return Rule(reason, re.compile(pattern, re.IGNORECASE), cause, made)


OOM_GPU = rule(
    Reason.OOM_GPU,
    r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory",
    "The GPU ran out of memory.",
    "unload the chat model: it may hold GPU memory",
    "a smaller base model",
)
OOM_HOST = rule(
    Reason.OOM_HOST,
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|MemoryError"
    r"|Cannot allocate memory|std::bad_alloc",
    "The machine ran out of memory.",
    "close other programs and start again",
    "a smaller base model",
)
DISK_FULL = rule(
    Reason.DISK_FULL,
    # torch.save to a path says only where its archive broke off (2.14).
    r"No space left on device|Disk quota exceeded|ENOSPC|File too large"
    r"|inline_container\.cc:\d+\] \. unexpected pos|PytorchStreamWriter failed writing"
    r"|not enough disk space|cannot write .*bytes needed",
    "The disk is full.",
    "free disk space: delete old runs in the list, then start again",
    "move the workspace: set PERSONA_HOME to a folder on a larger disk",
)
NO_GPU = rule(
    Reason.NO_GPU,
    r"Found no NVIDIA driver|No CUDA GPUs are available|Torch not compiled with CUDA"
    r"|CUDA driver version is insufficient|invalid device ordinal|no kernel image is available",
    "The run needs a GPU that torch does not see.",
    "check that nvidia-smi lists the GPU, and that torch was installed with CUDA",
    "run on a machine with a GPU",
)
HUB_LOGIN = rule(
    Reason.IMPORT_ERROR,
    r"GatedRepoError|401 Client Error|403 Client Error|gated repo",
    "The model hub asks for a login, or for its licence to be accepted.",
    "accept the licence on the model's page",
    "log in: hf auth login",
    "download the model elsewhere and give its folder",
)
OFFLINE = rule(
    Reason.IMPORT_ERROR,
    r"OfflineModeIsEnabled|LocalEntryNotFoundError|couldn't connect to .*huggingface"
    r"|Failed to resolve|Name or service not known",
    "A file of the model had to come from the network, and it could not.",
    "choose the bundled model or a local folder",
    "check the network and start again",
    "unset HF_HUB_OFFLINE if you want the download",
)
NO_MODEL = rule(
    Reason.BAD_CONFIG,
    r"Can't load the (configuration|model|tokenizer)|does not appear to have a file named"
    r"|is not a local folder and is not a valid model identifier",
    "The base model cannot be loaded.",
    "choose the model again: its folder moved or is not whole",
    "choose the bundled model",
    "complete the model's download",
)
NO_LIBRARY = rule(
    Reason.IMPORT_ERROR,
    r"ModuleNotFoundError|ImportError|cannot import name",
    "A library is missing, or has a version that does not fit.",
    "install again: make run, or pip install -r requirements.txt",
    "look at the last ImportError line for the library's name",
    "use a fresh virtual environment",
)
COMMON = Table(
    (OOM_GPU, OOM_HOST, DISK_FULL, NO_GPU, HUB_LOGIN, OFFLINE, NO_MODEL, NO_LIBRARY),
    memory=OOM_HOST.fixes,
    again=by_hand("read the end of the log", "start again"),
)


def table_of(spec: RunSpec, run: RunPaths) -> Table:
    """The rules for a run: those of its kind, with fixes that fit its settings."""
    faults = kind_of(spec.kind).faults
    if not faults:
        return COMMON
    module, function = faults.split(":")
    made: Table = getattr(importlib.import_module(module), function)(spec.params, run)
    return made


def diagnose(
    table: Table,
    text: str,
    *,
    returncode: int | None = None,
    error: Mapping[str, Any] | None = None,
) -> Fault:
    """The fault behind an exit that nobody asked for and that is not a checked success.

    Args:
        text: the log, or its tail.
        returncode: as subprocess gives it, negative for a signal; None if it is not known.
        error: ``error.json``, if the child could still write it.
    """
    tail = f"{text}\n{UserError.from_dict(error) if error else ''}"[-TAIL:]
    for known in table.rules:
        for match in [*known.pattern.finditer(tail)][-1:]:  # the last is the exception itself
            line = tail[tail.rfind("\n", 0, match.start()) + 1 :].split("\n", 1)[0]
            return Fault(known.reason, known.cause, known.fixes[:3], line.strip()[:400])
    if words_of(error):
        # Nothing known went wrong: what was asked for cannot be had, and the message says why.
        return Fault(Reason.BAD_CONFIG, "", ())
    last = next((row for row in reversed(text.splitlines()) if row.strip()), "").strip()[:400]
    if returncode == -signal.SIGKILL:
        # The kernel's own log is not readable by a plain user, so this is a likelihood.
        why = "The system killed the process: most likely memory ran out."
        return Fault(Reason.OOM_HOST, why, table.memory[:3], last)
    if returncode is not None and returncode < 0:
        sender = Fix("see who sent the signal: a logout, a scheduler, another program")
        why = f"The process was ended by signal {-returncode}."
        return Fault(Reason.KILLED_SIGNAL, why, (*table.again, sender)[-3:], last)
    why = "The process ended without saying why."
    return Fault(Reason.INCOMPLETE, why, table.again[:3], last)


def account(returncode: int, fault: Fault, error: Mapping[str, Any] | None) -> ErrorRecord:
    """The error shown for a failed run: the job's own words if it had any.

    Args:
        error: ``error.json``, if the child could still write it.
    """
    if told := words_of(error):
        return told.to_dict()
    if returncode < 0:
        how = f"the job was killed by {_signal_name(-returncode)}"
    elif returncode == 0:
        how = "the job ended without an error but left no result"
    else:
        how = f"the job ended with status {returncode}"
    what = fault.line or (error or {}).get("what")
    return _crash(f"{how}: {what}" if what else how, fault)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def words_of(error: Mapping[str, Any] | None) -> UserError | None:
    """The UserError that a job ended with; None after a crash."""
    return UserError.from_dict(error) if error and error.get("kind") == "user" else None


def given_up(reason: Reason, table: Table) -> ErrorRecord:
    """The error of a run that the supervisor ended itself, over a loss that is no number."""
    assert reason is Reason.DIVERGED, reason
    return _crash(
        "the run was ended by its supervisor", diagnose(table, "the loss is not a number")
    )


def _crash(what: str, fault: Fault) -> ErrorRecord:
    fix = "; or ".join(fix.label for fix in fault.fixes)
    return UserError(what, fault.cause, fix).to_dict()
