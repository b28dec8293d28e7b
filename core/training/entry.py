"""Run XTuner's own train in this process: repairs, our hooks, its ``main``.

Also the program that torchrun starts on several GPUs: ``python -m core.training.entry RUN_DIR``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import fsio, paths
from core.conversation import OnProgress
from core.jobs import child
from core.models import catalog, trust
from core.models.data_only import data_only
from core.paths import RunPaths
from core.training import compat, deepspeed, launch
from core.training.health import Health
from core.training.spec import TrainSpec

if TYPE_CHECKING:
    from core.training.stopping import Due


def xtuner_argv(spec: TrainSpec, config: Path, work: Path, resume: Path | None = None) -> list[str]:
    """Arguments after ``xtuner train``."""
    argv = [str(config), "--work-dir", str(work), "--seed", str(spec.seed)]
    if spec.deepspeed:
        argv += ["--deepspeed", str(work / deepspeed.FILE)]
    if spec.world_size > 1:
        argv += ["--launcher", "pytorch"]
    if resume is not None:
        argv += ["--resume", str(resume)]
    return argv


def ready() -> None:
    """Import what training takes, before its settings are known: most of its start."""
    _set_first()
    compat.apply()
    from xtuner.tools import train as xtuner_train  # noqa: F401

    from core.inference import imports
    from core.training import hooks, look  # noqa: F401

    imports.ready()


def train(
    spec: TrainSpec,
    config: Path,
    work: Path,
    *,
    resume: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train here and now; returns what our hooks counted.

    Returns:
        ``lr``: the rate each optimizer step of this call applied; ``tokens``: real tokens seen;
        ``figures``: [{"step", "values"}] of its looks.
    """
    prepare_environment(spec, work)
    compat.apply()
    from xtuner.tools import train as xtuner_train

    from core.training import hooks
    from core.training.step.hook import StepHook
    from core.training.stopping import Due, StopHook

    health = Health(spec.rows_per_step)
    metrics = hooks.MetricsHook(spec.accumulation, spec.steps, health, on_progress)
    due = Due(spec.checkpoint_every * spec.accumulation, spec.accumulation)
    ours: list[Any] = [
        metrics,
        StepHook(spec),
        StopHook(due),
        hooks.RandomStateHook(work, due),
        hooks.RecordHook(work, due),
    ]
    if spec.recompute_above and not spec.activation_checkpointing:
        ours.append(hooks.RecomputeHook(spec.recompute_above))
    ours += _looks(spec, work / "samples.jsonl", health, due, on_progress)
    argv = ["xtuner-train", *xtuner_argv(spec, config, work, resume)]
    with _argv(argv), _registered(ours), data_only():
        xtuner_train.main()
    looks = [one for hook in ours if isinstance(hook, hooks.LookHook) for one in hook.found]
    return {
        "lr": metrics.lr,
        "tokens": metrics.tokens,
        "figures": [{"step": one.step, "values": one.to_values()} for one in looks],
    }


def _looks(
    spec: TrainSpec, out: Path, health: Health, due: Due, on_progress: OnProgress | None
) -> Iterator[Any]:
    """The hooks that look at the model at each checkpoint."""
    from core.inference import load
    from core.training import hooks, look

    model = catalog.resolve(spec.model)
    tokenizer = load.load_tokenizer(model.path)
    asked = look.prepare(Path(spec.dataset), model, tokenizer)
    if not asked.empty:
        yield hooks.LookHook(tokenizer, asked, health, due, on_progress)
    if spec.evaluation_inputs:
        yield hooks.SampleHook(tokenizer, spec.evaluation_inputs, spec.system, due, out)


def prepare_environment(spec: TrainSpec, work: Path) -> None:
    """Set what libraries read when they are first imported or used."""
    _set_first()
    if spec.compile_step:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.cache_dir() / "compiled"))
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Rows are tokenized in a second; a cache beyond this run could only be stale.
    cache = work / "datasets_cache"
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    if "datasets" in sys.modules:  # it was imported before there was a run (``ready``)
        config = sys.modules["datasets"].config
        config.HF_DATASETS_CACHE = cache
        config.DOWNLOADED_DATASETS_PATH = cache / "downloads"
        config.EXTRACTED_DATASETS_PATH = cache / "downloads" / "extracted"
    if spec.deepspeed and spec.world_size == 1:
        # Without these DeepSpeed looks for MPI to find out about one process.
        for name, value in (
            ("RANK", "0"),
            ("WORLD_SIZE", "1"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "29541"),
            ("LOCAL_RANK", "0"),
        ):
            os.environ.setdefault(name, value)


def _set_first() -> None:
    # XTuner's tutorial asks the user for these two; MKL beside OpenMP aborts without them.
    os.environ.setdefault("MKL_SERVICE_FORCE_INTEL", "1")
    os.environ.setdefault("MKL_THREADING_LAYER", "GNU")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def _argv(argv: Sequence[str]) -> Iterator[None]:
    old = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = old


@contextmanager
def _registered(ours: Sequence[Any]) -> Iterator[None]:
    """Add our hooks to the runner that XTuner builds, so that the config stays pure XTuner."""
    from mmengine.runner import Runner
    from mmengine.runner._flexible_runner import FlexibleRunner

    originals = {cls: cls.train for cls in (Runner, FlexibleRunner)}

    def with_hooks(original: Any) -> Any:
        def run(self: Any) -> Any:
            for hook in ours:
                self.register_hook(hook)
            return original(self)

        return run

    for cls, original in originals.items():
        cls.train = with_hooks(original)
    try:
        yield
    finally:
        for cls, original in originals.items():
            cls.train = original


def main() -> None:
    """Entry of a torchrun worker: the run's record says what to do."""
    child.keep_secrets()
    trust.permit()
    run = RunPaths(Path(sys.argv[1]))
    try:
        record = fsio.read_json(run.work / "training.json")
        counted = train(
            TrainSpec.from_dict(record["spec"]),
            run.config,
            run.work,
            resume=Path(record["resume"]) if record["resume"] else None,
            on_progress=child.Reporter() if launch.watched() else None,
        )
    except Exception as error:
        launch.write_failure(run.work, error)
        raise
    if launch.watched():
        fsio.write_json(run.work / "counted.json", counted)


if __name__ == "__main__":
    main()
