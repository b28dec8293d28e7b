"""Write a safetensors file tensor by tensor: header first, payload as it comes, hash on the way."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType

from core.weights.tensors import TensorRef, header_bytes

_CHUNK = 8 << 20
#: Unbuffered writes begin and end at multiples of this: the block of every common disk.
_BLOCK = 4096
#: Tensors that may be waiting or being written; this bounds the memory.
QUEUE = 2


class TensorWriter:
    """One output file. Tensors must come in the order of the header.

    One thread writes, one hashes beside it. Their errors are raised by the next call or by
    ``close``.

    Where the file system can, the page cache is passed by (O_DIRECT): copying a large model into
    it takes a third of the processor time of a merge (``benchmarks/merge.py --page-cache``), and
    pushes the base out of it.
    """

    def __init__(self, path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._slots = BoundedSemaphore(QUEUE)
        self._jobs: list[Future[None]] = []
        self._size = 0
        self._staged = 0
        self._stage = memoryview(mmap.mmap(-1, _CHUNK))  # begins at a page, as O_DIRECT wants
        self._fd, self._direct = _create(path)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tensor-writer")
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="tensor-hasher")
        self._submit(header_bytes(tensors))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a tensor's bytes; they must stay as they are until ``QUEUE`` later calls."""
        self._submit(data)

    def copy(self, ref: TensorRef) -> None:
        """Append a tensor unchanged, in pieces, from the file that holds it."""
        self._submit(ref)

    def _submit(self, item: bytes | bytearray | memoryview | TensorRef) -> None:
        self._raise_finished()
        self._slots.acquire()
        self._jobs.append(self._pool.submit(self._work, item))

    def _raise_finished(self) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.pop(0).result()

    def _work(self, item: bytes | bytearray | memoryview | TensorRef) -> None:
        try:
            if isinstance(item, TensorRef):
                for piece in item.pieces(_CHUNK):
                    self._put(piece)
            else:
                view = memoryview(item).cast("B")
                for start in range(0, len(view), _CHUNK):
                    self._put(view[start : start + _CHUNK])
        finally:
            self._slots.release()

    def _put(self, piece: memoryview) -> None:
        while len(piece):
            part = piece[: _CHUNK - self._staged]
            self._stage[self._staged : self._staged + len(part)] = part
            self._staged += len(part)
            piece = piece[len(part) :]
            if self._staged == _CHUNK:
                self._drain()

    def _drain(self) -> None:
        """Write and hash what is staged; the last time it need not be whole blocks."""
        data = self._stage[: self._staged]
        hashed = self._hasher.submit(self._digest.update, data)
        try:
            padded = -(-self._staged // _BLOCK) * _BLOCK if self._direct else self._staged
            self._write_all(self._stage[:padded])
        finally:
            hashed.result()
        self._size += self._staged
        self._staged = 0

    def _write_all(self, data: memoryview) -> None:
        while len(data):
            try:
                data = data[os.write(self._fd, data) :]
            except OSError as error:
                if not (self._direct and error.errno == errno.EINVAL):
                    raise
                # The file system took O_DIRECT and wants other blocks, or wrote part of one.
                self._direct = False
                _use_page_cache(self._fd)

    def close(self) -> str:
        """Wait for the disk; returns the file's sha256. Raises OSError of the writing thread."""
        try:
            for job in self._jobs:
                job.result()
            if self._staged:
                self._drain()
                os.ftruncate(self._fd, self._size)  # off with the padding of the last block
            os.fdatasync(self._fd)
        finally:
            self._abandon()
        return self._digest.hexdigest()

    def _abandon(self) -> None:
        for pool in (self._pool, self._hasher):
            pool.shutdown(wait=True, cancel_futures=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandon()


def _create(path: Path) -> tuple[int, bool]:
    """A new file for writing, and whether it passes the page cache by."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    direct = getattr(os, "O_DIRECT", 0)  # Linux has it
    if direct:
        try:
            return os.open(path, flags | direct, 0o644), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)  # Linux creates the file before it refuses the flag
    return os.open(path, flags, 0o644), False


def _use_page_cache(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
