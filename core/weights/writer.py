"""Write a safetensors file tensor by tensor: header first, payload as it comes, hash on the way."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType

from core.weights.tensors import TensorRef, header_bytes

_CHUNK = 8 << 20
#: After so many bytes the disk is told to start, so that it works while tensors are made.
_SYNC_BYTES = 16 << 20
#: So many unsynced bytes make the writing wait, or a large model would fill the page cache.
_MAX_UNSYNCED = 512 << 20
#: Tensors that may be waiting or being written; this bounds the memory.
QUEUE = 2


class TensorWriter:
    """One output file. Tensors must come in the order of the header.

    One thread writes, one hashes beside it, one waits for the disk. Their errors are raised by
    the next call or by ``close``.
    """

    def __init__(self, path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._unsynced = 0
        self._flush: Future[None] | None = None
        self._slots = BoundedSemaphore(QUEUE)
        self._jobs: list[Future[None]] = []
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tensor-writer")
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="tensor-hasher")
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="tensor-flusher")
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
        hashed = self._hasher.submit(self._digest.update, piece)
        try:
            done = 0
            while done < len(piece):
                done += os.write(self._fd, piece[done:])
        finally:
            hashed.result()
        self._unsynced += len(piece)
        self._start_flush()

    def _start_flush(self) -> None:
        """Keep the disk busy with what was written so far."""
        if self._flush is not None and (self._flush.done() or self._unsynced >= _MAX_UNSYNCED):
            self._flush.result()
            self._flush = None
        if self._flush is None and self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._flush = self._flusher.submit(os.fdatasync, self._fd)

    def close(self) -> str:
        """Wait for the disk; returns the file's sha256. Raises OSError of the writing thread."""
        try:
            for job in self._jobs:
                job.result()
            if self._flush is not None:
                self._flush.result()
            os.fdatasync(self._fd)
        finally:
            self._abandon()
        return self._digest.hexdigest()

    def _abandon(self) -> None:
        for pool in (self._pool, self._hasher, self._flusher):
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
