"""Every test has a workspace of its own; the bundled model is prepared once a machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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

    A test that fails twice in a row is broken, not starved.
    """
    for item in items:
        if {"e2e", "faults"} & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=3))


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
def tiny_llama(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random 2-layer Llama (about 3.3 M parameters) with the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
            max_position_embeddings=2048,
        )
    )
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_model).save_pretrained(folder)
    yield folder
