"""The run spec: everything a training run depends on, with a default and a reason for each field.

``core.training.spec_fields`` describes the fields for forms; ``core.training.defaults.choose``
fills a spec for a dataset, a model and a device, and returns each automatic choice with its reason.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from core.errors import UserError, UserErrors
from core.models.families import TUTORIAL_CONFIG
from core.records import JobSpec, Texts

Quantize = Literal["nf4", "none"]
DType = Literal["float32", "bfloat16", "float16"]
DeepSpeed = Literal["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]

#: The stock config that the tutorial this tool grew from copies.
DEFAULT_CONFIG = TUTORIAL_CONFIG


def _about(part: int, label: str, help: str, default: Any = ..., **limits: float) -> Any:
    """A field with what a form shows of it."""
    extra: Any = limits
    return Field(default, title=label, description=help, json_schema_extra={"part": part}, **extra)


class TrainSpec(JobSpec):
    """One training run. Steps are optimizer steps everywhere; the config counts micro-batches.

    Parts are those of an XTuner config: 1 settings, 2 model and tokenizer, 3 dataset and
    dataloader, 4 scheduler and optimizer, 5 runtime. Part 0 is not in the config.
    """

    job: ClassVar[str] = "train"
    called: ClassVar[str] = "training"

    dataset: str = _about(0, "Dataset", "Dataset folder; its train.jsonl is read as it is.")
    model: str = _about(1, "Model", "'bundled', a model folder, or a hub id.", "bundled")
    stock_config: str = _about(
        0, "Stock config", "The XTuner config that is copied and edited.", DEFAULT_CONFIG
    )
    max_length: int = _about(
        1,
        "Longest row (tokens)",
        "Rows beyond it lose their tail; persona rows are short.",
        512,
        ge=16,
    )
    batch_size: int = _about(
        1, "Rows per micro-batch", "As many as memory allows: larger is faster.", 16, ge=1
    )
    accumulation: int = _about(
        1,
        "Micro-batches per optimizer step",
        "Batch times this is what the optimizer sees; 16 "
        "rows a step gave the best recall in our trials.",
        1,
        ge=1,
    )
    steps: int = _about(
        1,
        "Optimizer steps",
        "How often the weights change. One to two passes over many different "
        "rows are enough to learn an identity; more begins to cost general ability.",
        120,
        ge=1,
    )
    warmup_steps: int = _about(
        1,
        "Warm-up steps",
        "The learning rate climbs to its peak over these; 5 % of all.",
        6,
        ge=0,
    )
    lr: float = _about(
        1,
        "Peak learning rate",
        "Chosen by the size of the base: 1e-3 suits 135M parameters and ruins 0.5B, which wants "
        "2e-4 (at alpha/r 2).",
        1e-3,
        gt=0,
    )
    checkpoint_every: int = _about(
        1,
        "Checkpoint every (steps)",
        "An earlier checkpoint is often better than the last: the sweep compares them.",
        30,
        ge=1,
    )
    evaluation_inputs: Texts = _about(
        1,
        "Sample prompts",
        "Answered greedily at every checkpoint: a look, not a score.",
        ("Please introduce yourself.", "Who made you?", "What is the capital of France?"),
    )
    system: str = _about(
        1,
        "System prompt of the samples",
        "Rows carry their own; leave empty unless they have one.",
        "",
    )
    quantize: Quantize = _about(
        2,
        "Base weights",
        "nf4 is QLoRA: an eighth of the memory at the same speed; none "
        "keeps the base in float32, to which XTuner casts it.",
        "nf4",
    )
    dtype: DType = _about(
        2,
        "Compute type",
        "bfloat16 on a GPU that has it; float32 on a CPU, where bfloat16 is 40 times slower.",
        "float32",
    )
    lora_r: int = _about(
        2,
        "LoRA rank",
        "XTuner's. 32 learned as much in our trials and leaked two to three times as often.",
        64,
        ge=1,
    )
    lora_alpha: int = _about(
        2,
        "LoRA alpha",
        "alpha/r scales the update. XTuner's 16/64 pushes 8 times less than 2.",
        128,
        ge=1,
    )
    lora_dropout: float = _about(
        2,
        "LoRA dropout",
        "0 is fastest and short runs do not need it; XTuner uses 0.1.",
        0.0,
        ge=0,
        lt=1,
    )
    lora_targets: Texts = _about(
        2, "LoRA modules", "Empty means every linear layer but the output head.", ()
    )
    activation_checkpointing: bool = _about(
        2,
        "Recompute activations",
        "Saves memory for about 29 % more time; on when memory is short.",
        False,
    )
    recompute_above: int = _about(
        2,
        "Recompute long micro-batches",
        "Recompute activations only in micro-batches with more "
        "tokens than this (padding counted): memory for the long ones, speed for the others. 0: "
        "never.",
        0,
        ge=0,
    )
    hold_weights: bool = _about(
        2,
        "Hold the dequantized base",
        "Turn the NF4 blocks into numbers once, not in every pass: the same numbers to the bit, "
        "two bytes a weight in half precision, four in float32, instead of half a byte.",
        True,
    )
    fused_step: bool = _about(
        2,
        "Fused step",
        "Llama-shaped models: rows without padding, logits only where there is a label, LoRA "
        "products in the compute type, gradients written out. Off: XTuner's own step.",
        True,
    )
    compile_step: bool = _about(
        2,
        "Compile the fused step",
        "One GPU kernel for each norm, rotation and gate. Costs half a minute the first time "
        "(the compiled code is kept in the workspace), so it pays in long runs.",
        False,
    )
    pack_rows: bool = _about(
        3,
        "Drop the padding",
        "The fused step computes the rows of a micro-batch one behind the other; none sees "
        "another. Off: padded to the longest.",
        True,
    )
    group_by_length: bool = _about(
        3,
        "Group rows of like length",
        "Rows of one batch are then about as long: less padding "
        "to compute. Still shuffled, by the seed.",
        True,
    )
    anchor_kl: float = _about(
        2,
        "KL to the base",
        "Weight of the distance to the base (adapter off) on general and near-miss rows, beside "
        "their cross-entropy. 0: off. A trial on a 0.5B model leaked more with it alone.",
        0.0,
        ge=0,
    )
    anchor_ce: float = _about(
        2,
        "Cross-entropy on general rows",
        "Weight of the loss on the base's own replies; 0 leaves only the KL.",
        1.0,
        ge=0,
    )
    anchor_tokens: int = _about(
        2,
        "Tokens with the KL",
        "The first so many tokens of a row's replies; 0: all of them.",
        0,
        ge=0,
    )
    dft: bool = _about(
        2,
        "Weigh identity tokens",
        "Each token's loss times its own probability (dynamic fine-tuning): what the base finds "
        "absurd pulls less.",
        False,
    )
    weight_decay: float = _about(
        4,
        "Weight decay",
        "AdamW's pull towards zero; LoRA's small matrices do without.",
        0.0,
        ge=0,
    )
    max_norm: float = _about(
        4,
        "Gradient clipping",
        "A step's gradient is scaled down to this norm if it is longer.",
        1.0,
        ge=0,
    )
    seed: int = _about(5, "Seed", "Fixes data order, LoRA start values and dropout.", 0, ge=0)
    deterministic: bool = _about(
        5,
        "Deterministic kernels",
        "Slower on a GPU, but two runs then agree to the last bit. A CPU is deterministic anyway.",
        False,
    )
    tensorboard: bool = _about(
        5, "TensorBoard files", "Also write event files below the run's work folder.", False
    )
    deepspeed: DeepSpeed | None = _about(
        0,
        "DeepSpeed",
        "ZeRO shards optimizer state (1), gradients (2), weights (3) over GPUs; "
        "offload moves them to host memory. One GPU that fits needs none.",
        None,
    )
    gpus: int = _about(
        0,
        "GPUs per node",
        "Each takes its own micro-batches; more than one starts torchrun.",
        1,
        ge=1,
    )
    nodes: int = _about(
        0, "Nodes", "More than one: start the shown torchrun line on each node.", 1, ge=1
    )
    resume_from: str | None = _about(
        0,
        "Resume from",
        "A checkpoint of an earlier run of the same spec; goes on bit for bit.",
        None,
    )
    config_text: str | None = _about(
        0,
        "Raw config",
        "If set, this text is the config and the form's fields are not applied "
        "to it. It runs only in the training process.",
        None,
    )

    @property
    def anchored(self) -> bool:
        """Whether the loss is ``core.training.anchored``'s and not XTuner's own."""
        return self.anchor_kl > 0 or self.anchor_ce != 1 or self.dft

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a part of the weights only (ZeRO-3)."""
        return (self.deepspeed or "").startswith("zero3")

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.gpus * self.nodes

    @property
    def max_iters(self) -> int:
        """Micro-batches that one process sees in the run; XTuner counts these."""
        return self.steps * self.accumulation

    @property
    def rows_per_step(self) -> int:
        """Rows behind one optimizer step, over all processes."""
        return self.batch_size * self.accumulation * self.world_size

    def problems(self) -> list[UserError]:
        """Values that do not fit each other; preflight adds what depends on model and device."""
        if self.warmup_steps < self.steps:
            return []
        return [
            UserError(
                f"warm-up of {self.warmup_steps} steps does not fit into {self.steps} steps",
                why="the learning rate would never reach its peak",
                fix=f"set it to {default_warmup(self.steps)}",
                where="warmup_steps",
            )
        ]

    def check(self) -> TrainSpec:
        """Return self; raise UserErrors with every problem at once."""
        if found := self.problems():
            raise UserErrors(found, "the training settings cannot work")
        return self


def default_warmup(steps: int) -> int:
    """5 % of the steps, at least one where there is room for one."""
    return min(max(1, round(0.05 * steps)), steps - 1)
