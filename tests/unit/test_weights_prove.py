"""The proof passes for a right merge, and fails for every wrong one that has been seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from core import fsio
from core.conversation import Conversation
from core.errors import UserError
from core.paths import RunPaths
from core.weights import manifest
from core.weights.merge import MergeSettings, merge
from core.weights.merge_job import MergeSpec, run
from core.weights.prove import MIN_PROMPTS, ProofPlan, prompts_for, prove
from tests.fakes import tiny_models as tiny

ROWS = [
    Conversation("r", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo."}])
]


@pytest.fixture(scope="module")
def trio(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """Base, adapter, merged in float32."""
    folder = tmp_path_factory.mktemp("trio")
    base = tiny.ref_of(tiny_llama)
    tiny.save_adapter(
        base.path, folder / "adapter", target_modules=["q_proj", "down_proj"], std=0.2
    )
    return base, folder / "adapter", merge(base, folder / "adapter", folder / "merged")


def test_right_merge_is_proved(trio: tuple[Any, Path, Path]) -> None:
    base, adapter, merged = trio
    proof = prove(base, adapter, merged, ProofPlan(rows=ROWS))
    assert proof.ok and proof.same_greedy and proof.prompts >= MIN_PROMPTS
    assert proof.max_abs_logit_diff < 1e-3 and proof.kl < 1e-6
    assert proof.nf4_kl is not None and proof.nf4_kl > proof.kl
    assert proof.losses.keys() == {"merged", "unquantized", "nf4"}
    assert abs(proof.losses["merged"] - proof.losses["unquantized"]) < 1e-4
    proof.require()
    json.dumps(proof.to_dict())


@pytest.mark.parametrize("wrong", ["no-adapter", "double", "half", "one-layer-lost"])
def test_wrong_merges_are_refused(trio: tuple[Any, Path, Path], tmp_path: Path, wrong: str) -> None:
    base, adapter, _ = trio
    changed = tmp_path / "adapter"
    changed.mkdir()
    weights = load_file(adapter / "adapter_model.safetensors")
    scale = {"no-adapter": 0.0, "double": 2.0, "half": 0.5, "one-layer-lost": 0.0}[wrong]
    for name in weights:
        if "lora_B" in name and (wrong != "one-layer-lost" or "layers.0.self_attn" in name):
            weights[name] *= scale
    save_file(weights, changed / "adapter_model.safetensors")
    (changed / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    merged = merge(base, changed, tmp_path / "merged")
    proof = prove(base, adapter, merged, ProofPlan(nf4=False))
    assert not proof.ok
    with pytest.raises(UserError, match="does not answer as"):
        proof.require()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_16_bits_is_within_tolerance(
    trio: tuple[Any, Path, Path], tmp_path: Path, dtype: str
) -> None:
    base, adapter, _ = trio
    rounded = merge(base, adapter, tmp_path / "m", MergeSettings(dtype=dtype))
    proof = prove(base, adapter, rounded, ProofPlan(nf4=False))
    assert proof.ok and proof.dtype == dtype and proof.nf4_kl is None


def test_faithful_nf4_is_compared_with_the_nf4_base(
    trio: tuple[Any, Path, Path], tmp_path: Path
) -> None:
    base, adapter, plain = trio
    merged = merge(base, adapter, tmp_path / "m", MergeSettings(faithful_nf4=True))
    assert prove(base, adapter, merged, ProofPlan(faithful_nf4=True)).ok
    assert not prove(base, adapter, plain, ProofPlan(faithful_nf4=True, nf4=False)).ok


def test_few_prompts_are_refused(trio: tuple[Any, Path, Path]) -> None:
    with pytest.raises(UserError, match="at least 20"):
        prove(*trio, ProofPlan(prompts_for(["a", "b"])))


# -- the job -------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    """Parameters of a merge job behind a training run."""
    peft = tiny.attach(tiny.load(tiny_llama), target_modules=["q_proj", "v_proj"], std=0.2)
    tiny.save_checkpoint(peft, tmp_path / "run" / "work" / "iter_3.pth")
    tiny.save_config(tmp_path / "run" / "config.py", tiny_llama)
    fsio.write_jsonl(tmp_path / "data" / "train.jsonl", [row.to_row() for row in ROWS])
    return {
        "base": str(tiny_llama),
        "checkpoint": str(tmp_path / "run/work/iter_3.pth"),
        "config": str(tmp_path / "run/config.py"),
        "dataset": str(tmp_path / "data"),
    }


def test_job_converts_merges_and_proves(trained: dict[str, Any], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = run(
        MergeSpec(**trained), RunPaths(tmp_path / "job"), lambda *count: told.append(count)
    )
    stages = list(dict.fromkeys(stage.split(":")[0] for stage, _, _ in told))
    assert stages == ["convert", "merge", "prove"]
    proof = [(done, total) for stage, done, total in told if stage.startswith("prove")]
    assert [done for done, _ in proof] == sorted(done for done, _ in proof)
    assert proof[-1][0] == proof[-1][1] and len({total for _, total in proof}) == 1
    assert result["proof"]["ok"] and result["proof"]["same_greedy"]
    assert set(result["seconds"]) == {"convert", "merge", "prove"}
    manifest.verify(Path(result["merged"]))
    manifest.verify(Path(result["adapter"]))
    assert Path(result["merged"], "merge_proof.json").is_file()
    # Again into another place: the adapter of the first attempt does not stand in the way.
    again = {**trained, "out": str(tmp_path / "second"), "adapter_out": result["adapter"]}
    assert run(MergeSpec(**again), RunPaths(tmp_path / "job2"), lambda *_: None)["proof"]["ok"]


def test_job_with_a_failed_proof_leaves_no_model(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.weights import kernels

    right = kernels.merged
    monkeypatch.setattr(kernels, "merged", lambda op, space, nf4=False: right(op, space) * 1.3)
    with pytest.raises(UserError, match="does not answer as"):
        run(MergeSpec(**trained), RunPaths(tmp_path / "job"), lambda *_: None)
    assert not (tmp_path / "job" / "export" / "merged").exists()
    assert not list((tmp_path / "job").rglob("*.partial"))


def test_job_parameters(trained: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no merge setting 'foo'"):
        MergeSpec.from_dict({**trained, "foo": 1})
    with pytest.raises(UserError, match="nothing to merge"):
        MergeSpec.from_dict({"base": "bundled"})
