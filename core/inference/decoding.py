"""From requests to tokens: the one loop in which every reply of this program is made.

The requests are dealt to lanes, each a batch of rows in a thread of its own. A lane gives its free
rows to the requests that wait, feeds their prompts, and then advances all rows by a token at a time
until none is alive. How a row is computed is the backend's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import torch
from torch import Tensor

from core.conversation import Message, OnProgress
from core.inference.backend import Backend, Part, rows_that_fit
from core.inference.requests import Decoded, Request, common_start
from core.inference.resident import Voice, release_memory
from core.inference.sampling import Sampler
from core.inference.settings import GenerationSettings
from core.inference.stream import is_out_of_memory

#: Seconds between two looks at how many replies are finished.
_LOOK_EVERY_S = 0.1


def replies(
    voice: Voice,
    conversations: Sequence[Sequence[Message]],
    settings: GenerationSettings,
    *,
    on_progress: OnProgress | None = None,
    stage: str = "generate",
) -> list[Decoded]:
    """Answer each conversation; the replies come in the order of the conversations.

    A reply depends on its prompt, the settings and, if random numbers are drawn, on its place
    among the conversations, but for rounding on nothing else.
    """
    template = voice.resident.template
    prompts = [template.encode(c) for c in conversations]
    return continuations(voice, prompts, settings, on_progress=on_progress, stage=stage)


def continuations(
    voice: Voice,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    on_progress: OnProgress | None = None,
    stage: str = "generate",
) -> list[Decoded]:
    """``replies`` for prompts that are token ids already (a model that writes user turns)."""
    resident = voice.resident
    head = common_start(prompts) if len(prompts) > 1 else 0
    requests = [
        Request(
            list(prompt),
            resident.stop_ids,
            settings.max_new_tokens,
            voice.adapter,
            stop_texts=resident.template.stop_texts,
            tokenizer=resident.tokenizer,
            seed=(settings.seed * 1_000_003 + place) % 2**63,
            head=head,
        )
        for place, prompt in enumerate(prompts)
    ]
    for request in requests:
        request.cancelled = requests[0].cancelled  # one failure ends all
    tell = partial(on_progress, stage) if on_progress else lambda done, total: None
    ordered = sorted(requests, key=lambda r: len(r.prompt))  # padding costs least
    if ordered:
        with torch.inference_mode():
            _decode(resident.backend, ordered, settings, torch.get_num_threads(), tell)
    for request in requests:
        if request.error:
            raise request.error
    return [Decoded(r.text.strip(), r.token_ids, r.finish_reason or "error") for r in requests]


def stream(
    backend: Backend, requests: Sequence[Request], settings: GenerationSettings, threads: int
) -> None:
    """Answer a few requests at the same time; returns when each has finished or failed.

    If the memory does not suffice for all together they are answered one by one, so that some
    succeed. Never raises for one request's sake.

    Args:
        threads: processor threads that they may use together.
    """
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            _decode(backend, requests, settings, threads, lambda done, total: None)
    except Exception as error:
        if not is_out_of_memory(error) or len(requests) == 1:
            for request in requests:
                request.fail(error)
            return
        del error
        release_memory()
        for request in requests:
            if not request.finished:
                stream(backend, [request], settings, threads)


def _decode(
    backend: Backend,
    requests: Sequence[Request],
    settings: GenerationSettings,
    threads: int,
    tell: Callable[[int, int], None],
) -> None:
    """Run the lanes. ``tell`` is called on this thread with (written, all): replies in the
    making count by their tokens, for those that are written side by side end side by side.
    """
    sampler = Sampler(settings)
    lanes = [_Lane(backend, sampler, dealt) for dealt in backend.lanes(requests, threads)]
    # Prompts are many tokens wide, so the first ones share one pass over the weights.
    _begin(lanes)
    share = max(1, threads // len(lanes))
    with ThreadPoolExecutor(len(lanes), "reply") as pool:
        futures = [pool.submit(lane.run, share) for lane in lanes]
        try:
            while wait(futures, _LOOK_EVERY_S).not_done:
                tell(int(sum(r.share for r in requests)), len(requests))
        except BaseException:  # an interrupt ends all lanes
            for request in requests:
                request.cancelled.set()
            raise
    tell(len(requests), len(requests))


class _Lane:
    """The rows of one batch, and the requests that wait for one."""

    def __init__(self, backend: Backend, sampler: Sampler, requests: Sequence[Request]) -> None:
        self.backend, self.sampler = backend, sampler
        self.waiting = deque(requests)
        capacity = max(len(r.prompt) + r.limit for r in requests)
        rows = min(len(requests), rows_that_fit(backend, capacity))
        self.rows: list[Request | None] = [None] * rows
        self.batch = backend.open(rows, capacity)

    @property
    def alive(self) -> list[int]:
        """Rows whose replies grow."""
        return [row for row, request in enumerate(self.rows) if request is not None]

    def run(self, threads: int) -> None:
        """Answer all requests; an error is that of the lane's own."""
        torch.set_num_threads(threads)  # OpenMP keeps this number per thread
        try:
            with torch.inference_mode():
                while self.waiting or self.alive:
                    _begin([self])
                    if alive := self.alive:
                        self.take(alive, self.batch.step(alive, self._last(alive)))
        except Exception as error:
            for request in (*self.rows, *self.waiting):
                if request is not None:
                    request.fail(error)

    def _last(self, rows: Sequence[int]) -> list[int]:
        return [r.token_ids[-1] for row in rows if (r := self.rows[row]) is not None]

    def admit(self, tokens: int) -> list[tuple[int, Request]]:
        """Requests that begin in free rows now: one, or as many as ``tokens`` of prompts hold."""
        begun: list[tuple[int, Request]] = []
        if self.alive and not self.batch.refills:
            return begun
        for row in (row for row, request in enumerate(self.rows) if request is None):
            while self.waiting and self.waiting[0].cancelled.is_set():
                self.waiting.popleft().finish("cancelled")
            if not self.waiting:
                break
            tokens -= len(self.waiting[0].prompt) - self.waiting[0].head
            if begun and tokens < 0:
                break
            request = self.rows[row] = self.waiting.popleft()
            begun.append((row, request))
        return begun

    def take(self, rows: Sequence[int], logits: Tensor) -> None:
        """One more token for each of these rows; those that have ended are free again."""
        requests = [r for row in rows if (r := self.rows[row]) is not None]
        for request, token in zip(requests, self.sampler(logits, requests).tolist(), strict=True):
            request.push(token)
        self.close()

    def close(self) -> None:
        """Let the finished go; the others close ranks."""
        if not any(r is not None and r.finished for r in self.rows):
            return
        self.rows = [r if r is not None and not r.finished else None for r in self.rows]
        for source, target in self.batch.release(self.alive):
            self.rows[target], self.rows[source] = self.rows[source], None


