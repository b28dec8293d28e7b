"""A PEFT adapter folder: what its config says, what its weights are, whether it fits a model.

Fields of ``adapter_config.json`` are known here or the adapter is refused by name: PEFT drops the
fields that it does not know with a warning, and with them whatever they do to the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core import fsio
from core.errors import UserError
from core.models import folder as folders
from core.models import pickled

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

#: Settings of training or bookkeeping; none of them changes what a trained adapter computes.
WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "inference_mode",
        "lora_dropout",
        "revision",
        "auto_mapping",
        "peft_version",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "runtime_config",
        "qalora_group_size",
        "velora_config",
        "base_model_name_or_path",
    }
)
#: Settings of a plain low-rank product on a linear layer, which is added to the base's output.
_PRODUCT = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)
#: These initialisations change the base's own weights when the adapter is put on.
MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: PEFT does these around the model's forward, or by another stack of layers; here the model's own
#: forward is called.
_OUTSIDE = {
    "alora_invocation_tokens": "an activated LoRA acts on part of the tokens only",
    "arrow_config": "it routes tokens between several adapters",
    "layer_replication": "it makes a model with other layers than the base",
}
_PAIR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>[AB]|magnitude_vector)(?:\.weight)?"
)
_EMBEDDING = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_embedding_(?P<part>[AB])")


def read(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a folder that also holds the weights.

    Raises:
        UserError: it is no adapter folder, its files are not whole, or it is no LoRA.
    """
    if not (folder / CONFIG).is_file():
        inside = sorted(
            folder.glob(f"*/{CONFIG}"), key=lambda p: (len(p.parent.name), p.parent.name)
        )
        raise UserError(
            f"{folder} is not an adapter folder",
            why=f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder",
            fix=f"choose the adapter inside it: {inside[-1].parent}"
            if inside
            else "choose a folder that holds adapter_config.json and adapter_model.safetensors, or "
            "convert a checkpoint: python -m core convert --help",
        )
    weights_file(folder)
    folders.require_files(folder)
    config = fsio.read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is not an adapter config", why="it holds no object")
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{folder} cannot be used",
            why=f"its peft_type is {config.get('peft_type')!r}; only LoRA adapters are known here",
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{folder} cannot be used",
            why=f"its task_type is {config['task_type']!r}: it was trained for something else than "
            "to continue a text",
            fix="choose an adapter of a chat model (task_type CAUSAL_LM)",
        )
    _require_types(config, folder)
    return config


class _Types(BaseModel):
    """The types of the settings that anybody here or PEFT works with; null is no answer."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: int | None = Field(None, ge=1, le=1 << 20)
    lora_alpha: float | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1 << 20)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    bias: str | None = None
    base_model_name_or_path: str | None = None


def _require_types(config: Mapping[str, Any], folder: Path) -> None:
    try:
        _Types.model_validate(config)
    except ValidationError as error:
        found = error.errors()[0]
        key = str(found["loc"][0])
        raise UserError(
            f"{folder / CONFIG} is not an adapter config",
            why=f"{key} is {config[key]!r:.80}",
            fix="copy or convert the adapter again",
        ) from error


def weights_file(folder: Path) -> Path:
    """The file with the adapter's weights. Raises UserError if there is none."""
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} holds no adapter weights",
        why=f"there is no {WEIGHTS} in it",
        fix="copy the weights beside adapter_config.json, or convert the checkpoint again",
    )


def is_null(value: Any) -> bool:
    """Whether a setting says nothing: null, false, empty, or the word ``none``."""
    return not value or value == "none"


