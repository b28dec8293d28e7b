"""Takes each protection out and shows that its test fails: ``python -m tests.protections``.

A test that passes without what it tests proves nothing. For each entry of ``cases.py`` the named
text is replaced in a copy of the source, and the test must fail there; before that it must pass as
things are. The table is kept in docs/results/protections.md: an entry that was seen honest there
and has not changed since is not tried again, so the command can be broken off and go on. Exits
with 1 if a protection has no honest test, or if its text is no longer in the source.

    python -m tests.protections [--only WORD ...] [--again] [--list]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.protections.cases import PROTECTIONS, Protection
from tests.protections.judge import Judge, count, timed
from tests.protections.table import Row, read_table, write_table


def _chosen(words: list[str]) -> list[Protection]:
    return [
        p
        for p in PROTECTIONS
        if not words or any(w in f"{p.case} {p.file} {p.test}" for w in words)
    ]


def _list(chosen: list[Protection]) -> int:
    wrong = 0
    for protection in chosen:
        stands = count(protection)
        wrong += stands != 1
        print(f"{'there' if stands == 1 else f'STALE: {stands} times'}  {protection.case}")
    return int(wrong > 0)


def main() -> int:
    """Judge, and write the table after each verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="words of the case, file or test")
    parser.add_argument("--again", action="store_true", help="also what was seen honest")
    parser.add_argument("--list", action="store_true", help="only look whether the texts are there")
    args = parser.parse_args()
    chosen = _chosen(args.only)
    if args.list:
        return _list(chosen)
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored in the background; children inherit it
        signal.signal(number, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="protections-") as name:
        judge = Judge(Path(name))
        for protection in chosen:
            known = read_table().get(protection.case)
            if known and known.is_of(protection) and known.verdict == "honest" and not args.again:
                continue
            verdict, seconds = timed(judge, protection)
            write_table(Row.of(protection, verdict))
            print(f"{verdict:12} {seconds:5.0f} s  {protection.case}", flush=True)
    table = read_table()
    return int(any(p.case not in table or table[p.case].verdict != "honest" for p in chosen))


if __name__ == "__main__":
    sys.exit(main())
