"""The Merge page as a user sees it: empty, a form, a refused checkpoint, a finished merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core import fsio
from core.jobs import api
from core.jobs.spec import read_spec
from core.paths import REPO, RunPaths
from core.weights import merge_job
from tests.fakes import tiny_models as tiny
from tests.fakes.trained_run import make_run

PAGE = REPO / "pages" / "3_Merge.py"


def page(**query: str) -> AppTest:
    app = AppTest.from_file(str(PAGE), default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    kinds = ("title", "subheader", "caption", "markdown", "info", "error", "success", "code")
    return "\n".join(str(e.value) for kind in kinds for e in getattr(app, kind))


@pytest.fixture
def base(workspace: Path, bundled_model: Path) -> Path:
    return tiny.save_base(workspace / "models" / "tiny", tokenizer=bundled_model).path


def test_empty_workspace_points_to_training(workspace: Path) -> None:
    # Through the entry file, because the link to another page needs its navigation.
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120).run()
    assert "no checkpoint to merge yet" in words(app.switch_page("pages/3_Merge.py").run())


def test_recommended_checkpoint_comes_first_and_sizes_are_shown(
    workspace: Path, base: Path
) -> None:
    make_run(workspace, base, recommended=30)
    app = page()
    assert "What will be written" in words(app)
    steps = app.selectbox[1]
    assert steps.options == ["step 30 · recommended", "step 60"]
    rows = app.table[0].value
    assert list(rows.index)[:2] == [
        "adapter/adapter_model.safetensors",
        "merged/model.safetensors",
    ]
    size = (base / "model.safetensors").stat().st_size
    assert fsio.human_bytes(size) == "1.4 MB" and "1.4 MB" in list(rows["size"])


def test_without_a_sweep_the_last_comes_first_and_the_page_says_so(
    workspace: Path, base: Path
) -> None:
    make_run(workspace, base, recommended=None)
    app = page()
    assert app.selectbox[1].options[0] == "step 60"
    assert "Nothing has compared" in words(app)


def test_torn_checkpoints_are_not_offered(workspace: Path, base: Path) -> None:
    run = make_run(workspace, base)
    torn = run.work / "iter_60.pth"
    torn.write_bytes(torn.read_bytes()[:1000])
    assert [o.split(" ·")[0] for o in page().selectbox[1].options] == ["step 30"]


def test_button_starts_one_job_with_what_was_chosen(
    workspace: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(workspace, base)
    started: list[RunPaths] = []
    monkeypatch.setattr(api, "start", lambda run, ready=None: started.append(run))
    app = page()
    app.toggle(key="merge_fp32").set_value(True).run()
    app.button(key="merge_start").click().run()
    assert len(started) == 1
    spec = read_spec(started[0])
    assert spec.kind == "merge" and spec.parent == run.root.name
    assert spec.params["fp32"] is True and spec.params["checkpoint"].endswith("iter_30.pth")
    assert merge_job.MergeSpec.from_dict(spec.params).engine == "stream"
    assert started[0].root.name in str(app.query_params["merge"])


def _finished(workspace: Path, base: Path) -> RunPaths:
    """A merge job run in this process, with the records that its supervisor would leave."""
    run = make_run(workspace, base)
    params = {
        "base": str(base),
        "checkpoint": str(run.work / "iter_30.pth"),
        "config": str(run.config),
        "dataset": str(workspace / "datasets" / "luna-data"),
    }
    job = api.create("merge", params, name="merged", parent=run.root.name)
    fsio.write_json(job.result, merge_job.run(merge_job.MergeSpec(**params), job, lambda *_: None))
    fsio.write_json(
        job.exit, {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "returncode": 0}
    )
    return job


def test_result_shows_proof_files_card_and_exports(workspace: Path, base: Path) -> None:
    job = _finished(workspace, base)
    app = page(merge=job.root.name)
    text = words(app)
    assert "answers as base + adapter does: 24 prompts" in text
    assert "model.safetensors" in text and "MANIFEST.json" in text and "adapter" in text
    assert "language model: what" in text  # the model card
    measured = list(app.table[0].value.index)
    assert "Largest logit difference" in measured
    assert any("Training loss" in m for m in measured)
    assert app.button(key="merge_export").label == "Export"
    assert "No export of this model yet" in text


def test_hub_export_waits_for_a_name(workspace: Path, base: Path) -> None:
    job = _finished(workspace, base)
    app = page(merge=job.root.name)
    app.segmented_control(key="merge_target").set_value("Hugging Face hub").run()
    assert app.button(key="merge_export").disabled
    app.text_input(key="merge_repo").set_value("me/luna").run()
    assert not app.button(key="merge_export").disabled
