"""Repairs that XTuner 0.2.0 and mmengine 0.10.7 need beside today's libraries, and bitsandbytes.

One function a repair, each with its upstream reason. ``apply`` is called in the training process
only, before XTuner's train. Nothing here changes what XTuner computes, except where the docstring
says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import fsio
from core.models import families, nf4, trust
from core.models.device import cpu_has_bf16

_applied = False
#: A file's name on ext4, XFS, Btrfs and APFS.
NAME_BYTES = 255


def apply() -> None:
    """Apply every repair once."""
    global _applied
    if _applied:
        return
    for repair in REPAIRS:
        repair()
    _applied = True


def importable() -> None:
    """XTuner imports ``transformers.utils.is_safetensors_available``, which transformers 5 dropped.

    safetensors is a requirement of transformers 5, so the answer is always yes. Call it before the
    first import of an XTuner module; ``apply`` does.
    """
    import transformers.utils

    transformers.utils.is_safetensors_available = lambda: True  # type: ignore[attr-defined]


def own_architectures() -> None:
    """The Auto classes load what transformers itself does not know: InternLM2."""
    from core.models import internlm2

    internlm2.register()


def cpu_bf16_query() -> None:
    """XTuner asks ``torch.cpu.is_bf16_supported``, which torch does not have.

    ``xtuner.utils.device.get_torch_device`` returns the ``torch.cpu`` module on a machine without
    a GPU, and ``SupervisedFinetune._prepare_for_flash_attn`` calls it as if it were torch.cuda.
    """
    import torch

    if not hasattr(torch.cpu, "is_bf16_supported"):
        torch.cpu.is_bf16_supported = cpu_has_bf16  # type: ignore[attr-defined]


def bos_of_template() -> None:
    """XTuner prepends ``tokenizer.bos_token_id`` to every row, also None, also when it is unused.

    ``encode_fn`` adds it to a list, so None raises TypeError; and a BOS that the chat template
    does not write (Qwen, SmolLM2) would be trained on but never fed in chat. The chat template
    decides.
    """
    from xtuner.dataset import utils

    original = utils.get_bos_eos_token_ids

    def writes_bos(tokenizer: Any) -> bool:
        if not tokenizer.bos_token or not tokenizer.chat_template:
            return False
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        return str(text).startswith(tokenizer.bos_token)

    def get_bos_eos_token_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
        bos, eos = original(tokenizer)
        return (bos if bos and writes_bos(tokenizer) else []), eos or []

    utils.get_bos_eos_token_ids = get_bos_eos_token_ids


def row_lengths_as_list() -> None:
    """datasets >= 4 returns a lazy Column for ``dataset["length"]``; XTuner's sampler wants a list.

    ``LengthGroupedSampler`` asserts ``isinstance(self.length, (list, tuple))``.
    """
    from xtuner.dataset import huggingface

    original = huggingface.process

    @functools.wraps(original)
    def process(*args: Any, **kwargs: Any) -> Any:
        dataset = original(*args, **kwargs)
        dataset.length = list(dataset["length"])
        return dataset

    huggingface.process = process


def cut_replies_stay_open() -> None:
    """XTuner ends every reply with the turn end; it has no word for a reply that goes on.

    A rehearsal row with ``cut`` holds the first tokens of what the base says. With a turn end
    behind them the model would learn to stop there, so the suffix is taken off again.
    """
    # The package has a function of the same name, which hides the module from `from ... import`.
    module: Any = importlib.import_module("xtuner.dataset.map_fns.template_map_fn")
    original = module.template_map_fn

    @functools.wraps(original)
    def template_map_fn(example: Any, template: Any) -> Any:
        mapped = original(example, template)
        if example.get("cut") and mapped["conversation"]:
            last = mapped["conversation"][-1]
            last["output"] = last["output"].removesuffix(template.get("SUFFIX", ""))
            last["sep"] = ""
        return mapped

    module.template_map_fn = template_map_fn


def config_paths_are_no_code() -> None:
    """mmengine writes a config's own path into code that it compiles, between double quotes.

    A quote in a folder's name would end the text there. The path is only shown in messages.
    """
    from mmengine.config import config, utils

    whole: Any = config._gather_abs_import_lazyobj

    class Transformer(utils.ImportTransformer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.filename: Any = str(vars(self)["filename"]).replace('"', "'")

    def gather(tree: Any, filename: Any = None) -> Any:
        return whole(tree, filename=str(filename).replace('"', "'"))

    config.ImportTransformer = Transformer
    config._gather_abs_import_lazyobj = gather


def configs_are_formatted_once() -> None:
    """mmengine formats the whole config by yapf five times at the start and at each checkpoint.

    ``Config.pretty_text`` takes 0.3 s of a core. The same text comes out the same.
    """
    from mmengine.config import config

    original = config.FormatCode
    seen: dict[str, Any] = {}

    def formatted(text: str, **options: Any) -> Any:
        if text not in seen:
            seen[text] = original(text, **options)
        return seen[text]

    config.FormatCode = formatted


def quiet_data_restart() -> None:
    """mmengine's endless data iterator draws from the global random state and sleeps 2 s a pass.

    ``iter(DataLoader)`` draws a worker seed from torch's global generator. After a resume the
    skipped passes would draw again, and dropout would go on from another state. The sleep guards
    worker processes; without workers it only costs time.
    """
    import torch
    from mmengine.runner import loops

    def next_batch(self: Any) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            self._epoch += 1
            sampler = (
                self._dataloader.batch_sampler.sampler
                if not hasattr(self._dataloader.sampler, "set_epoch")
                else self._dataloader.sampler
            )
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self._epoch)
            state = torch.get_rng_state()
            self._iterator = iter(self._dataloader)
            torch.set_rng_state(state)
            return next(self._iterator)

    loops._InfiniteDataloaderIterator.__next__ = next_batch


def atomic_checkpoints() -> None:
    """mmengine writes a checkpoint in place; a kill or a full disk leaves a torn file of that name.

    ``LocalBackend.put`` opens the final path. Written beside it and renamed, a checkpoint that has
    its name is whole.
    """
    from mmengine.fileio.backends.local_backend import LocalBackend

    def put(self: Any, obj: Any, filepath: str | Path) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                fsio.as_others_are(file.fileno())
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    LocalBackend.put = put


def only_trusted_code() -> None:
    """``trust_remote_code=True`` holds for code that was trusted here, whoever says it.

    XTuner hard-codes it for the model's config (``SupervisedFinetune._dispatch_lm_model_cfg``), its
    converter and a config edited by hand may say it too.
    """
    from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

    modules: tuple[Any, ...] = (auto_factory, configuration_auto, tokenization_auto)
    original = modules[1].resolve_trust_remote_code

    def resolve(asked: Any, name: Any, local: bool, remote: bool, *args: Any, **kwargs: Any) -> Any:
        if asked and remote:
            asked = trust.allow(Path(name))
        return original(asked, name, local, remote, *args, **kwargs)

    for module in modules:
        module.resolve_trust_remote_code = resolve


def loss_on_supervised_tokens() -> None:
    """Compute logits only where there is a label: the same loss for less work.

    XTuner lets the model compute vocabulary-wide logits for every token of every row, prompt and
    padding included, then ignores those whose label is -100. The mean over the others is the same
    number, up to the order of summation. Applies to models whose logits are the output head's
    output and nothing more; others (Gemma 2 caps its logits) take XTuner's own path.
    """
    import torch
    from xtuner.model import sft
    from xtuner.parallel.sequence import get_sequence_parallel_world_size

    from core.inference.fused import inner_model

    original = sft.SupervisedFinetune.compute_loss

    def compute_loss(self: Any, data: Any, data_samples: Any = None) -> Any:
        llm = inner_model(self.llm)
        head = llm.get_output_embeddings()
        if head is None or not _has_plain_head(llm) or get_sequence_parallel_world_size() > 1:
            return original(self, data, data_samples)
        labels = data["labels"]
        wanted = (labels[:, 1:] != -100).nonzero(as_tuple=True)

        # The head is called by the model itself, under its own casts; it gets the rows it needs.
        def keep_supervised(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][wanted[0], wanted[1]],)

        handle = head.register_forward_pre_hook(keep_supervised)
        try:
            outputs = self.llm(**{k: v for k, v in data.items() if k != "labels"})
        finally:
            handle.remove()
        targets = labels[wanted[0], wanted[1] + 1]
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), targets)
        return {"loss": loss}

    sft.SupervisedFinetune.compute_loss = compute_loss


def _has_plain_head(llm: Any) -> bool:
    return families.of(getattr(llm.config, "model_type", "")).plain_head


def processes_without_gpu() -> None:
    """mmengine gives each process of a launcher a CUDA device, also where there is none.

    ``_init_dist_pytorch`` calls ``torch.cuda.set_device``, which raises. And DeepSpeed compiles C++
    for minutes to let processes on CPUs talk through shared memory; gloo does without.
    """
    import torch

    if torch.cuda.is_available():
        return
    torch.cuda.set_device = lambda device: None
    ops = importlib.import_module("deepspeed.ops")
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def same_start_under_deepspeed() -> None:
    """Under DeepSpeed mmengine builds the model after the data, which has drawn random numbers.

    Without it the model comes first. Seeded anew, LoRA starts with the same values in both.
    """
    from mmengine._strategy import DeepSpeedStrategy
    from mmengine.runner.utils import set_random_seed

    original = DeepSpeedStrategy.build_model

    def build_model(self: Any, model: Any) -> Any:
        set_random_seed(self.seed)
        return original(self, model)

    DeepSpeedStrategy.build_model = build_model


def lock_names_by_bytes() -> None:
    """datasets shortens a lock's name above 255 characters; a file system counts bytes.

    The name is the whole path of the cache, so a workspace in a folder with a long Chinese name
    could not train ("File name too long"). Shortened by ``hash``, processes had different locks.
    """
    from datasets.utils._filelock import FileLock

    def short(cls: Any, path: str) -> str:
        folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
        if len(os.fsencode(name)) > NAME_BYTES:
            name = hashlib.sha256(os.fsencode(name)).hexdigest() + ".lock"
        return os.path.join(folder, name)

    FileLock.hash_filename_if_too_long = classmethod(short)


#: In order of application.
REPAIRS: tuple[Callable[[], None], ...] = (
    importable,
    lock_names_by_bytes,
    own_architectures,
    cpu_bf16_query,
    nf4.keep_unpacked,
    bos_of_template,
    row_lengths_as_list,
    config_paths_are_no_code,
    configs_are_formatted_once,
    cut_replies_stay_open,
    quiet_data_restart,
    atomic_checkpoints,
    only_trusted_code,
    processes_without_gpu,
    same_start_under_deepspeed,
    loss_on_supervised_tokens,
)
