"""The stages from a persona to a scored model, each a job in the workspace.

They are started with what the pages start, so they have the same preflight, wait for the same
device, and are listed on every page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from core.evaluation.plan import Size
from core.evaluation.score_job import ScoreSpec
from core.evaluation.sweep_job import SweepSpec
from core.jobs import api
from core.models.device import describe
from core.paths import RunPaths
from core.records import Record
from core.training import lifecycle

if TYPE_CHECKING:
    from core.data.build import DatasetSpec

Stage = Literal["dataset", "train", "sweep", "merge", "evaluate"]
STAGES: tuple[Stage, ...] = ("dataset", "train", "sweep", "merge", "evaluate")
#: The kind of job that each stage is.
KIND: dict[Stage, str] = {
    "dataset": "generate",
    "train": "train",
    "sweep": "sweep",
    "merge": "merge",
    "evaluate": "evaluate",
}


class TuneSpec(Record):
    """What was asked for.

    Args:
        persona: the pack (YAML). ``overrides``: its slots, as ``load_persona`` takes them.
        training, dataset: settings of TrainSpec and DatasetSpec that differ from the defaults.
        size: of the scorecard.
    """

    called: ClassVar[str] = "tune"

    persona: str
    overrides: dict[str, str] = Field(default_factory=dict)
    model: str = "bundled"
    seed: int = 0
    training: dict[str, Any] = Field(default_factory=dict)
    dataset: dict[str, Any] = Field(default_factory=dict)
    size: Size = "quick"


class Made(Record):
    """What is known of one stage: its run's folder, and once it is over, what came of it."""

    run: str
    seconds: float | None = None
    result: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The run's id, by which other runs name it as their parent."""
        return Path(self.run).name

    def __getitem__(self, key: str) -> Any:
        """A part of the result; for stages that are over."""
        assert self.result is not None, f"{self.id} is not over"
        return self.result[key]


#: The part of a stage's result that later stages and the user need.
PRODUCT: dict[Stage, str] = {
    "dataset": "dataset",
    "train": "final",
    "sweep": "checkpoint",
    "merge": "merged",
    "evaluate": "scorecard",
}


def start(stage: Stage, spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    """Start a stage as a job.

    Args:
        made: the stages before it.

    Raises:
        UserError: what the kind's own check finds.
    """
    return _START[stage](spec, made)


def dataset_spec(spec: TuneSpec) -> DatasetSpec:
    """The dataset that a tune asks for."""
    from core.data.build import DatasetSpec

    return DatasetSpec.from_dict(
        {
            "persona_path": spec.persona,
            "overrides": spec.overrides,
            "model": spec.model,
            "seed": spec.seed,
            **spec.dataset,
        }
    )


def _dataset(spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    from core.data import store
    from core.data.generate_job import Spec
    from core.persona.persona import load_persona

    name = store.suggested_name(load_persona(Path(spec.persona), spec.overrides))
    return api.launch(Spec(spec=dataset_spec(spec), name=name), name=f"dataset {name}")


def _train(spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    from core.training import defaults
    from core.training.preflight import preflight

    dataset, device = made["dataset"]["dataset"], describe()
    asked = {"seed": spec.seed, **spec.training}
    chosen, _ = defaults.choose(dataset, spec.model, device, asked)
    return lifecycle.start_training(preflight(chosen, device), name=made["dataset"]["name"])


def _sweep(spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    """Let the few checkpoints speak that the figures of training leave, the likeliest first.

    It ends at the first that passes every gate, so that it mostly costs one checkpoint's replies.
    """
    from core.evaluation import choice

    train = made["train"]
    sweep = SweepSpec(
        run=train.run,
        base=spec.model,
        dataset=made["dataset"]["dataset"],
        steps=tuple(choice.candidates(RunPaths(Path(train.run)))),
        stop_when_passed=True,
        then=spec.size,
    )
    return api.launch(sweep, name=f"sweep {made['dataset']['name']}", parent=train.id)


def _merge(spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    from core.weights.merge_job import MergeSpec

    train = made["train"]
    merge = MergeSpec(
        base=spec.model,
        checkpoint=made["sweep"]["checkpoint"],
        config=train["config"],
        dataset=made["dataset"]["dataset"],
    )
    return api.launch(merge, name=made["dataset"]["name"], parent=train.id)


def _evaluate(spec: TuneSpec, made: Mapping[Stage, Made]) -> RunPaths:
    score = ScoreSpec(
        base=spec.model,
        merged=made["merge"]["merged"],
        dataset=made["dataset"]["dataset"],
        size=spec.size,
    )
    return api.launch(score, name=f"evaluate {made['dataset']['name']}", parent=made["merge"].id)


_START: dict[Stage, Callable[[TuneSpec, Mapping[Stage, Made]], RunPaths]] = {
    "dataset": _dataset,
    "train": _train,
    "sweep": _sweep,
    "merge": _merge,
    "evaluate": _evaluate,
}
