"""The Train page as a user sees it: nothing yet, running, failed, many runs, a new run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core import fsio
from core.conversation import Conversation
from core.jobs import api
from core.jobs.journal import Journal
from core.jobs.state import State
from core.paths import REPO, DatasetPaths, RunPaths
from core.text.intervals import Rate
from core.training import drafts, history, lifecycle, lineage
from core.training.checkpoints import Checkpoint
from core.training.drafts import FormDraft
from core.training.figures import Figures, Margin

ENTRY = REPO / "streamlit_app.py"
_TRAINER = REPO / "tests" / "fakes" / "trainer.py"


def open_page(**query: str) -> AppTest:
    """From the entry file, as a visitor comes; page links need its navigation."""
    app = AppTest.from_file(str(ENTRY), default_timeout=120).run()
    app.switch_page("pages/2_Train.py")
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def texts(app: AppTest) -> str:
    """Everything in words on the page."""
    assert not app.exception, [e.value for e in app.exception]
    kinds = ("title", "caption", "markdown", "info", "warning", "error", "success", "code")
    return "\n".join(str(e.value) for kind in kinds for e in getattr(app, kind))


def ended(
    kind: str,
    state: State,
    reason: str,
    *,
    name: str = "kai",
    log: str = "",
    returncode: int = 1,
    **params: object,
) -> RunPaths:
    """A run directory as a supervisor leaves it."""
    run = api.create(kind, params, name=name, argv=["true"] if kind == "command" else ())
    run.log.write_text(log)
    fsio.write_json(run.supervisor, {"schema": 1, "boot_id": "x", "monotonic": 0.0})
    error = None
    if state is State.FAILED:
        error = {"what": f"it failed: {log}", "why": "because", "fix": "mend it"}
    fsio.write_json(
        run.exit,
        {
            "schema": 1,
            "state": state,
            "reason": reason,
            "elapsed": 90.0,
            "returncode": returncode,
            "ended": 0.0,
            "error": error,
        },
    )
    with run.metrics.open("w") as file:
        for step in range(1, 51):
            file.write(
                json.dumps(
                    {
                        "type": "metric",
                        "t": step,
                        "step": step,
                        "max_steps": 50,
                        "loss": 3 / step,
                        "lr": 1e-3,
                        "tokens_per_s": 165.0,
                        "memory_bytes": 1.5e9,
                        "grad_norm": 1.0,
                    }
                )
                + "\n"
            )
    return run


def dataset(workspace: Path, name: str = "kai") -> Path:
    at = DatasetPaths(workspace / "datasets" / name)
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Who are you, {i}?"},
                {"role": "assistant", "content": "I am Kai."},
            ],
            "identity",
        )
        for i in range(40)
    ]
    fsio.write_jsonl(at.train, (row.to_row() for row in rows))
    fsio.write_json(at.manifest, {"schema": 1, "rows": len(rows)})
    return at.root


def test_nothing_yet_says_what_to_do(workspace: Path) -> None:
    app = open_page()
    assert "There is no dataset yet" in texts(app)
    assert not [b for b in app.button if b.label == "Start"]
    assert [b.label for b in app.button if b.key.startswith("next_")] == ["Build the dataset"]
    for view in ("watch", "history"):
        app.segmented_control(key="train_view").set_value(view).run()
        assert "New run" in texts(app) and len(app.info) == 1


def test_a_running_run_is_shown_and_stopped(workspace: Path) -> None:
    folder = workspace / "runs" / "fake"
    run = api.create(
        "command",
        {},
        name="fake",
        run_dir=folder,
        argv=[sys.executable, str(_TRAINER), str(folder), "--steps", "10000"],
    )
    api.start(run)
    try:
        app = open_page()  # a run is alive, so the page opens on it
        assert app.segmented_control(key="train_view").value == "watch"
        assert "running" in texts(app)
        app.button(key="train_stop").click().run()
        api.wait(run)
        app.run()
        assert "Stopped by you" in texts(app)
        assert not [b for b in app.button if b.label == "Stop"]
    finally:
        api.stop(run, force=True)


def test_a_failed_run_in_words_with_fixes(workspace: Path) -> None:
    root = dataset(workspace)
    run = ended(
        "train",
        State.FAILED,
        "oom_gpu",
        log="CUDA out of memory. Tried to allocate",
        dataset=str(root),
        batch_size=8,
    )
    shown = texts(app := open_page(run=run.root.name))
    assert "it failed: CUDA out of memory" in shown and "**Fix:** mend it" in shown
    assert "Failed: out of GPU memory" in shown and "micro-batches of 4 rows" in shown
    assert len([b for b in app.button if b.label == "New run with this"]) == 3
    assert {m.label for m in app.metric} >= {"Loss", "Learning rate", "Tokens per second", "Memory"}


def test_its_settings_can_be_used_again(workspace_with_model: Path) -> None:
    root = dataset(workspace_with_model)
    run = ended("train", State.STOPPED, "user_stop", dataset=str(root), lora_r=24, steps=33)
    app = open_page(run=run.root.name)
    app.button(key="train_again").click().run()
    assert app.segmented_control(key="train_view").value == "new"
    values = {n.label: n.value for n in app.number_input}
    assert values["LoRA rank"] == 24 and values["Optimizer steps"] == 33


def test_two_runs_over_each_other(workspace: Path) -> None:
    first = ended("command", State.SUCCEEDED, "completed", name="first")
    second = ended("command", State.STOPPED, "user_stop", name="second")
    app = open_page(run=first.root.name)
    app.multiselect(key="train_overlay").select(second.root.name).run()
    assert not app.exception
    assert len(app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")) == 5


def test_resume_is_beside_the_state_and_moves_to_the_resumed_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the same curve and the same place: address, box and badge mean the resumed run."""
    root = dataset(workspace)
    run = ended("train", State.STOPPED, "user_stop", dataset=str(root), steps=80)
    monkeypatch.setattr(
        lifecycle, "checkpoints_of", lambda _: [Checkpoint(40, run.work / "iter_40.pth", 1)]
    )

    def resume(of: RunPaths, step: int) -> RunPaths:
        assert (of, step) == (run, 40)
        params = {"dataset": str(root), "steps": 80, "accumulation": 1,
                  "resume_from": str(run.work / "iter_40.pth")}  # fmt: skip
        made = ended("train", State.STOPPED, "user_stop", **params)
        made.metrics.write_text('{"type": "metric", "step": 41, "max_steps": 80, "loss": 9.5}\n')
        return made

    monkeypatch.setattr(lifecycle, "resume_training", resume)
    app = open_page(run=run.root.name)
    button = app.button(key="train_resume")
    assert button.label == "Resume from step 40"
    button.click().run()
    shown = app.selectbox(key="train_run").value
    assert shown != run.root.name and app.query_params["run"] == shown
    assert {m.label: m.value for m in app.metric}["Loss"] == "9.5000"
    app.segmented_control(key="train_view").set_value("history").run()
    app.segmented_control(key="train_view").set_value("watch").run()
    assert app.selectbox(key="train_run").value == shown
    assert [p["step"] for p in lineage.series(api.open_run(shown)).points] == [*range(1, 42)]


