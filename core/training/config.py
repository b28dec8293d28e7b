"""Copy a stock XTuner config and edit it for a run; show the edits; check raw text.

The copy keeps XTuner's comments, order and lazy form, and needs nothing of ours: it can be given
to ``xtuner train`` elsewhere. It is never imported here, only parsed and printed.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.models import catalog, device, trust
from core.paths import DatasetPaths
from core.training import base, rawconfig
from core.training.edits import ConfigEditor, literal
from core.training.rows import data_pattern
from core.training.spec import TrainSpec


@lru_cache(maxsize=1)
def stock_paths() -> Mapping[str, Path]:
    """Every stock config of XTuner that fine-tunes a language model with mmengine, by name.

    Those are the files that build ``SupervisedFinetune``. Its DPO, reward, vision and Hugging
    Face Trainer configs train something else or take other data, so they are left out.
    """
    found = importlib.util.find_spec("xtuner")
    if found is None or found.origin is None:
        raise UserError(
            "XTuner is not installed", fix="pip install --no-deps -r requirements-nodeps.txt"
        )
    root = Path(found.origin).parent / "configs"
    usable = {
        path.stem: path
        for path in sorted(root.rglob("*.py"))
        if "type=SupervisedFinetune," in path.read_text(encoding="utf-8")
    }
    return usable


def stock_configs() -> list[str]:
    """Names of the stock configs that can be copied, sorted."""
    return sorted(stock_paths())


def stock_source(name: str) -> str:
    """Source of a stock config. Raises UserError with near names if there is none."""
    path = stock_paths().get(name)
    if path is None:
        near = difflib.get_close_matches(name, stock_configs(), n=3)
        raise UserError(
            f"XTuner ships no config {name!r} that fine-tunes a language model",
            fix=f"did you mean {', '.join(near)}?" if near else "list them: python -m core configs",
        )
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class ConfigInputs:
    """What the config needs beside the spec: facts about this machine, model and dataset."""

    model_path: Path
    data_path: Path
    prompt_template: Mapping[str, Any]
    device: str


def resolve_inputs(spec: TrainSpec) -> ConfigInputs:
    """Look up the model folder, the training file, the chat template and the device."""
    model = catalog.resolve(spec.model)
    template = base.require_trainable(model.path)
    data = DatasetPaths(Path(spec.dataset)).train.resolve()
    return ConfigInputs(model.path, data, template.xtuner_template(), device.describe().kind)


def write_config(spec: TrainSpec, path: Path, inputs: ConfigInputs | None = None) -> Path:
    """Write the config of a run: the raw text of the spec if it has one, else ``render``.

    Raises:
        UserError: the stock config is unknown, or the raw text is not a usable config.
    """
    if spec.config_text is not None:
        rawconfig.check_raw(spec.config_text)
        fsio.atomic_write_text(path, spec.config_text)
    else:
        fsio.atomic_write_text(path, render(spec, inputs or resolve_inputs(spec)))
    return path


def render(spec: TrainSpec, inputs: ConfigInputs) -> str:
    """The stock config with the edits of this spec, as source."""
    editor = ConfigEditor(stock_source(spec.stock_config), spec.stock_config)
    _edit_settings(editor, spec, inputs)
    _edit_model(editor, spec, inputs)
    _edit_data(editor, spec)
    if spec.anchored:
        _edit_loss(editor, spec)
    _edit_schedule(editor, spec, inputs)
    _edit_runtime(editor, spec, inputs)
    return editor.code


def _put(editor: ConfigEditor, name: str, code: str, *, comment: str = "") -> None:
    """Assign a part-1 setting; one that this stock config lacks goes below the model's name.

    A line that says the same already is left as XTuner wrote it, so the diff shows only edits.
    """
    if _same_literal(editor.value(name), code):
        return
    editor.assign(name, code, after="pretrained_model_name_or_path", comment=comment)


def _same_literal(one: str | None, other: str) -> bool:
    try:
        return one is not None and bool(ast.literal_eval(one) == ast.literal_eval(other))
    except (SyntaxError, ValueError):
        return False


def _edit_settings(editor: ConfigEditor, spec: TrainSpec, inputs: ConfigInputs) -> None:
    """Part 1. Intervals are micro-batches, because that is what XTuner counts."""
    _put(editor, "pretrained_model_name_or_path", literal(str(inputs.model_path)))
    _put(editor, _path_variable(editor), literal(data_pattern(inputs.data_path)))
    _put(
        editor,
        "prompt_template",
        _dict_call(inputs.prompt_template),
        comment="derived from the tokenizer's own chat template",
    )
    _put(editor, "use_varlen_attn", "False")
    _put(editor, "max_length", literal(spec.max_length))
    _put(editor, "pack_to_max_length", "False", comment="packed rows would attend to each other")
    _put(editor, "batch_size", literal(spec.batch_size), comment="per device")
    _put(editor, "accumulative_counts", literal(spec.accumulation))
    iters = f"{spec.steps} optimizer steps of {spec.accumulation} micro-batches"
    if not editor.rename("max_epochs", "max_iters", literal(spec.max_iters), comment=iters):
        _put(editor, "max_iters", literal(spec.max_iters), comment=iters)
    warmup = literal(spec.warmup_steps * spec.accumulation)
    if not editor.rename("warmup_ratio", "warmup_iters", warmup, comment="in micro-batches"):
        _put(editor, "warmup_iters", warmup, comment="in micro-batches")
    _put(editor, "lr", literal(spec.lr))
    _put(editor, "weight_decay", literal(spec.weight_decay))
    _put(editor, "max_norm", literal(spec.max_norm), comment="grad clip")
    _put(
        editor,
        "save_steps",
        literal(spec.checkpoint_every * spec.accumulation),
        comment="in micro-batches",
    )
    _put(editor, "save_total_limit", "-1", comment="keep all: the sweep compares them")
    _put(editor, "evaluation_freq", literal(spec.checkpoint_every * spec.accumulation))
    _put(editor, "SYSTEM", literal(spec.system))
    _put(editor, "evaluation_inputs", literal(list(spec.evaluation_inputs)))


def _path_variable(editor: ConfigEditor) -> str:
    return "alpaca_en_path" if editor.has("alpaca_en_path") else "data_path"


def _dict_call(values: Mapping[str, Any]) -> str:
    """``dict(A='x', ...)``, one entry a line: the form that XTuner's configs use."""
    lines = "".join(f"    {key}={literal(value)},\n" for key, value in values.items())
    return f"dict(\n{lines})"


