"""What a run costs: memory, time, disk; each with the basis of the estimate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.models.device import Device
from core.training.spec import TrainSpec

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

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """(in, out) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        kv = self.hidden // self.heads * self.kv_heads
        h, m = self.hidden, self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: what QLoRA quantizes."""
        return self.layers * sum(i * o for i, o in self.layer_matrices)

    @property
    def embedding(self) -> int:
        """Parameters of one embedding or head matrix."""
        return self.vocab * self.hidden

    def lora(self, rank: int) -> int:
        """Trained parameters at ``rank`` on every linear map of the layers."""
        return self.layers * rank * sum(i + o for i, o in self.layer_matrices)


def shape_of(model: Path) -> Shape:
    """Read config.json; names that all Llama-like families share."""
    config: dict[str, Any] = fsio.read_json(model / "config.json")
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
    )


def memory_bytes(shape: Shape, spec: TrainSpec, longest: int) -> int:
    """Peak of one process: weights, LoRA with its Adam state, activations of a micro-batch.

    Activations are counted from a layer's saved tensors (about 18 hidden-sized and 6
    intermediate-sized values a token with LoRA's inputs), or the layer inputs alone when they are
    recomputed; logits and their gradient at full vocabulary for half the tokens.
    """
    width = 4 if spec.dtype == "float32" else 2
    body = shape.body * (0.53 if spec.quantize == "nf4" else width)
    # prepare_model_for_kbit_training casts what is not quantized to float32.
    embeddings = shape.embedding * (1 if shape.tied else 2) * (4 if spec.quantize == "nf4"
                                                                else width)
    adapter = shape.lora(spec.lora_r) * 16  # weight, gradient, two Adam moments in float32
    tokens = spec.batch_size * min(longest, spec.max_length)
    per_layer = 18 * shape.hidden + 6 * shape.intermediate
    if spec.activation_checkpointing:
        saved = shape.layers * shape.hidden + per_layer
    else:
        saved = shape.layers * per_layer
    logits = 0.5 * tokens * shape.vocab * 4 * 3
    runtime = 900e6  # Python, torch, transformers and their buffers
    return int(body + embeddings + adapter + tokens * saved * width + logits + runtime)


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
