"""How large what a pickle builds would be, told from its operations before anything is built.

A reader that runs no code still builds what the pickle says, and a hundred bytes can say: a pair of
pairs of pairs, sixty deep, as the key of a dictionary. Its hash takes centuries, inside one call
that nothing interrupts. So whoever is about to unpickle a file of others asks here first.
"""

from __future__ import annotations

import io
import pickletools
import sys
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from core import fsio
from core.errors import UserError

#: Values with all that they hold, shared ones counted each time. A checkpoint has some 10,000.
MOST_VALUES = 50_000_000
#: Slots of the table of shared values: a reader makes room for as many as are named.
MOST_SHARED = 1 << 24
#: A pickle larger than this describes no training run; the tensors lie outside of it.
MOST_BYTES = 256_000_000
#: Before zip archives, ``torch.save`` wrote this many pickles, and the tensors behind them.
_OLD_PICKLES = 5

_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
#: These put what lies above into the value below it, which stays.
_GROWS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


def require_small(path: Path) -> None:
    """Raise UserError if unpickling the file would take for ever, or fill the memory.

    What is no archive, or a damaged one, passes: who reads it says what is wrong with it.
    """
    try:
        with fsio.open_file(path) as file:
            if file.peek(4)[:4] == b"PK\3\4":  # as torch looks, whatever else the file may be
                _archive(file, path)
            else:
                for _ in range(_OLD_PICKLES):
                    _walk(file, sys.maxsize)  # only torch reads these, and keeps what it finds
    except _TooLarge as error:
        raise UserError(
            f"{path} is refused",
            why=f"it is a pickle that builds more than any training writes: {error}",
            fix="use weights or a checkpoint from a source that you trust",
        ) from error
    except UserError:
        raise
    except Exception:  # pickletools and zipfile raise nearly anything on a damaged file
        return


class _TooLarge(Exception):
    """What was found."""


def _archive(file: BufferedReader, path: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".pkl"):
                continue
            if entry.file_size > MOST_BYTES:
                raise _TooLarge(f"{entry.file_size:,} bytes of description")
            try:
                _walk(io.BytesIO(archive.read(entry)))
            except (ValueError, LookupError, TypeError, AssertionError) as error:
                # Not passed on: another reader might make more of it than we can follow.
                raise UserError(
                    f"{path} cannot be decoded",
                    why=f"{type(error).__name__}: {error}"[:300],
                    fix="use an earlier checkpoint, or fetch the file again",
                ) from error


def _walk(file: BinaryIO, shared: int = MOST_SHARED) -> None:
    """Follow the operations with the size of each value in its place.

    Args:
        shared: the largest number of a shared value.
    """
    stack: list[list[int] | None] = []  # None: a mark
    memo: dict[Any, list[int] | None] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in _PUT or name == "MEMOIZE":
            slot = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if slot > shared:
                raise _TooLarge(f"a shared value number {slot:,}")
            memo[slot] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name == "MARK":
            stack.append(None)
        else:
            _replace(stack, operation)


def _replace(stack: list[list[int] | None], operation: pickletools.OpcodeInfo) -> None:
    """Take what an operation takes off the stack, and put on what it makes of it."""
    below = [kind.name for kind in operation.stack_before]
    taken: list[list[int]] = []
    if "mark" in below:
        while (top := stack.pop()) is not None:
            taken.append(top)
        below = below[: below.index("mark")]
    for _ in below:
        top = stack.pop()
        assert top is not None
        taken.append(top)
    if operation.name in _GROWS:
        made = taken.pop()
        made[0] += sum(value[0] for value in taken)
    else:
        made = [1 + sum(value[0] for value in taken)]
    if made[0] > MOST_VALUES:
        raise _TooLarge(f"more than {MOST_VALUES:,} values")
    if operation.stack_after:
        stack.append(made)
