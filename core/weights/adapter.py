"""A PEFT LoRA adapter folder: parsed, checked, and refused by name where it cannot be merged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError, UserErrors
from core.models import lora as adapters
from core.models import sandbox
from core.models.lora import CONFIG, MUTATING_INITS, WITHOUT_EFFECT
from core.weights.files import read_tensors
from core.weights.tensors import FLOATING, TensorRef

#: Settings whose effect the merge reproduces.
_HANDLED = {
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "base_model_name_or_path",
    "init_lora_weights",
}
_REASONS = {
    "bias": "trained biases are part of the base layers, not of the adapter",
    "lora_bias": "the adapter adds a bias that the base layer need not have",
    "trainable_token_indices": "single trained embedding rows are not LoRA weights",
    "target_parameters": "expert weights without a layer of their own are not LoRA layers",
    "layer_replication": "the merged model would have other layers than the base",
    "alora_invocation_tokens": "an activated LoRA acts on part of the tokens only",
    "ensure_weight_tying": "input and output embedding would have to stay one tensor",
    "use_qalora": "QALoRA pools the inputs, so its product is not a weight change",
}


#: What PEFT itself merges, in memory and in float16.
_MERGED_BY_PEFT = {"bias", "trainable_token_indices"}
_BY_PEFT = "merge with engine 'xtuner' (--engine xtuner), which loads the model and merges by PEFT"


@dataclass(frozen=True)
class LoraWeights:
    """The low-rank update of one layer: W + scaling * B @ A.

    Args:
        module: layer name in the base model, e.g. ``model.layers.0.self_attn.q_proj``.
        a: (rank, in_features); of an embedding: (rank, num_embeddings).
        b: (out_features, rank); of an embedding: (embedding_dim, rank).
        magnitude: DoRA's length of each output row, (out_features,).
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732).
    """

    module: str
    a: TensorRef
    b: TensorRef
    magnitude: TensorRef | None
    scaling: float
    embedding: bool

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a.shape[0]

    @property
    def delta_shape(self) -> tuple[int, int]:
        """(out, in) as B @ A gives it; an embedding's weight is its transpose."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Adapter:
    """A checked adapter.

    Args:
        replaced: parameters trained in full (modules_to_save).
        frozen: copies of base weights that PEFT stores beside LoRA on an embedding.
    """

    folder: Path
    config: dict[str, Any]
    lora: dict[str, LoraWeights]
    replaced: dict[str, TensorRef]
    frozen: dict[str, TensorRef]

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether base weights are (in, out), as GPT-2's Conv1D has them."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def base_name(self) -> str:
        """The base model that the adapter was trained on, as training named it."""
        return str(self.config.get("base_model_name_or_path") or "")

    def targets(self, module: str) -> bool:
        """Whether the config asks for LoRA on this layer (PEFT's rules for names)."""
        config = self.config
        wanted, skipped = config.get("target_modules"), config.get("exclude_modules")
        if not wanted or wanted == "all-linear" or (skipped and _matches(module, skipped)):
            return False
        if not _matches(module, wanted):
            return False
        layers = config.get("layers_to_transform")
        if layers is None:
            return True
        found = re.search(r"\.(?:layers|h|blocks?)\.(\d+)\.", f".{module}.")
        allowed = [layers] if isinstance(layers, int) else list(layers)
        return found is not None and int(found[1]) in allowed


