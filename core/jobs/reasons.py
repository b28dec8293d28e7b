"""Why a job ended badly: one reason from its exit status, its own account, and its last lines.

What log lines mean is known in one place, ``core.training.faults``; it imports nothing heavy.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from core.jobs.state import Reason
from core.training import faults


def diagnose(
    returncode: int, error: dict[str, Any] | None, log_tail: str, params: Mapping[str, Any] | None
) -> faults.Fault:
    """The fault behind an exit that nobody asked for and that is not a checked success.

    Args:
        returncode: as subprocess gives it, negative for a signal.
        error: ``error.json``, if the child could still write it.
        log_tail: the end of ``log.txt``.
        params: the run's TrainSpec, if it is a training run.
    """
    fault = faults.diagnose(f"{log_tail}\n{_message(error)}", returncode=returncode, params=params)
    if error is None or fault.reason != Reason.INCOMPLETE:
        return fault
    if error.get("reason") in set(Reason):
        return faults.Fault(error["reason"], fault.cause, fault.fixes, fault.line)
    if error.get("kind") == "user" and returncode > 0:
        # Nothing known went wrong: what was asked for cannot be had, and the message says why.
        return faults.Fault(Reason.BAD_CONFIG, fault.cause, fault.fixes, fault.line)
    return fault


def _message(error: dict[str, Any] | None) -> str:
    if error is None:
        return ""
    parts = [str(error.get(key, "")) for key in ("what", "why")]
    return " ".join(parts + [_message(problem) for problem in error.get("problems", [])])


def account(
    returncode: int, fault: faults.Fault, error: dict[str, Any] | None, log_tail: str
) -> dict[str, Any]:
    """The error shown for a failed run: the job's own words if it had any."""
    if error is not None and error.get("kind") == "user":
        return error
    if returncode < 0:
        how = f"the job was killed by {signal.Signals(-returncode).name}"
    elif returncode == 0:
        how = "the job ended without an error but left no result"
    else:
        how = f"the job ended with status {returncode}"
    last = next((row for row in reversed(log_tail.splitlines()) if row.strip()), "")
    what = fault.line or (error or {}).get("what") or last[:400]
    return _crash(f"{how}: {what}" if what else how, fault)


def given_up(reason: Reason, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The error of a run that the supervisor ended itself, over a loss that is no number."""
    assert reason is Reason.NAN_LOSS, reason
    return _crash(
        "the run was ended by its supervisor",
        faults.diagnose("the loss is not a number", params=params),
    )


def _crash(what: str, fault: faults.Fault) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "crash",
        "what": what,
        "why": fault.cause,
        "fix": "; or ".join(fix.label for fix in fault.fixes),
        "where": "",
        "problems": [],
    }