def _edit_model(editor: ConfigEditor, spec: TrainSpec, inputs: ConfigInputs) -> None:
    """Part 2. A model folder runs its own Python only if that was trusted."""
    editor.ensure_import("", "torch")
    code = literal(bool(trust.require(inputs.model_path)))
    editor.set("tokenizer.trust_remote_code", code)
    editor.set("model.llm.trust_remote_code", code)
    editor.set("model.llm.torch_dtype", f"torch.{spec.dtype}")
    quantization = "model.llm.quantization_config"
    if spec.quantize == "nf4":
        if editor.value(quantization) is None:
            editor.set(quantization, "dict(type=BitsAndBytesConfig, load_in_4bit=True)")
            editor.ensure_import("transformers", "BitsAndBytesConfig")
        editor.set(f"{quantization}.load_in_4bit", "True")
        editor.set(f"{quantization}.bnb_4bit_compute_dtype", f"torch.{spec.dtype}")
        editor.set(f"{quantization}.bnb_4bit_use_double_quant", "True")
        editor.set(f"{quantization}.bnb_4bit_quant_type", '"nf4"')
    else:
        editor.remove(quantization)
    editor.set("model.use_activation_checkpointing", literal(spec.activation_checkpointing))
    if editor.value("model.lora") is None:
        editor.set("model.lora", 'dict(type=LoraConfig, bias="none", task_type="CAUSAL_LM")')
        editor.ensure_import("peft", "LoraConfig")
    editor.set("model.lora.r", literal(spec.lora_r))
    editor.set("model.lora.lora_alpha", literal(spec.lora_alpha))
    editor.set("model.lora.lora_dropout", literal(spec.lora_dropout))
    if spec.lora_targets:
        editor.set("model.lora.target_modules", literal(list(spec.lora_targets)))
    else:
        editor.remove("model.lora.target_modules")


_DATASET = """dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path="json", data_files=dict(train={path})),
    tokenizer=tokenizer,
    max_length=max_length,
    dataset_map_fn=openai_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
    remove_unused_columns=True,
    shuffle_before_pack=False,
    pack_to_max_length=pack_to_max_length,
    use_varlen_attn=use_varlen_attn,
    map_num_proc=None,
)"""


def _edit_data(editor: ConfigEditor, spec: TrainSpec) -> None:
    """Part 3: one local file in OpenAI form, mapped in this process (32 take 45 x longer)."""
    for module, name in (
        ("datasets", "load_dataset"),
        ("xtuner.dataset", "process_hf_dataset"),
        ("xtuner.dataset.map_fns", "openai_map_fn"),
        ("xtuner.dataset.map_fns", "template_map_fn_factory"),
        ("xtuner.dataset.collate_fns", "default_collate_fn"),
    ):
        editor.ensure_import(module, name)
    path = _path_variable(editor)
    source = f'dict(type=load_dataset, path="json", data_files=dict(train={path}))'
    name = editor.value("train_dataloader.dataset") or ""
    if name.isidentifier() and editor.value(f"{name}.type") == "process_hf_dataset":
        editor.set(f"{name}.dataset", source)
        editor.set(f"{name}.dataset_map_fn", "openai_map_fn")
        editor.set(
            f"{name}.template_map_fn",
            "dict(type=template_map_fn_factory, template=prompt_template)",
        )
        editor.set(f"{name}.remove_unused_columns", "True")
        editor.set(f"{name}.map_num_proc", "None")
        editor.set(f"{name}.max_length", "max_length")
        editor.set(f"{name}.pack_to_max_length", "pack_to_max_length")
    else:
        name = name if name.isidentifier() else "train_dataset"
        editor.assign(name, _DATASET.format(path=path), after="model")
        editor.set("train_dataloader.dataset", name)
    editor.set("train_dataloader.batch_size", "batch_size")
    editor.set("train_dataloader.num_workers", "0")
    editor.set(
        "train_dataloader.collate_fn",
        "dict(type=default_collate_fn, use_varlen_attn=use_varlen_attn)",
    )
    if spec.group_by_length:
        editor.ensure_import("xtuner.dataset.samplers", "LengthGroupedSampler")
        editor.set(
            "train_dataloader.sampler",
            "dict(\n        type=LengthGroupedSampler,\n"
            '        length_property="length",\n'
            "        per_device_batch_size=batch_size * accumulative_counts,\n    )",
        )
    else:
        editor.ensure_import("mmengine.dataset", "DefaultSampler")
        editor.set("train_dataloader.sampler", "dict(type=DefaultSampler, shuffle=True)")


