"""A file of somebody else as UTF-8: unpacked, its encoding found, refused if it is no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import tempfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, cast

from core.errors import UserError
from core.fsio import human_bytes

#: What the Dataset page accepts (the server's upload limit is the same).
MAX_UPLOAD_BYTES = 50 * 10**6
#: What a packed file may unpack to where the caller sets no limit.
_MAX_UNPACKED = 20 * 10**9
_BLOCK = 1 << 20
_PACKED: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
_REFUSED = {
    b"PK": ("a zip archive or an Office file", "unpack it; save a spreadsheet as CSV (UTF-8)"),
    b"\xd0\xcf\x11\xe0": ("an old Office file", "save it as CSV (UTF-8)"),
    b"PAR1": ("a Parquet file", "save it as JSON Lines: pandas.read_parquet(...).to_json(...)"),
    b"ARROW1": ("an Arrow file", "save it as JSON Lines: datasets' to_json(...)"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "save it as JSON Lines: datasets' to_json(...)"),
    b"SQLite": ("a database", "export the table as CSV"),
    b"%PDF": ("a PDF", "copy the conversations into a table with question and answer"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"version https://git-lfs": ("a pointer of git-lfs, not the file", "run git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself ('raw' or 'resolve' in its address)"),
    b"<html": ("a web page", "download the file itself ('raw' or 'resolve' in its address)"),
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HIGH = re.compile(rb"[\x80-\xff]")
#: Letters with accents of a Western file stand alone between plain ones.
_ALONE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
#: Two bytes of GB 2312, which holds nearly all of simplified Chinese.
_GB_PAIR = re.compile(rb"[\xa1-\xf7][\xa1-\xfe]")
_PRIVATE = re.compile("[\ue000-\uf8ff\x80-\x84\x86-\x9f]")
_KANA = re.compile("[\u3040-\u30ff]")


def open_utf8(
    file: BinaryIO, name: str, max_bytes: int | None, *, table: bool
) -> tuple[BinaryIO, str]:
    """The content as UTF-8 without a byte order mark, and the encoding that it was found in.

    Args:
        table: a spreadsheet's file, which may be in a Western code page; JSON may not.

    Raises:
        UserError: too large, or no text at all.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if max_bytes is not None and size > max_bytes:
        raise _too_large(name, size, max_bytes)
    head = file.read(32)
    file.seek(0)
    for magic, opener in _PACKED.items():
        if head.startswith(magic):
            file = _unpacked(opener(file), name, max_bytes)
            head = file.read(32)
            file.seek(0)
    for magic, (what, fix) in _REFUSED.items():
        if head.startswith(magic):
            raise UserError(f"{name} is {what}", why="JSON, CSV and TSV are read", fix=fix)
    return _as_utf8(file, head, table)


def _too_large(name: str, size: int, limit: int) -> UserError:
    return UserError(
        f"{name} is too large",
        why=f"{human_bytes(size)}; the limit is {human_bytes(limit)}",
        fix="split the file, or use `python -m core dataset import`, which has no limit",
    )


def _unpacked(packed: BinaryIO, name: str, max_bytes: int | None) -> BinaryIO:
    out = tempfile.SpooledTemporaryFile(max_size=MAX_UPLOAD_BYTES)  # noqa: SIM115 (returned)
    limit = max_bytes or _MAX_UNPACKED
    try:
        while block := packed.read(_BLOCK):
            out.write(block)
            if out.tell() > limit:
                raise _too_large(f"{name}, unpacked,", out.tell(), limit)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{name} is a packed file that cannot be unpacked",
            why=str(error),
            fix="download it again, or unpack it (gzip -d) to see what is wrong",
        ) from error
    out.seek(0)
    return cast(BinaryIO, out)


def _as_utf8(file: BinaryIO, head: bytes, table: bool) -> tuple[BinaryIO, str]:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            if encoding == "utf-8":
                file.seek(len(mark))
                return file, encoding
            return _transcoded(file, encoding), encoding
    encoding = _guess(file.read(4 * _BLOCK), table)
    file.seek(0)
    return (file, encoding) if encoding == "utf-8" else (_transcoded(file, encoding), encoding)


def _guess(sample: bytes, table: bool) -> str:
    """``utf-8`` unless most of what is not ASCII is something else.

    One damaged character does not make a UTF-8 file another one: its row is reported.
    """
    empty = [sample[start::2].count(0) for start in (0, 1)]
    if 4 * max(empty) > len(sample):  # UTF-16 without a mark: every other byte of ASCII is zero
        return "utf-16-be" if empty[0] > empty[1] else "utf-16-le"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    text = sample.decode("utf-8", "replace")
    if text.count("\ufffd") <= sum(c > "\x7f" and c != "\ufffd" for c in text):
        return "utf-8"
    high = len(_HIGH.findall(sample))
    if 2 * len(_ALONE.findall(sample)) >= high:
        return "cp1252" if table else "utf-8"
    if 2 * len(_GB_PAIR.findall(sample)) >= 0.9 * high and _decoded(sample, "gb18030"):
        return "gb18030"
    if _KANA.search(_decoded(sample, "cp932")):
        return "cp932"
    if _decoded(sample, "big5"):
        return "big5"
    if not table:
        return "utf-8"
    raise UserError(
        "the encoding of the table is not known",
        why="UTF-8, UTF-16, GB 18030, Big5, Shift JIS and Windows-1252 are read",
        fix="save it as CSV (UTF-8)",
    )


def _decoded(sample: bytes, encoding: str) -> str:
    """The text, or "" if the bytes are no text in this encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return ""
    return "" if _PRIVATE.search(text) else text


def _transcoded(file: BinaryIO, encoding: str) -> BinaryIO:
    out = tempfile.SpooledTemporaryFile(max_size=MAX_UPLOAD_BYTES)  # noqa: SIM115 (returned)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while block := file.read(_BLOCK):
        out.write(decoder.decode(block).encode("utf-8", "replace"))
    out.write(decoder.decode(b"", final=True).encode())
    out.seek(0)
    return cast(BinaryIO, out)
