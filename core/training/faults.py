"""What a failed run's log means: one reason, one cause in words, ranked fixes as spec changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from core.training.spec import TrainSpec, default_warmup

#: How much of a log is looked at, from its end.
TAIL = 64_000


@dataclass(frozen=True)
class Fix:
    """Something to try. ``overrides`` are TrainSpec fields of the new run; empty: by hand."""

    label: str
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """``reason`` is one of the run states' reasons; ``line`` is the log line that gave it away."""

    reason: str
    cause: str
    fixes: list[Fix]
    line: str = ""


@dataclass(frozen=True)
class _Rule:
    reason: str
    pattern: re.Pattern[str]
    cause: str
    fixes: Callable[[TrainSpec], list[Fix]]


def _smaller(spec: TrainSpec) -> list[Fix]:
    """Less memory, cheapest change first; the rows behind a step stay the same where they can."""
    fixes = []
    if spec.batch_size > 1:
        half = spec.batch_size // 2
        fixes.append(
            Fix(
                f"micro-batches of {half} rows, twice as many a step",
                {
                    "batch_size": half,
                    "accumulation": -(-spec.batch_size * spec.accumulation // half),
                },
            )
        )
    if not spec.activation_checkpointing:
        fixes.append(
            Fix(
                "recompute activations: less memory, about 29 % slower",
                {"activation_checkpointing": True},
            )
        )
    if spec.quantize == "none":
        fixes.append(Fix("quantize the base to NF4", {"quantize": "nf4"}))
    if spec.max_length > 128:
        fixes.append(
            Fix(f"cut rows at {spec.max_length // 2} tokens", {"max_length": spec.max_length // 2})
        )
    if spec.lora_r > 8:
        fixes.append(Fix("LoRA rank 8", {"lora_r": 8, "lora_alpha": 16}))
    fixes.append(Fix("a smaller base model"))
    return fixes


def _smaller_on_gpu(spec: TrainSpec) -> list[Fix]:
    fixes = _smaller(spec)
    if spec.deepspeed is None:
        fixes.insert(
            2,
            Fix(
                "DeepSpeed ZeRO-2 with the optimizer in host memory", {"deepspeed": "zero2_offload"}
            ),
        )
    return (
        [Fix("unload the chat model: it may hold GPU memory"), *fixes]
        if spec.batch_size == 1
        else fixes
    )


def _calmer(spec: TrainSpec) -> list[Fix]:
    fixes = [Fix(f"a third of the learning rate: {spec.lr / 3:.1e}", {"lr": spec.lr / 3})]
    if spec.dtype == "float16":
        fixes.insert(0, Fix("compute in bfloat16: it cannot overflow here", {"dtype": "bfloat16"}))
    longer = min(max(2 * spec.warmup_steps, default_warmup(spec.steps)), spec.steps - 1)
    if longer > spec.warmup_steps:
        fixes.append(Fix(f"a warm-up of {longer} steps", {"warmup_steps": longer}))
    fixes.append(Fix("look for rows with garbage in the dataset's check"))
    return fixes


def _on_cpu(spec: TrainSpec) -> list[Fix]:
    return [
        Fix(
            "train on the CPU, in float32, without DeepSpeed",
            {"deepspeed": None, "gpus": 1, "nodes": 1, "dtype": "float32"},
        ),
        Fix("check that nvidia-smi lists the GPU, and that torch was installed with CUDA"),
        Fix("run on a machine with a GPU"),
    ]


def _less_disk(spec: TrainSpec) -> list[Fix]:
    return [
        Fix("free disk space: delete old runs in the list, then start again"),
        Fix(
            f"fewer checkpoints: every {2 * spec.checkpoint_every} steps",
            {"checkpoint_every": 2 * spec.checkpoint_every},
        ),
        Fix("move the workspace: set PERSONA_HOME to a folder on a larger disk"),
    ]


def _stock(spec: TrainSpec) -> list[Fix]:
    fixes = (
        [Fix("go back to the form: drop the raw config text", {"config_text": None})]
        if spec.config_text is not None
        else []
    )
    from core.training.spec import DEFAULT_CONFIG

    if spec.stock_config != DEFAULT_CONFIG:
        fixes.append(Fix(f"start from {DEFAULT_CONFIG}", {"stock_config": DEFAULT_CONFIG}))
    return [
        *fixes,
        Fix("mend the line that the log names"),
        Fix("compare the config with its stock file on the Train page"),
    ]


def _data(spec: TrainSpec) -> list[Fix]:
    return [
        Fix("open the dataset's check: it names the row and the field"),
        Fix(
            "longer rows: no supervised token is left after the cut",
            {"max_length": 2 * spec.max_length},
        ),
        Fix("build the dataset again"),
    ]


def _by_hand(*labels: str) -> Callable[[TrainSpec], list[Fix]]:
    return lambda spec: [Fix(label) for label in labels]


def _rule(reason: str, pattern: str, cause: str, fixes: Callable[[TrainSpec], list[Fix]]) -> _Rule:
    return _Rule(reason, re.compile(pattern, re.IGNORECASE), cause, fixes)


#: First match wins, so the specific comes before the general.
_RULES = (
    _rule(
        "oom_gpu",
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
        r"|HIP out of memory",
        "The GPU ran out of memory.",
        _smaller_on_gpu,
    ),
    _rule(
        "oom_host",
        r"DefaultCPUAllocator: (can't allocate|not enough) memory|MemoryError"
        r"|Cannot allocate memory|std::bad_alloc",
        "The machine ran out of memory.",
        _smaller,
    ),
    _rule(
        "disk_full",
        r"No space left on device|Disk quota exceeded|ENOSPC"
        r"|not enough disk space|cannot write .*bytes needed",
        "The disk is full.",
        _less_disk,
    ),
    _rule(
        "nan_loss",
        r"loss is not a number|loss: nan\b|Function .* returned nan values",
        "The loss is no longer a number.",
        _calmer,
    ),
    _rule(
        "no_gpu",
        r"Found no NVIDIA driver|No CUDA GPUs are available|Torch not compiled with "
        r"CUDA|CUDA driver version is insufficient|invalid device ordinal"
        r"|no kernel image is available",
        "The run needs a GPU that torch does not see.",
        _on_cpu,
    ),
    _rule(
        "killed_signal",
        r"NCCL.*(timeout|error)|Watchdog caught collective|"
        r"ProcessGroupNCCL|RendezvousConnectionError",
        "The training processes lost each other.",
        _by_hand(
            "look for the first traceback: one process usually failed before the others",
            "check that every node reaches node 0 at the shown address and port",
            "set NCCL_DEBUG=INFO and start again",
        ),
    ),
    _rule(
        "bad_config",
        r"Address already in use|EADDRINUSE",
        "Another program holds the port of the training processes.",
        _by_hand(
            "wait for the other run to end, or stop it",
            "set MASTER_PORT to a free port",
            "restart the machine if nothing answers for the port",
        ),
    ),
    _rule(
        "import_error",
        r"GatedRepoError|401 Client Error|403 Client Error|gated repo",
        "The model hub asks for a login, or for its licence to be accepted.",
        _by_hand(
            "accept the licence on the model's page",
            "log in: hf auth login",
            "download the model elsewhere and give its folder",
        ),
    ),
    _rule(
        "import_error",
        r"OfflineModeIsEnabled|LocalEntryNotFoundError|"
        r"couldn't connect to .*huggingface|Failed to resolve|Name or service not known",
        "A file of the model had to come from the network, and it could not.",
        _by_hand(
            "choose the bundled model or a local folder",
            "check the network and start again",
            "unset HF_HUB_OFFLINE if you want the download",
        ),
    ),
    _rule(
        "bad_config",
        r"Failed to import \w+ from \S+ in ",
        "The config names something that XTuner does not have.",
        _stock,
    ),
    _rule(
        "bad_data",
        r"Unable to find '.*'|FileNotFoundError: .*\.jsonl?\b",
        "A data file that the config names is not there.",
        _data,
    ),
    _rule(
        "bad_config",
        r"Can't load the (configuration|model|tokenizer)|"
        r"is not a local folder and is not a valid model identifier"
        r"|does not appear to have a file named",
        "The base model cannot be loaded.",
        _by_hand(
            "choose the model again: its folder moved or is not whole",
            "choose the bundled model",
            "complete the model's download",
        ),
    ),
    _rule(
        "bad_config",
        r"KeyError: ['\"].* is not in the .*registry|is not in the .* registry"
        r"|SyntaxError|ConfigParsingError|unexpected keyword argument|NameError: name"
        r"|class `.*` in .* failed|has no attribute",
        "The config does not fit XTuner.",
        _stock,
    ),
    _rule(
        "import_error",
        r"ModuleNotFoundError|ImportError|cannot import name",
        "A library is missing, or has a version that does not fit.",
        _by_hand(
            "install again: make run, or pip install -r requirements.txt",
            "look at the last ImportError line for the library's name",
            "use a fresh virtual environment",
        ),
    ),
    _rule(
        "bad_data",
        r"DatasetGenerationError|JSONDecodeError|ArrowInvalid|NotImplementedError"
        r"|num_samples should be a positive integer|Should not have zero length"
        r"|max\(\) arg is an empty",
        "The training rows could not be read.",
        _data,
    ),
    _rule(
        "incomplete",
        r"ended without its last checkpoint",
        "XTuner stopped early and reported no error.",
        _by_hand(
            "resume from the newest whole checkpoint", "read the log above its end", "start again"
        ),
    ),
)


def diagnose(
    text: str,
    *,
    returncode: int | None = None,
    stop_requested: bool = False,
    params: Mapping[str, Any] | None = None,
) -> Fault:
    """The most likely reason why a training child ended, from the end of its log.

    Args:
        text: the log, or its tail.
        returncode: of the child; negative means a signal, as in subprocess.
        params: the run's TrainSpec as a dict, so that fixes fit it.
    """
    spec = _spec(params)
    tail = text[-TAIL:]
    if stop_requested:
        return Fault(
            "user_stop", "The run was stopped as asked.", [Fix("resume from the newest checkpoint")]
        )
    for rule in _RULES:
        for match in [*rule.pattern.finditer(tail)][-1:]:  # the last one is the exception itself
            line = tail[tail.rfind("\n", 0, match.start()) + 1 :].split("\n", 1)[0]
            return Fault(rule.reason, rule.cause, rule.fixes(spec)[:3], line.strip()[:400])
    if returncode == -9:
        # The kernel's own log is not readable by a plain user, so this is a likelihood.
        return Fault(
            "oom_host",
            "The system killed the process: most likely memory ran out.",
            _smaller(spec)[:3],
        )
    if returncode is not None and returncode < 0:
        return Fault(
            "killed_signal",
            f"The process was ended by signal {-returncode}.",
            [
                Fix("resume from the newest checkpoint"),
                Fix("start again"),
                Fix("see who sent the signal: a logout, a scheduler, another program"),
            ],
        )
    return Fault(
        "incomplete",
        "The process ended without saying why.",
        [
            Fix("read the end of the log"),
            Fix("resume from the newest checkpoint"),
            Fix("start again"),
        ],
        _last_line(tail),
    )


def _spec(params: Mapping[str, Any] | None) -> TrainSpec:
    try:
        return TrainSpec.from_dict(params or {"dataset": ""})
    except UserError:  # a run of another version: fixes then fit the defaults
        return TrainSpec("")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:400] if lines else ""
