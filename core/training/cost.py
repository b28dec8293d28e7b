"""What a run costs: memory, time, disk; each with the basis of the estimate.

Memory at the peak, in bytes, with P parameters in the layers' matrices, E in embedding and head, L
in the adapter, T tokens in the largest micro-batch, and w bytes a value of the compute type::

    fixed       = P * (w if the base is held, else 0.53) + E * w + L * 16 + runtime (18 in 16 bits)
    activations = T * layers * (4 h + 2 kv + 2 m + 7 r) * w + working        all kept
                = T * (layers * h + (4 h + 2 kv + 2 m + 7 r)) * w + working  recomputed
    working     = the larger of what the backward pass of a layer and what a chunk of logits takes

With several GPUs that is the memory of each; ZeRO shares the 16 bytes of L (1: moments, 2: and
gradients, 3: and weights, those of the base too) among them.

``h`` is the hidden size, ``m`` the MLP's, ``kv`` the width of keys, ``r`` the rank. Beside measured
peaks: ``python benchmarks/memory_estimate.py``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from core.models import folder as folders
from core.models.device import Device
from core.training.spec import TrainSpec

#: What a run on a CPU may plan with at least: an 8 GB laptop has other programs too. Half of what
#: is there where that is more.
CPU_BYTES = 4.5e9
#: Python, torch, transformers, XTuner and their buffers: 1.03 GiB resident after the imports; on a
#: GPU its context.
RUNTIME = 1.1e9
#: Bytes of logits that exist at a time (as float32 their number of tokens is the same).
CHUNK_BYTES = 1 << 28
#: Share of the device's memory that a run may plan with; the rest is the system's and slack.
USABLE = 0.8


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only model, from its config.json."""

    hidden: int
    layers: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 0
    experts: int = 0
    expert_width: int = 0

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return (self.head_dim or self.hidden // self.heads) * self.kv_heads

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """(in, out) of the linear maps of one layer: q, k, v, o, and gate, up, down.

        Experts are no linear maps in transformers: neither quantized nor given an adapter.
        """
        h, m = self.hidden, self.intermediate
        q = (self.head_dim or h // self.heads) * self.heads
        attention = [(h, q), (h, self.kv), (h, self.kv), (q, h)]
        return attention if self.experts else [*attention, (h, m), (h, m), (m, h)]

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: what QLoRA quantizes."""
        return self.layers * sum(i * o for i, o in self.layer_matrices)

    @property
    def expert(self) -> int:
        """Parameters of all experts."""
        return self.layers * self.experts * 3 * self.hidden * self.expert_width

    @property
    def embedding(self) -> int:
        """Parameters of one embedding or head matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of the layers' matrices and embeddings; norms and biases are too few to count."""
        return self.body + self.expert + self.embedding * (1 if self.tied else 2)

    def lora(self, rank: int) -> int:
        """Trained parameters at ``rank`` on every linear map of the layers."""
        return self.layers * rank * sum(i + o for i, o in self.layer_matrices)


def usable_bytes(device: Device) -> float:
    """Bytes that a run may plan with on this device."""
    usable = USABLE * device.memory_bytes
    if device.kind == "cuda":
        return usable
    return min(usable, max(CPU_BYTES, device.memory_bytes / 2))


def shape_of(model: Path) -> Shape:
    """Read config.json; names that all Llama-like families share.

    Raises:
        UserError: it is no model config.
    """
    config = folders.config_of(model)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    return Shape(
        hidden=hidden,
        layers=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
        intermediate=int(config.get("intermediate_size") or 4 * hidden),
        vocab=int(config.get("vocab_size") or 0),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        tied=bool(config.get("tie_word_embeddings", False)),
        head_dim=int(config.get("head_dim") or 0),
        experts=int(config.get("num_experts") or config.get("num_local_experts") or 0),
        expert_width=int(config.get("moe_intermediate_size") or 0),
    )


def _activations(shape: Shape, spec: TrainSpec, tokens: int, recompute: bool) -> float:
    """Bytes that a micro-batch of ``tokens`` keeps for the backward pass, logits included.

    The fused step keeps the residual twice, q, k, v, the attention's output, gate and up, and the
    LoRA products of each layer; without flash attention (float32) the padded q, k, v and output
    too. Its logits exist in chunks, while all of that is kept. XTuner's step keeps 20 hidden-sized
    and 8 intermediate-sized values in float32 (measured: 5.2 GB at 1,264 tokens of the 135M model),
    three quarters of that in 16 bits, and the logits with their gradient for the half of the tokens
    with a label.
    Recomputed: the layer's input, and one layer's worth.
    """
    if spec.fused_step and not spec.shards_weights:
        width = 4.0 if spec.dtype == "float32" else 2.0
        padded = 4 * shape.hidden if spec.dtype == "float32" else 0
        layer = 4 * shape.hidden + 2 * shape.kv + 2 * shape.intermediate + 7 * spec.lora_r + padded
        # Norms and gates one by one, in float32, keep three times what compiled kernels do.
        working = (6 * shape.intermediate + 8 * shape.hidden) * (1 if spec.compile_step else 3)
        saved = shape.layers * shape.hidden + layer if recompute else shape.layers * layer
        return tokens * saved * width + max(tokens * working * width, _logits(shape, width, tokens))
    width = 4.0 if spec.dtype == "float32" else 1.5
    layer = 20 * shape.hidden + 8 * shape.intermediate
    saved = shape.layers * shape.hidden + layer if recompute else shape.layers * layer
    return tokens * (saved * width + 0.5 * shape.vocab * 4 * 3)


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits are computed at a time."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def _logits(shape: Shape, width: float, tokens: int) -> float:
    """Bytes of a chunk of logits: as computed, in float32 if that is another type, and their
    exponentials while the loss sums them."""
    return (
        min(tokens, chunk_tokens(shape.vocab)) * shape.vocab * (4 + 4 + (width if width < 4 else 0))
    )


def _fixed(shape: Shape, spec: TrainSpec) -> float:
    """Bytes that do not depend on the batch: weights, LoRA with its Adam state, the runtime."""
    # XTuner calls prepare_model_for_kbit_training on every base: what is not NF4 becomes float32.
    # The fused step and DeepSpeed keep it in the compute type.
    compute = 4 if spec.dtype == "float32" else 2
    other = compute if spec.fused_step or spec.deepspeed else 4
    held = compute if spec.hold_weights and not spec.shards_weights else 0.53
    body = shape.body * (held if spec.quantize == "nf4" else other)
    base = body + (shape.expert + shape.embedding * (1 if shape.tied else 2)) * other
    if spec.shards_weights:
        # Shared among the processes; each puts one layer or embedding together at a time.
        base = base / spec.world_size + max(shape.body / shape.layers, shape.embedding) * other
    return base + shape.lora(spec.lora_r) * _trained_bytes(spec, compute) + RUNTIME


def _trained_bytes(spec: TrainSpec, compute: int) -> float:
    """Bytes a trained parameter: weight, gradient, two Adam moments; what ZeRO shares of them.

    DeepSpeed's weights and gradients have the compute type, beside float32 master weights with
    the moments (12 bytes); the gradients of data parallel are copied once for the exchange.
    """
    if not spec.deepspeed:
        # A 16-bit step computes with a copy of the weight.
        alone = 18.0 if spec.fused_step and compute == 2 else 16.0
        return alone if spec.world_size == 1 else alone + 4
    stage, offloaded = int(spec.deepspeed[4]), spec.deepspeed.endswith("offload")
    shared = 0.0 if offloaded else 12.0
    parts = [compute, compute]  # weight, gradient
    whole = sum(parts[: 3 - stage] if stage > 1 else parts)
    shared += sum(parts) - whole
    return whole + shared / spec.world_size


def memory_bytes(shape: Shape, spec: TrainSpec, longest: int) -> int:
    """Peak of one process, when its micro-batch is full of rows as long as the longest."""
    return peak_bytes(shape, spec, spec.batch_size * min(longest, spec.max_length))


def peak_bytes(shape: Shape, spec: TrainSpec, tokens: int) -> int:
    """Peak of one process whose largest micro-batch has ``tokens`` tokens."""
    limit = spec.recompute_above or tokens
    if spec.activation_checkpointing:
        activations = _activations(shape, spec, tokens, True)
    else:
        activations = max(
            _activations(shape, spec, min(tokens, limit), False),
            _activations(shape, spec, tokens, True) if tokens > limit else 0.0,
        )
    return int(_fixed(shape, spec) + activations)


def token_capacity(shape: Shape, spec: TrainSpec, room: float) -> int:
    """Tokens of a micro-batch that fit into ``room`` bytes without recomputing; at least 0."""
    return bisect_right(
        range(1, 1 << 24),
        room - _fixed(shape, spec),
        key=lambda tokens: _activations(shape, spec, tokens, False),
    )


def flops_per_token(shape: Shape, spec: TrainSpec | None = None) -> float:
    """Forward 2 N, backward through frozen weights 2 N, recomputation 2 N more (QLoRA)."""
    passes = 6 if spec is not None and spec.activation_checkpointing else 4
    return float(passes * (shape.body + 0.5 * shape.embedding))


def tokens_per_second(device: Device, shape: Shape, spec: TrainSpec | None = None) -> float:
    """Expected real tokens a second of one process.

    Basis: 165 tokens/s at 135M parameters on 2 AVX2 cores, that is 40 GFLOP/s a core; on a GPU
    60 TFLOP/s, a seventh of an H100, because small models are bound by kernel launches.
    """
    rate = 40e9 * device.threads if device.kind == "cpu" else 60e12
    return rate / flops_per_token(shape, spec)


def checkpoint_bytes(shape: Shape, spec: TrainSpec) -> int:
    """LoRA weights and two Adam moments in float32, and a megabyte of everything else."""
    return shape.lora(spec.lora_r) * 12 + 1_000_000


def disk_bytes(shape: Shape, spec: TrainSpec) -> int:
    """All checkpoints of the run and a fifth more."""
    count = -(-spec.steps // spec.checkpoint_every)
    return int(1.2 * count * checkpoint_bytes(shape, spec))
