"""Feeds every parser of foreign files hostile inputs for a while: ``make fuzz``.

    python -m tests.fuzz [--seconds 600] [--only NAME ...]

Each parser gets the seconds; other inputs each time. Prints a line a parser: how many inputs it
was given, in how many seconds, how many of them on a processor (children too: a loaded machine
gives less than the clock says), and the smallest one that it failed on, if any. Exits with 1 if
there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.feeding import feed
from tests.fuzz.parsers import PARSERS


def _busy() -> float:
    """Seconds of processor time of this process and of the children that have ended."""
    return sum(os.times()[:4])


def main() -> int:
    """Feed one after the other."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600.0, help="for each parser")
    arguments.add_argument("--only", nargs="*", default=list(PARSERS), choices=list(PARSERS))
    args = arguments.parse_args()
    batch = settings(
        max_examples=200, deadline=None, database=None, derandomize=False, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    failed = []
    for name in args.only:
        start, busy, count = time.monotonic(), _busy(), 0
        try:
            while time.monotonic() - start < args.seconds:
                count += feed(PARSERS[name], batch)
            took = f"{time.monotonic() - start:5.0f} s {_busy() - busy:5.0f} s of processor"
            print(f"held    {name:24} {count:7,} inputs {took}", flush=True)
        except Exception as error:  # hypothesis has shrunk it by now
            failed.append(name)
            print(f"FAILED  {name:24} {type(error).__name__}: {error}", flush=True)
            traceback.print_exception(error, limit=-6, file=sys.stdout)
            print("\n".join(getattr(error, "__notes__", [])), flush=True)
    print(f"{len(args.only) - len(failed)} of {len(args.only)} parsers held")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