def test_what_is_measured_is_shown_and_leads_to_the_merge(workspace: Path) -> None:
    root = dataset(workspace)
    run = ended("train", State.SUCCEEDED, "completed", dataset=str(root), steps=50)
    listed = []
    for step, margin, ratio in ((25, 0.9, 1.0), (50, 1.2, 2.2)):
        path = run.work / f"iter_{step}.pth"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        listed.append({"step": step, "path": str(path)})
        looked = Figures(step, {"en": Margin(margin, Rate(15, 16))}, 0.3, ratio, 0.9, 500)
        event = {"event": "figures", "step": step, "values": looked.to_values()}
        Journal(run.events).append(event)
    fsio.write_json(run.result, {"checkpoints": listed})
    app = open_page(run=run.root.name)
    assert "Step 25 has the best figures of training" in texts(app)
    assert "Merge it" in [b.label for b in app.button]
    assert len(app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")) == 1 + 4 + 3


def test_history_compares_and_keeps_notes(workspace: Path) -> None:
    root = dataset(workspace)
    run = ended("train", State.SUCCEEDED, "completed", dataset=str(root), steps=50, lr=2e-4)
    fsio.write_json(
        run.root / "sweep.json",
        {"recommended": {"step": 50}, "checkpoints": [{"step": 50, "verdict": "LEARNED"}]},
    )
    history.write_note(run, "twice the look-alike rows")
    app = open_page(run=run.root.name)
    app.segmented_control(key="train_view").set_value("history").run()
    (row,) = app.dataframe[0].value.to_dict("records")
    assert row["verdict"] == "Learned" and row["loss"] == pytest.approx(3 / 50)
    assert row["learning rate"] == 2e-4 and row["dataset"] == "kai" and row["steps"] == "50"
    assert row["note"] == "twice the look-alike rows" and row["size (MB)"] >= 0
    app.text_input(key="train_filter").set_value("look-alike").run()
    assert len(app.dataframe[0].value) == 1
    history.write_note(run, " ")
    assert history.read_note(run) == "" and not run.note.exists()


def test_many_runs_filter_and_delete(workspace: Path) -> None:
    first = ended("command", State.SUCCEEDED, "completed", name="run")
    for index in range(199):  # copied: two hundred runs with fsync take half a minute
        shutil.copytree(first.root, first.root.with_name(f"{first.root.name}-{index}"))
    gone = ended("command", State.FAILED, "incomplete", name="broken")
    app = open_page()
    app.segmented_control(key="train_view").set_value("history").run()
    assert "201 of 201 runs" in texts(app)
    app.text_input(key="train_filter").set_value("broken").run()
    assert "1 of 201 runs" in texts(app)
    assert len(app.dataframe[0].value) == 1
    assert app.button(key="train_delete").disabled
    api.delete(gone)
    app.run()
    assert "0 of 200 runs" in texts(app)


def test_a_run_that_vanishes_does_not_break_the_page(workspace: Path) -> None:
    run = ended("command", State.SUCCEEDED, "completed")
    other = ended("command", State.SUCCEEDED, "completed", name="other")
    app = open_page(run=run.root.name)
    api.delete(run)
    app.run()
    assert not app.exception and app.selectbox(key="train_run").value == other.root.name


@pytest.mark.slow
def test_warm_up_and_checkpoints_follow_the_steps_until_changed(workspace_with_model: Path) -> None:
    dataset(workspace_with_model)
    app = open_page()

    def number(label: str) -> Any:
        return next(n for n in app.number_input if n.label == label)

    number("Optimizer steps").set_value(400).run()
    assert number("Warm-up steps").value == 20
    assert number("Checkpoint every (steps)").value == 100
    number("Checkpoint every (steps)").set_value(7).run()
    number("Optimizer steps").set_value(800).run()
    assert number("Warm-up steps").value == 40
    assert number("Checkpoint every (steps)").value == 7


@pytest.mark.slow
def test_a_form_that_is_taken_over_keeps_its_interval(workspace_with_model: Path) -> None:
    """Also where it happens to be what the form had chosen for another number of steps."""
    root = dataset(workspace_with_model)
    app = open_page()

    def interval() -> Any:
        return next(n for n in app.number_input if n.label == "Checkpoint every (steps)").value

    chosen = interval()
    run = ended(
        "train", State.STOPPED, "user_stop", dataset=str(root), steps=400, checkpoint_every=chosen
    )
    app.query_params["run"] = run.root.name
    app.segmented_control(key="train_view").set_value("watch").run()
    app.button(key="train_again").click().run()
    assert {n.label: n.value for n in app.number_input}["Optimizer steps"] == 400
    assert interval() == chosen


@pytest.mark.slow
def test_the_form_survives_a_reload_and_a_preset_fills_it(workspace_with_model: Path) -> None:
    dataset(workspace_with_model)
    app = open_page()

    def number(app: AppTest, label: str) -> Any:
        return next(n for n in app.number_input if n.label == label)

    good = number(app, "Optimizer steps").value
    app.segmented_control(key="train_preset").set_value("thorough").run()
    assert number(app, "Optimizer steps").value == 2 * good
    assert "passes over 40 rows" in texts(app)
    before = next(c.value for c in app.caption if "passes over 40 rows" in c.value)
    number(app, "Optimizer steps").set_value(5 * good).run()
    after = next(c.value for c in app.caption if "passes over 40 rows" in c.value)
    assert before != after
    number(app, "LoRA rank").set_value(24).run()
    again = open_page()  # another session: a reload, or a server that was started again
    assert number(again, "Optimizer steps").value == 5 * good
    assert number(again, "LoRA rank").value == 24
    drafts.save(FormDraft(dataset="kai", model="/no/such/model"))
    shown = texts(open_page())
    assert "model folder /no/such/model is not there" in shown
    assert "Fetch from the hub" not in shown


@pytest.mark.slow
def test_a_new_run_from_defaults(workspace_with_model: Path) -> None:
    dataset(workspace_with_model)
    app = open_page()
    shown = texts(app)
    assert "xtuner train RUN/config.py --work-dir RUN/work" in shown
    assert "Chat template verified" in shown and "Ready to start" in shown
    assert "+ data_path = " in shown.replace("alpaca_en_path", "data_path")
    assert {m.label for m in app.metric} >= {"Optimizer steps", "Each row is seen", "Time"}
    start = next(b for b in app.button if b.label == "Start")
    assert not start.disabled
    steps = next(n for n in app.number_input if n.label == "Warm-up steps")
    steps.set_value(10_000).run()
    assert "does not fit" in texts(app)
    assert next(b for b in app.button if b.label == "Start").disabled
    app.toggle(key="train_raw").set_value(True).run()
    app.text_area(key="train_raw_text").set_value("x = (").run()
    assert "not valid Python" in texts(app)
