"""A lean forward pass for Llama-shaped models: Llama, Mistral, Qwen2, Qwen3.

Decoding one token with transformers spends as much time in Python as in the matrix products. This
module computes the same function from the same weights with few, fused operations: one product for
q, k and v, one for gate and up, a preallocated key-value cache, and rows of different length packed
without padding. LoRA weights are kept apart and added to the rows that want them, so the base and
any number of adapters are computed together over one copy of the weights.

Nothing is copied twice: after fusing, the transformers model's own parameters are views of the
fused ones, so it stays usable (training-time checks, scoring) and costs no second copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from core.inference.fused import LayerWeights, inner_model, layers_of, unsupported

#: Caches are rounded up, at most to the next multiple of this; entries beyond are never read.
_ROUNDING = 256
#: Padded tokens to real ones with which rows still attend together.
_PADDING = 4


class KVCache:
    """Keys and values, each of shape (layers, rows, kv_heads, capacity, head_dim).

    Memory is reserved at once; on a CPU the system only commits the pages that are written.

    Args:
        zeroed: for ``LeanLlama.step``, which masks what is not written yet: a weight of zero does
            not silence a NaN that was left in the memory.
    """

    def __init__(self, model: LeanLlama, rows: int, capacity: int, *, zeroed: bool = False) -> None:
        shape = (len(model.layers), rows, model.kv_heads, capacity, model.head_dim)
        make = torch.zeros if zeroed else torch.empty
        self.keys = make(shape, dtype=model.dtype, device=model.device)
        self.values = make(shape, dtype=model.dtype, device=model.device)
        self.capacity = capacity

    def first(self, rows: int) -> KVCache:
        """The first ``rows`` rows, over the same memory."""
        part: KVCache = object.__new__(KVCache)
        part.keys, part.values = self.keys[:, :rows], self.values[:, :rows]
        part.capacity = self.capacity
        return part

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` entries of one row over another's."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]


@dataclass
class Segment:
    """Tokens to append to one row of a cache, computed with one adapter or with none."""

    cache: KVCache
    row: int
    start: int
    ids: Sequence[int]
    adapter: str | None = None


class _Together:
    """Where the tokens of segments of one cache lie, so that one product attends to all rows.

    A GPU waits for Python if each row attends by itself: 30 layers times 70 prompts are 2,100 calls
    of four kernels. Rows are padded to the longest for this; nothing else is.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        self.cache = segments[0].cache
        counts = [len(s.ids) for s in segments]
        self.count, self.longest = len(segments), max(counts)
        self.end = max(s.start + n for s, n in zip(segments, counts, strict=True))
        self.rows = tensor([s.row for s in segments])
        self.segment = tensor([i for i, n in enumerate(counts) for _ in range(n)])
        self.offset = tensor([i for n in counts for i in range(n)])
        starts = tensor([s.start for s in segments])
        self.token_row, self.position = self.rows[self.segment], starts[self.segment] + self.offset
        key = torch.arange(self.end, device=device)
        last = starts[:, None] + torch.arange(self.longest, device=device)
        self.mask = (key <= last[..., None])[:, None]  # (rows, 1, longest, end)
        written = key < starts[:, None] + tensor(counts)[:, None]
        self.written = written[:, None, :, None]

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all tokens, (tokens, hidden); writes their keys and values first."""
        every_key, every_value = self.cache.keys[index], self.cache.values[index]
        every_key[self.token_row, :, self.position] = k
        every_value[self.token_row, :, self.position] = v
        # A weight of zero does not silence a NaN that was left in memory nobody has written yet.
        keys = torch.where(self.written, every_key[self.rows, :, : self.end], 0)
        values = torch.where(self.written, every_value[self.rows, :, : self.end], 0)
        groups = q.shape[1] // k.shape[1]
        padded = q.new_zeros(self.count, self.longest, *q.shape[1:])
        padded[self.segment, self.offset] = q
        mixed = F.scaled_dot_product_attention(
            padded.transpose(1, 2),
            keys.repeat_interleave(groups, dim=1),
            values.repeat_interleave(groups, dim=1),
            attn_mask=self.mask,
        )
        return mixed[self.segment, :, self.offset].reshape(q.shape[0], -1)


class LeanLlama:
    """Weights of a transformers model (with PEFT adapters, if any), ready for fast decoding.

    Args:
        model: the transformers or PEFT model; its q/k/v and gate/up parameters become views.

    Raises:
        ValueError: the model is not of this shape; ``unsupported`` tells why beforehand.
    """

    def __init__(self, model: Any) -> None:
        reason = unsupported(model)
        if reason:
            raise ValueError(reason)
        inner = inner_model(model)
        config = inner.config
        self.dtype, self.device = inner.dtype, inner.device
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.eps = float(config.rms_norm_eps)
        self._embed = inner.get_input_embeddings().weight.detach()
        self._head = inner.get_output_embeddings().weight.detach()
        self._norm = inner.model.norm.weight.detach()
        self._rotary = inner.model.rotary_emb
        self._trained_length = (
            int(config.max_position_embeddings)
            if getattr(self._rotary, "rope_type", "") == "dynamic"
            else None
        )
        self._tables: tuple[Tensor, Tensor] | None = None
        self.layers = layers_of(inner)
        self.attends_together = self.device.type == "cuda"

    @property
    def vocab_size(self) -> int:
        return int(self._head.shape[0])

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding, each (>= length, head_dim / 2), float32.

        Raises:
            UserError: beyond the trained length of a model whose positions then stretch.
        """
        tables = self._tables
        if tables is None or tables[0].shape[0] < length:
            size = max(256, 1 << (length - 1).bit_length())
            positions = torch.arange(size, device=self.device)[None]
            if self._trained_length:
                if length >= self._trained_length + _ROUNDING:
                    raise UserError(
                        f"a text of {length:,} tokens is longer than this model was trained for",
                        why=f"beyond {self._trained_length:,} its rotary positions are stretched "
                        "by the length of the whole text (dynamic NTK)",
                        fix="shorten the conversation",
                    )
                positions = positions.clamp(max=self._trained_length - 1)
            like = torch.empty(0, dtype=torch.float32, device=self.device)
            cos, sin = self._rotary(like, positions)
            half = self.head_dim // 2
            tables = (
                cos[0, :, :half].to(self.dtype).contiguous(),
                sin[0, :, :half].to(self.dtype).contiguous(),
            )
            self._tables = tables
        return tables  # not the attribute: another thread may have set a shorter one meanwhile

    def forward(self, segments: Sequence[Segment], keep: Sequence[int] | None = None) -> Tensor:
        """Append the segments to their caches.

        Args:
            keep: of how many last tokens of each segment the logits are wanted; default one.

        Returns:
            Logits (sum of ``keep``, vocab_size), segment by segment.
        """
        lengths = [len(s.ids) for s in segments]
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + length)
        spans = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        rows = [(w, s.adapter) for w, s in zip(spans, segments, strict=True) if s.adapter]
        ids = torch.tensor([t for s in segments for t in s.ids], device=self.device)
        cos, sin = self._positions(segments)
        x = F.embedding(ids, self._embed)
        together = _Together(segments, self.device) if self._may_attend_together(segments) else None
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, cos, sin, rows)
            if together:
                mixed = together.attend(index, q, k, v)
            else:
                each = zip(spans, segments, strict=True)
                mixed = torch.cat([self._attend(index, s, q[w], k[w], v[w]) for w, s in each])
            x = self._finish(layer, x, mixed, rows)
        wanted = keep or [1] * len(segments)
        last = [i for end, n in zip(bounds[1:], wanted, strict=True) for i in range(end - n, end)]
        if len(last) < len(ids):
            x = x[torch.tensor(last, device=self.device)]
        return F.linear(self._rms(x, self._norm), self._head)

    def _may_attend_together(self, segments: Sequence[Segment]) -> bool:
        """On a GPU, rows of one cache of which none is so long that the others are all padding."""
        if not self.attends_together or len(segments) < 2:
            return False
        if len({(id(s.cache), s.row) for s in segments}) < len(segments):
            return False
        counts = [len(s.ids) for s in segments]
        one_cache = all(s.cache is segments[0].cache for s in segments)
        return one_cache and max(counts) * len(counts) <= _PADDING * sum(counts)

    def _positions(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(max(s.start + len(s.ids) for s in segments))
        if len(segments) == 1:
            where = slice(segments[0].start, segments[0].start + len(segments[0].ids))
            return cos[where, None], sin[where, None]
        parts = [slice(s.start, s.start + len(s.ids)) for s in segments]
        return (
            torch.cat([cos[p] for p in parts])[:, None],
            torch.cat([sin[p] for p in parts])[:, None],
        )

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        # Half precision: normalise in float32 and round before the weight, as transformers does.
        return F.rms_norm(x.float(), weight.shape, None, self.eps).to(x.dtype) * weight

    def _project(
        self,
        layer: LayerWeights,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Sequence[tuple[slice, str]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim)."""
        count = x.shape[0]
        fused = layer.qkv(self._rms(x, layer.norm_in), rows)
        fused = fused.view(count, self.heads + 2 * self.kv_heads, self.head_dim)
        rotated, v = fused.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rotated.split([self.heads, self.kv_heads], dim=1)
            rotated = torch.cat([self._rms(q, layer.q_norm), self._rms(k, layer.k_norm)], dim=1)
        first, second = rotated.chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        q, k = rotated.split([self.heads, self.kv_heads], dim=1)
        return q, k, v

    def _attend(self, index: int, s: Segment, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one segment over its own row of the cache, (tokens, hidden)."""
        count, end = q.shape[0], s.start + q.shape[0]
        keys, values = s.cache.keys[index, s.row], s.cache.values[index, s.row]
        keys[:, s.start : end] = k.transpose(0, 1)
        values[:, s.start : end] = v.transpose(0, 1)
        keys, values = keys[None, :, :end], values[None, :, :end]
        if count == 1:
            # The query heads of one key head stand in as query positions: no copy of the cache.
            grouped = q.view(1, self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(grouped, keys, values).reshape(1, -1)
        groups = self.heads // self.kv_heads
        mask = None
        if s.start:
            mask = torch.ones(count, end, dtype=torch.bool, device=q.device).tril(s.start)
        mixed = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys.repeat_interleave(groups, dim=1),
            values.repeat_interleave(groups, dim=1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return mixed[0].transpose(0, 1).reshape(count, -1)

    def _finish(
        self, layer: LayerWeights, x: Tensor, mixed: Tensor, rows: Sequence[tuple[slice, str]]
    ) -> Tensor:
        """Output projection and MLP, each with its residual."""
        x = x + layer.out(mixed, rows)
        gate, up = layer.gate_up(self._rms(x, layer.norm_mlp), rows).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate) * up, rows)

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache,
        rows: Sequence[tuple[slice, str]],
        length: int,
    ) -> Tensor:
        """One token for every row of a cache, with nothing that depends on host values.

        Fit for a CUDA graph: tokens and positions, both (rows,), are read on the device.

        Args:
            length: the attention looks at the first ``length`` entries (masked by position).

        Returns:
            Logits (rows, vocab_size).
        """
        count = tokens.shape[0]
        cos, sin = self.tables(cache.capacity)
        cos, sin = cos[positions][:, None], sin[positions][:, None]
        every = torch.arange(count, device=self.device)
        visible = torch.arange(length, device=self.device) <= positions[:, None]
        mask = visible[:, None, None, :]
        x = F.embedding(tokens, self._embed)
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, cos, sin, rows)
            keys, values = cache.keys[index], cache.values[index]
            keys[every, :, positions] = k
            values[every, :, positions] = v
            mixed = F.scaled_dot_product_attention(
                q.reshape(count, self.kv_heads, -1, self.head_dim),
                keys[:, :, :length],
                values[:, :, :length],
                attn_mask=mask,
            )
            x = self._finish(layer, x, mixed.reshape(count, -1), rows)
        return F.linear(self._rms(x, self._norm), self._head)


def agrees(lean: LeanLlama, adapter: str | None, logits: Callable[[Tensor], Tensor]) -> bool:
    """Whether the lean pass gives the logits of transformers' own.

    A family may gain a new detail in a later transformers release; then the general path takes
    over instead of answering wrongly.

    Args:
        logits: token ids (1, 12) to logits (12, vocab_size), computed with the same adapter.
    """
    # Any ids will do: each position must agree whatever the text says.
    ids = [(7 * i * i + 3) % lean.vocab_size for i in range(12)]
    with torch.inference_mode():
        wanted = logits(torch.tensor([ids], device=lean.device)).float()
        cache = KVCache(lean, 1, len(ids))
        first = lean.forward([Segment(cache, 0, 0, ids[:8], adapter)], keep=[8])
        rest = [lean.forward([Segment(cache, 0, i, ids[i : i + 1], adapter)]) for i in range(8, 12)]
        given = torch.cat([first, *rest]).float()
    # Rounding of half precision is 2^-8; a wrong detail is off by far more than that.
    allowed = 1e-3 if lean.dtype == torch.float32 else 0.1
    return bool((given - wanted).abs().max() <= allowed * wanted.abs().max().clamp(min=1))