def require_known(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse settings that the installed PEFT would drop, or does outside of the model.

    Raises:
        UserError: naming the settings.
    """
    import torch
    from peft import LoraConfig

    known = {f.name for f in fields(LoraConfig)} | WITHOUT_EFFECT
    for key, value in config.items():
        if is_null(value) or (key in known and key not in _OUTSIDE):
            continue
        raise UserError(
            f"the adapter {folder} cannot be loaded: {key}={value!r:.80}",
            why=_OUTSIDE.get(key, "the installed PEFT does not know it and would leave it out"),
        )
    if str(config.get("init_lora_weights")).lower() == "loftq" and not torch.cuda.is_available():
        raise UserError(
            f"the adapter {folder} cannot be loaded without a GPU",
            why="LoftQ changes the weights of the base when the adapter is put on, and PEFT does "
            "that on a GPU only",
            fix="load it on a machine with an NVIDIA GPU",
        )


def shareable(folder: Path) -> bool:
    """Whether base and base + adapter can live on one copy of the weights.

    Only what is known to: products on linear layers, by the config and by the names of the
    stored tensors, so that neither whole layers nor rows, biases or embeddings are replaced.
    """
    config = read(folder)
    plain = all(
        is_null(value) or key in _PRODUCT or key in WITHOUT_EFFECT for key, value in config.items()
    )
    init = str(config.get("init_lora_weights", True)).lower()
    return (
        plain
        and not init.startswith(MUTATING_INITS)
        and all(_PAIR.fullmatch(key) for key in shapes(folder))
    )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor by its key; no weights are read.

    Raises:
        UserError: the file is damaged.
    """
    path = weights_file(folder)
    if path.name == PICKLED:
        pickled.require_small(path)
    try:
        if path.name == PICKLED:
            import torch

            stored = torch.load(path, map_location="meta", weights_only=True)
            return {str(key): tuple(tensor.shape) for key, tensor in stored.items()}
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors and pickle raise what they meet
        raise UserError(
            f"{path} is not a whole adapter file",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="copy or convert the adapter again",
        ) from error


def require_fit(folder: Path, model: Any, base: str) -> None:
    """Compare every stored tensor with the layer that it belongs to.

    Args:
        model: the base, or a model that has adapters already.
        base: what to call it.

    Raises:
        UserError: naming the first layer that is missing or of another shape, with both shapes.
    """
    modules = dict(model.named_modules())
    for key, shape in shapes(folder).items():
        if pair := _PAIR.fullmatch(key) or _EMBEDDING.fullmatch(key):
            found = modules.get(pair["module"])
            problem = _misfit(pair["module"], pair["part"], shape, found)
        else:
            name = key.removeprefix("base_model.model.").replace(".base_layer", "")
            problem = _other_misfit(name, shape, model)
        if problem:
            named = read(folder).get("base_model_name_or_path")
            raise UserError(
                f"the adapter {folder} does not fit {base}",
                why=problem,
                fix=f"choose the model that it was trained on{f' ({named})' if named else ''}",
            )


def _misfit(module: str, part: str, shape: tuple[int, ...], layer: Any) -> str:
    """What is wrong with one part of a product ('' if nothing)."""
    if layer is None:
        return f"the model has no layer {module}"
    if len(shape) > 2:
        return ""  # a convolution: PEFT compares its kernel itself
    sizes = (
        getattr(layer, "in_features", None) or getattr(layer, "num_embeddings", None),
        getattr(layer, "out_features", None) or getattr(layer, "embedding_dim", None),
    )
    if None in sizes:  # GPT-2's Conv1D: (in, out)
        sizes = tuple(getattr(layer, "base_layer", layer).weight.shape)
    wanted, found = (sizes[0], shape[-1]) if part == "A" else (sizes[1], shape[0])
    if wanted == found:
        return ""
    return f"{module} is {wanted} wide in the model and {found} wide in the adapter"


def _other_misfit(name: str, shape: tuple[int, ...], model: Any) -> str:
    own = dict(model.named_parameters()).get(name)
    if own is None or own.dim() != len(shape) or tuple(own.shape) == shape:
        return ""  # PEFT's own bookkeeping (token rows), which it checks itself
    if own.shape[0] != shape[0] and own.shape[1:] == shape[1:]:
        return (
            f"{name} has {own.shape[0]} rows in the model and {shape[0]} in the adapter: "
            "its vocabulary was resized for training"
        )
    return f"{name} is of shape {tuple(own.shape)} in the model and {shape} in the adapter"