def _matches(module: str, pattern: str | list[str]) -> bool:
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    """PEFT: the first pattern that matches the end of the name wins."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


def _config_problems(config: Mapping[str, Any], path: Path) -> list[UserError]:
    problems = []
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            problems.append(
                UserError(
                    f"{key} is {'missing' if value is None else repr(value)}",
                    why="the size of the update cannot be known without it",
                    where=str(path),
                )
            )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(MUTATING_INITS):
        problems.append(
            UserError(
                f"init_lora_weights={init!r} cannot be merged",
                why="it changed the base weights before training",
                fix=_BY_PEFT if init.startswith(("pissa", "olora")) else "",
                where=str(path),
            )
        )
    for key, value in config.items():
        if key in _HANDLED or key in WITHOUT_EFFECT or adapters.is_null(value):
            continue
        problems.append(
            UserError(
                f"{key}={value!r} cannot be merged tensor by tensor",
                why=_REASONS.get(key, "its effect on the weights is not known here"),
                fix=_BY_PEFT if key in _MERGED_BY_PEFT else "",
                where=str(path),
            )
        )
    return problems


_PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>embedding_A|embedding_B|A|B|"
    r"magnitude_vector)(?:\.weight)?"
)


def _group(
    refs: Mapping[str, TensorRef],
) -> tuple[dict[str, dict[str, TensorRef]], dict[str, TensorRef], dict[str, TensorRef], list[str]]:
    """Parts by module, fully trained parameters, stored base weights, and unknown keys."""
    modules: dict[str, dict[str, TensorRef]] = {}
    replaced: dict[str, TensorRef] = {}
    frozen: dict[str, TensorRef] = {}
    odd: list[str] = []
    for key, ref in refs.items():
        if match := _PART.fullmatch(key):
            modules.setdefault(match["module"], {})[match["part"]] = ref
        elif "lora_" in key:
            odd.append(key)
        else:
            name = key.removeprefix("base_model.model.")
            (frozen if ".base_layer." in name else replaced)[name.replace(".base_layer", "")] = ref
    return modules, replaced, frozen, odd


def _layer(module: str, parts: Mapping[str, TensorRef], config: Mapping[str, Any]) -> LoraWeights:
    """One layer's update. Raises UserError naming the key, what was expected and what was found."""
    embedding = "embedding_A" in parts or "embedding_B" in parts
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    for name in names:
        if name not in parts:
            raise UserError(f"{module}.lora_{name} is missing", why="the adapter is incomplete")
    a, b = (parts[name] for name in names)
    for name, ref in zip(names, (a, b), strict=True):
        if len(ref.shape) != 2 or ref.dtype not in FLOATING:
            raise UserError(
                f"{module}.lora_{name} is {ref.dtype} {list(ref.shape)}",
                why="expected a floating-point matrix; convolutions are not merged here",
            )
    rank = int(_patterned(config.get("rank_pattern"), module, config["r"]))
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise UserError(
            f"{module}: wrong rank",
            why=f"expected lora_{names[0]} ({rank}, in) and lora_{names[1]} (out, {rank}), found "
            f"{a.shape} and {b.shape}",
        )
    alpha = _patterned(config.get("alpha_pattern"), module, config["lora_alpha"])
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    magnitude = parts.get("magnitude_vector")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise UserError(
            f"{module}: use_dora is {bool(config.get('use_dora'))}, but lora_magnitude_vector is "
            f"{'missing' if magnitude is None else 'there'}"
        )
    if magnitude is not None and (embedding or magnitude.shape != (b.shape[0],)):
        raise UserError(
            f"{module}.lora_magnitude_vector is {magnitude.shape}",
            why="DoRA on an embedding is not merged here"
            if embedding
            else f"expected ({b.shape[0]},)",
        )
    return LoraWeights(module, a, b, magnitude, scaling, embedding)


def read_adapter(folder: Path) -> Adapter:
    """Parse and check an adapter folder; no weights are loaded.

    Raises:
        UserErrors: every problem at once: a file missing or broken, a setting that cannot be
            merged (by name), a part missing, a wrong rank or shape.
    """
    config = adapters.read(folder)
    problems = _config_problems(config, folder / CONFIG)
    if problems:
        raise UserErrors(problems, f"the adapter {folder} cannot be merged")
    modules, replaced, frozen, odd = _group(read_tensors(adapters.weights_file(folder)))
    sandbox.require_matchable(config, modules, str(folder))
    problems = [UserError(f"{key} is of an unknown kind") for key in odd]
    lora = {}
    for module, parts in modules.items():
        try:
            lora[module] = _layer(module, parts, config)
        except UserError as error:
            problems.append(error)
    saved = config.get("modules_to_save") or []
    for name in replaced:
        # PEFT picks these modules by a plain suffix: "norm" takes "input_layernorm" too.
        if not name.rpartition(".")[0].endswith(tuple(saved)):
            problems.append(
                UserError(
                    f"{name} is neither LoRA nor listed in modules_to_save",
                    why="the vocabulary was resized, perhaps",
                )
            )
    if not lora and not problems:
        problems.append(UserError("it holds no LoRA weights", fix="convert the checkpoint again"))
    if problems:
        raise UserErrors(problems, f"the adapter {folder} cannot be merged")
    return Adapter(folder, config, lora, replaced, frozen)
