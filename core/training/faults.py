"""What a failed run's log means: rules of training, and fixes as changes of the run's spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.errors import UserError
from core.jobs import reasons
from core.jobs.reasons import Fix, Rule, Table, by_hand, rule
from core.jobs.state import Reason
from core.paths import RunPaths
from core.training import checkpoints, health
from core.training.spec import DEFAULT_CONFIG, TrainSpec, default_warmup

_RESUME = Fix("resume from the newest checkpoint")


def of_run(params: Mapping[str, Any], run: RunPaths) -> Table:
    """The rules for a training run: fixes fit its settings, resuming is for those that can be."""
    try:
        spec = TrainSpec.from_dict(params)
    except UserError:  # a run of another version, or a command: fixes then fit the defaults
        return table(TrainSpec(dataset=""), resumable=False)
    found = checkpoints.scan(run.work, spec.accumulation)
    return table(spec, resumable=any(c.whole and c.step < spec.steps for c in found))


def table(spec: TrainSpec, *, resumable: bool) -> Table:
    """The rules, the specific before the general.

    Args:
        resumable: the run has a whole checkpoint before its end.
    """
    resume = (_RESUME,) if resumable else ()
    rules = (
        rule(
            Reason.OOM_HOST,
            r"\brank \d+ failed first: killed by SIGKILL",
            "The system killed one training process: most likely memory ran out.",
            *_smaller(spec),
        ),
        replace(reasons.OOM_GPU, fixes=_smaller_on_gpu(spec)),
        replace(reasons.OOM_HOST, fixes=_smaller(spec)),
        replace(reasons.DISK_FULL, fixes=_less_disk(spec)),
        rule(
            Reason.DIVERGED,
            rf"{health.DIVERGED}|loss is not a number|loss: nan\b|Function .* returned nan values",
            "The loss rose instead of falling, or is no longer a number.",
            *_calmer(spec),
        ),
        rule(
            Reason.COLLAPSED,
            health.COLLAPSED,
            "The model no longer writes what the base wrote: too much was changed at once.",
            *_calmer(spec),
        ),
        replace(reasons.NO_GPU, fixes=(_ON_CPU, *reasons.NO_GPU.fixes)),
        reasons.HUB_LOGIN,
        reasons.OFFLINE,
        rule(
            Reason.BAD_CONFIG,
            r"Failed to import \w+ from \S+ in ",
            "The config names something that XTuner does not have.",
            *_stock(spec),
        ),
        rule(
            Reason.BAD_DATA,
            r"Unable to find '.*'|FileNotFoundError: .*\.jsonl?\b",
            "A data file that the config names is not there.",
            *_data(spec),
        ),
        reasons.NO_MODEL,
        rule(
            Reason.BAD_CONFIG,
            r"KeyError: ['\"].* is not in the .*registry|is not in the .* registry"
            r"|SyntaxError|ConfigParsingError|unexpected keyword argument|NameError: name"
            r"|class `.*` in .* failed|has no attribute",
            "The config does not fit XTuner.",
            *_stock(spec),
        ),
        reasons.NO_LIBRARY,
        rule(
            Reason.BAD_DATA,
            r"DatasetGenerationError|JSONDecodeError|ArrowInvalid|NotImplementedError"
            r"|num_samples should be a positive integer|Should not have zero length"
            r"|max\(\) arg is an empty",
            "The training rows could not be read.",
            *_data(spec),
        ),
        rule(
            Reason.INCOMPLETE,
            r"\brank \d+ failed first: ",
            "One training process failed, and the others could not go on without it.",
            "read that process's traceback in the log",
            *resume,
            "start again",
        ),
        *_PROCESSES,
        rule(
            Reason.INCOMPLETE,
            r"ended without its last checkpoint",
            "XTuner stopped early and reported no error.",
            *resume,
            "read the log above its end",
            "start again",
        ),
    )
    again = (Fix("read the end of the log"), *resume, Fix("start again"))
    return Table(rules, memory=_smaller(spec), again=again)


_PROCESSES: tuple[Rule, ...] = (
    rule(
        Reason.KILLED_SIGNAL,
        r"NCCL.*(timeout|error)|Watchdog caught collective|ProcessGroupNCCL"
        r"|RendezvousConnectionError",
        "The training processes lost each other.",
        "look for the first traceback: one process usually failed before the others",
        "check that every node reaches the shown address and port",
        "set NCCL_DEBUG=INFO and start again",
    ),
    rule(
        Reason.BAD_CONFIG,
        r"Address already in use|EADDRINUSE",
        "Another program holds the port of the training processes.",
        "wait for the other run to end, or stop it",
        "set MASTER_PORT to a free port",
        "restart the machine if nothing answers for the port",
    ),
)
_ON_CPU = Fix(
    "train on the CPU, in float32, without DeepSpeed",
    {"deepspeed": None, "gpus": 1, "nodes": 1, "dtype": "float32"},
)


def _smaller(spec: TrainSpec) -> tuple[Fix, ...]:
    """Less memory, cheapest change first; the rows behind a step stay the same where they can."""
    fixes = []
    if spec.batch_size > 1:
        half = spec.batch_size // 2
        twice = -(-spec.batch_size * spec.accumulation // half)
        fixes.append(
            Fix(
                f"micro-batches of {half} rows, twice as many a step",
                {"batch_size": half, "accumulation": twice},
            )
        )
    if not spec.activation_checkpointing:
        slower = "recompute activations: less memory, about 29 % slower"
        fixes.append(Fix(slower, {"activation_checkpointing": True}))
    if spec.quantize == "none":
        fixes.append(Fix("quantize the base to NF4", {"quantize": "nf4"}))
    if spec.max_length > 128:
        half = spec.max_length // 2
        fixes.append(Fix(f"cut rows at {half} tokens", {"max_length": half}))
    if spec.lora_r > 8:
        fixes.append(Fix("LoRA rank 8", {"lora_r": 8, "lora_alpha": 16}))
    return (*fixes, Fix("a smaller base model"))


def _smaller_on_gpu(spec: TrainSpec) -> tuple[Fix, ...]:
    fixes = [*_smaller(spec)]
    if spec.deepspeed is None:
        offload = "DeepSpeed ZeRO-2 with the optimizer in host memory"
        fixes.insert(2, Fix(offload, {"deepspeed": "zero2_offload"}))
    if spec.batch_size == 1:
        fixes.insert(0, Fix("unload the chat model: it may hold GPU memory"))
    return tuple(fixes)


def _calmer(spec: TrainSpec) -> tuple[Fix, ...]:
    fixes = [Fix(f"a third of the learning rate: {spec.lr / 3:.1e}", {"lr": spec.lr / 3})]
    if spec.dtype == "float16":
        fixes.insert(0, Fix("compute in bfloat16: it cannot overflow here", {"dtype": "bfloat16"}))
    longer = min(max(2 * spec.warmup_steps, default_warmup(spec.steps)), spec.steps - 1)
    if longer > spec.warmup_steps:
        fixes.append(Fix(f"a warm-up of {longer} steps", {"warmup_steps": longer}))
    return (*fixes, Fix("look for rows with garbage in the dataset's check"))


def _less_disk(spec: TrainSpec) -> tuple[Fix, ...]:
    first, *others = reasons.DISK_FULL.fixes
    every = 2 * spec.checkpoint_every
    rarer = Fix(f"fewer checkpoints: every {every} steps", {"checkpoint_every": every})
    return (first, rarer, *others)


def _stock(spec: TrainSpec) -> tuple[Fix, ...]:
    fixes = []
    if spec.config_text is not None:
        fixes.append(Fix("go back to the form: drop the raw config text", {"config_text": None}))
    if spec.stock_config != DEFAULT_CONFIG:
        fixes.append(Fix(f"start from {DEFAULT_CONFIG}", {"stock_config": DEFAULT_CONFIG}))
    mend = "mend the line that the log names"
    return (*fixes, *by_hand(mend, "compare the config with its stock file on the Train page"))


def _data(spec: TrainSpec) -> tuple[Fix, ...]:
    twice = {"max_length": 2 * spec.max_length}
    return (
        Fix("open the dataset's check: it names the row and the field"),
        Fix("longer rows: no supervised token is left after the cut", twice),
        Fix("build the dataset again"),
    )