def _edit_loss(editor: ConfigEditor, spec: TrainSpec) -> None:
    """Our loss instead of XTuner's: the class, its weights, and rows that keep their kind."""
    editor.ensure_import("core.training.anchored", "AnchoredFinetune")
    editor.ensure_import("core.training.anchored", "collate")
    editor.set("model.type", "AnchoredFinetune")
    for name in ("anchor_kl", "anchor_ce", "anchor_tokens", "dft"):
        editor.set(f"model.{name}", literal(getattr(spec, name)))
    editor.set(f"{editor.value('train_dataloader.dataset')}.remove_unused_columns", "False")
    editor.set("train_dataloader.collate_fn.type", "collate")


_WARMUP = """    dict(
        type=LinearLR,
        start_factor=1 / warmup_iters,
        by_epoch=False,
        begin=0,
        end=warmup_iters,
    ),
"""
_DECAY = """    dict(
        type=CosineAnnealingLR,
        eta_min=0.0,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
        T_max=max_iters - warmup_iters,
    ),
"""


def _edit_schedule(editor: ConfigEditor, spec: TrainSpec, inputs: ConfigInputs) -> None:
    """Part 4. ``schedule.lr_at_iteration`` is the plan that these two pieces carry out."""
    if spec.dtype == "float32" or inputs.device == "cpu":  # AmpOptimWrapper asserts a GPU
        editor.ensure_import("mmengine.optim", "OptimWrapper")
        editor.set("optim_wrapper.type", "OptimWrapper")
        editor.remove("optim_wrapper.loss_scale")
        editor.remove("optim_wrapper.dtype")
    else:
        editor.ensure_import("mmengine.optim", "AmpOptimWrapper")
        editor.set("optim_wrapper.type", "AmpOptimWrapper")
        editor.set("optim_wrapper.dtype", literal(spec.dtype))
        # bf16 has float32's range: a growing scale would only add rounding.
        scale = '"dynamic"' if spec.dtype == "float16" else "1.0"
        editor.set("optim_wrapper.loss_scale", scale)
    if inputs.device == "cuda" and not spec.deepspeed and editor.value("optim_type") == "AdamW":
        editor.set("optim_wrapper.optimizer.fused", "True")
    editor.ensure_import("mmengine.optim", "LinearLR")
    editor.ensure_import("mmengine.optim", "CosineAnnealingLR")
    warmup = _WARMUP if spec.warmup_steps else ""
    editor.assign("param_scheduler", f"[\n{warmup}{_DECAY}]", after="optim_wrapper")
    editor.assign("train_cfg", "dict(type=TrainLoop, max_iters=max_iters)", after="param_scheduler")


def _edit_runtime(editor: ConfigEditor, spec: TrainSpec, inputs: ConfigInputs) -> None:
    """Part 5. EvaluateChatHook samples unseeded for minutes; our greedy samples replace it."""
    editor.remove_list_item("custom_hooks", "EvaluateChatHook")
    editor.set("default_hooks.checkpoint.by_epoch", "False")
    editor.set("default_hooks.checkpoint.interval", "save_steps")
    editor.set("default_hooks.checkpoint.max_keep_ckpts", "save_total_limit")
    if inputs.device == "cpu":
        editor.set("env_cfg.dist_cfg.backend", '"gloo"')
        if spec.world_size > 1:  # mmengine's own choice names a GPU
            wrapper = 'dict(type="MMDistributedDataParallel", device_ids=None)'
            editor.assign("model_wrapper_cfg", wrapper, after="env_cfg")
    randomness = f"seed={literal(spec.seed)}, deterministic={literal(spec.deterministic)}"
    editor.assign("randomness", f"dict({randomness})", after="env_cfg")
    if spec.tensorboard:
        editor.ensure_import("mmengine.visualization", "TensorboardVisBackend")
        editor.ensure_import("mmengine.visualization", "Visualizer")
        editor.assign(
            "visualizer",
            "dict(\n    type=Visualizer,\n    vis_backends=[dict(type=TensorboardVisBackend)],\n)",
            after="env_cfg",
        )
