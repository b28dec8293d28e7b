"""Every test has a workspace of its own; the bundled model is prepared once a machine."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# The same examples in every run, so that a green main stays green.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

#: Preparing the bundled model takes half a minute, so it outlives one test run.
MODEL_CACHE = Path(
    os.environ.get("PERSONA_TEST_CACHE", Path.home() / ".cache" / "persona-workbench")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with real browsers and real processes may be starved on a loaded machine: try again.

    A test that fails twice in a row is broken, not starved. Files with slow tests come first: each
    process takes whole files (``--dist loadfile``), and the last ones should be short.
    """
    for item in items:
        if {"e2e", "faults"} & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=3))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_imported = 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Collecting garbage walks over everything imported: 0.3 s each time that a model is let go.

    What has been imported by now is none, and is left out from here on.
    """
    global _imported
    if len(sys.modules) > _imported + 300:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


#: One key for all workspaces of the tests: runs that a session fixture made are resumed in another.
KEY = "0f" * 32


def _make_home(home: Path) -> Path:
    home.mkdir()
    (home / ".key").write_text(KEY)
    return home


@pytest.fixture(scope="session", autouse=True)
def _session_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where session fixtures work: never in the repository's own workspace."""
    with pytest.MonkeyPatch.context() as patch:
        home = _make_home(tmp_path_factory.mktemp("session") / "workspace")
        patch.setenv("PERSONA_HOME", str(home))
        yield


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PERSONA_HOME of this test's own, with no network behind the hub client."""
    home = _make_home(tmp_path / "workspace")
    monkeypatch.setenv("PERSONA_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The main module is given back: an ``AppTest`` puts its script in that place.

    While the script runs, a process that it starts would run it once more; not if the module is
    called ``...__main__``, which multiprocessing leaves alone.
    """
    main = sys.modules["__main__"]
    if testing := sys.modules.get("streamlit.testing.v1.local_script_runner"):
        runner = testing.LocalScriptRunner
        plain = runner._new_module

        def new_module(self: object, name: str) -> ModuleType:
            module: ModuleType = plain(self, name)
            module.__spec__ = ModuleSpec(f"script.{name}", None)
            return module

        monkeypatch.setattr(runner, "_new_module", new_module)
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The prepared 135M folder."""
    from core.models import bundled

    previous = os.environ.get("PERSONA_HOME")
    os.environ["PERSONA_HOME"] = str(MODEL_CACHE)
    try:
        return bundled.ensure()
    finally:
        if previous is None:
            os.environ.pop("PERSONA_HOME")
        else:
            os.environ["PERSONA_HOME"] = previous


@pytest.fixture
def workspace_with_model(workspace: Path, bundled_model: Path) -> Path:
    """A workspace in which 'bundled' resolves at once."""
    models = workspace / "models"
    models.mkdir()
    (models / bundled_model.name).symlink_to(bundled_model)
    return workspace


@pytest.fixture(scope="session")
def tiny_llama(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama of width 64 with the first tokens of the bundled tokenizer."""
    from tests.fakes import tiny_models

    return tiny_models.save_base(
        tmp_path_factory.mktemp("tiny-llama"), tokenizer=bundled_model
    ).path


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat workers of this test are forked: nothing in it is about how one starts."""
    from core.chat import client
    from tests.fakes.forked_worker import stand_in

    monkeypatch.setattr(client, "subprocess", stand_in)
