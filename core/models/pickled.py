"""How large what a pickle builds would be, told from its operations before anything is built.

A reader that runs no code still builds what the pickle says, and a hundred bytes can say: a pair of
pairs of pairs, sixty deep, as the key of a dictionary. Its hash takes centuries, inside one call
that nothing interrupts. So whoever is about to unpickle a file of others asks here first.
"""

from __future__ import annotations

import io
import os
import pickletools
import sys
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from core import fsio
from core.errors import UserError

#: Values with all that they hold, shared ones counted each time. A checkpoint has some 10,000.
MOST_VALUES = 50_000_000
#: Slots of the table of shared values: a reader makes room for as many as are named.
MOST_SHARED = 1 << 24
#: Keys of dictionaries and members of sets that are no texts, and values handed to what makes an
#: object. Texts are hashed with a secret; numbers and tuples can be chosen so that all hashes are
#: equal, and then a table of 60,000 takes minutes, one of a million days. An optimizer's state has
#: a number for each parameter.
MOST_HASHED = 10_000
#: A pickle larger than this describes no training run; the tensors lie outside of it.
MOST_BYTES = 256_000_000
#: Before zip archives, ``torch.save`` wrote this many pickles, and the tensors behind them.
_OLD_PICKLES = 5

_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
#: These put what lies above into the value below it, which stays.
_GROWS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
#: These call what they find below, with what lies above.
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"}
_TEXTS |= {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}


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
        # torch compresses nothing and writes nothing twice.
        if (unpacked := sum(entry.file_size for entry in archive.infolist())) > os.fstat(
            file.fileno()
        ).st_size:
            raise _TooLarge(f"{unpacked:,} bytes out of fewer")
        for entry in archive.infolist():
            if not entry.filename.lower().endswith(".pkl"):  # as torch looks a name up
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
    stack: list[_Value | None] = []  # None: a mark
    memo: dict[Any, _Value | None] = {}
    hashed = 0
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
            hashed += _replace(stack, operation)
            if hashed > MOST_HASHED:
                raise _TooLarge(f"more than {MOST_HASHED:,} keys that are no texts")


@dataclass
class _Value:
    """``size``: values with all that it holds; ``text``: it is one."""

    size: int
    text: bool = False


def _replace(stack: list[_Value | None], operation: pickletools.OpcodeInfo) -> int:
    """Take what an operation takes off the stack, and put on what it makes of it.

    Returns:
        How many values without a secret in their hash it may put into a table.
    """
    below = [kind.name for kind in operation.stack_before]
    taken: list[_Value] = []
    if "mark" in below:
        while (top := stack.pop()) is not None:
            taken.append(top)
        below = below[: below.index("mark")]
    for _ in below:
        top = stack.pop()
        assert top is not None
        taken.append(top)
    inside = sum(value.size for value in taken)
    if operation.name in _GROWS:
        made = taken.pop()
        made.size = inside
    else:
        made = _Value(1 + inside, operation.name in _TEXTS)
    if made.size > MOST_VALUES:
        raise _TooLarge(f"more than {MOST_VALUES:,} values")
    if operation.stack_after:
        stack.append(made)
    if operation.name in _CALLS:
        return inside if inside > MOST_HASHED else 0
    if operation.name in ("SETITEM", "SETITEMS"):
        return sum(not key.text for key in taken[1::2])  # from the top: value, key, value, key
    return len(taken) if operation.name in ("ADDITEMS", "FROZENSET") else 0