def _begin(lanes: Sequence[_Lane]) -> None:
    """Feed prompts of waiting requests to free rows, in blocks, and draw their first tokens.

    A request that is cancelled between two blocks is finished.
    """
    backend = lanes[0].backend
    fresh = [(lane, *new) for lane in lanes for new in lane.admit(backend.prefill_tokens)]
    fed = [lane.batch.begin(row, request) for lane, row, request in fresh]
    last: dict[int, Tensor] = {}
    waiting = list(range(len(fresh)))
    while waiting:
        block = max(1, backend.prefill_tokens // len(waiting))
        parts = [
            Part(fresh[i][0].batch, fresh[i][1], fresh[i][2].prompt[fed[i] : fed[i] + block])
            for i in waiting
        ]
        for i, part, row in zip(waiting, parts, backend.feed(parts), strict=True):
            fed[i] += len(part.ids)
            if fed[i] == len(fresh[i][2].prompt):
                last[i] = row
        for i in waiting:
            if i not in last and fresh[i][2].cancelled.is_set():
                fresh[i][2].finish("cancelled")
        waiting = [i for i in waiting if i not in last and not fresh[i][2].finished]
    for lane in {id(lane): lane for lane, _, _ in fresh}.values():
        mine = [i for i in last if fresh[i][0] is lane]
        if mine:
            lane.take([fresh[i][1] for i in mine], torch.stack([last[i] for i in mine]))
        lane.close()
