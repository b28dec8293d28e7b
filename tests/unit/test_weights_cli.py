"""The commands of the package, and what a merge will write."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.commands import main as cli
from core.jobs import api
from core.jobs.kinds import kind_of
from core.jobs.locks import DeviceLock
from core.jobs.state import State
from core.paths import REPO
from core.weights.preview import outputs
from tests.fakes import tiny_models as tiny
from tests.faults.support import until


def test_convert_merge_prove_export(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = tiny.attach(tiny.load(tiny_llama), target_modules=["q_proj"], std=0.2)
    tiny.save_checkpoint(peft, tmp_path / "run" / "iter_3.pth")
    tiny.save_config(tmp_path / "run" / "config.py", tiny_llama)
    run, adapter, merged = tmp_path / "run", str(tmp_path / "adapter"), str(tmp_path / "merged")
    checkpoint, base = str(run / "iter_3.pth"), str(tiny_llama)
    assert cli.main(["convert", str(run / "config.py"), checkpoint, adapter]) == 0
    assert cli.main(["merge", base, adapter, merged, "--no-proof"]) == 0
    assert "was not compared" in (tmp_path / "merged" / "README.md").read_text()
    assert cli.main(["prove", base, adapter, merged, "--no-nf4"]) == 0
    assert "proved: 24 prompts" in capsys.readouterr().out
    assert cli.main(["prove", base, str(tmp_path / "run"), merged, "--no-nf4"]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    out = str(tmp_path / "ollama")
    assert cli.main(["export", merged, out, "--format", "ollama"]) == 0
    assert "ollama create" in capsys.readouterr().out
    # The same again: the folder exists, exit code 2, one clear message.
    assert cli.main(["merge", base, adapter, merged]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["convert", str(run / "config.py"), str(run / "gone.pth"), "x"]) == 2
    # Each was a job like those of the pages: a run folder that says what was asked and what came.
    runs = list(reversed(api.list_runs()))
    assert [(r.kind, r.state) for r in runs] == [
        (kind, State.SUCCEEDED) for kind in ("convert", "merge", "prove", "export")
    ]
    assert runs[2].params["merged"] == merged
    assert kind_of("prove").needs_device and not kind_of("convert").needs_device


@pytest.mark.slow
def test_merge_is_a_job_as_on_the_page(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the device, leaves a run folder, a proof and a model card; Ctrl-C stops it."""
    peft = tiny.attach(tiny.load(tiny_llama), target_modules=["q_proj"], std=0.2)
    tiny.save_checkpoint(peft, tmp_path / "run" / "iter_3.pth")
    tiny.save_config(tmp_path / "run" / "config.py", tiny_llama)
    adapter, out = str(tmp_path / "adapter"), tmp_path / "luna"
    checkpoint = str(tmp_path / "run" / "iter_3.pth")
    assert cli.main(["convert", str(tmp_path / "run" / "config.py"), checkpoint, adapter]) == 0
    chat = DeviceLock("chat")
    assert chat.acquire()
    codes: list[int] = []
    command = ["merge", str(tiny_llama), adapter, str(out)]
    merging = threading.Thread(target=lambda: codes.append(cli.main(command)))
    merging.start()
    until(lambda: [s for s in api.list_runs() if s.kind == "merge"], 60)
    run = api.open_run("latest")
    until(lambda: api.status(run).waiting_for == "chat", 30)
    assert not out.exists()
    chat.release()
    merging.join(120)
    assert codes == [0]
    assert (out / "merge_proof.json").is_file() and "# luna" in (out / "README.md").read_text()
    assert api.status(run).state is State.SUCCEEDED
    assert cli.main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert run.root.name in shown and "proved: 24 prompts" in shown


def test_preview_is_what_is_written(tmp_path: Path, tiny_llama: Path) -> None:
    peft = tiny.attach(tiny.load(tiny_llama), target_modules=["q_proj"])
    tiny.save_checkpoint(peft, tmp_path / "iter_3.pth")
    numbers = sum(p.numel() for n, p in peft.named_parameters() if "lora_" in n)
    base = tiny.ref_of(tiny_llama)
    files = {o.path: o.size for o in outputs(base, tmp_path / "iter_3.pth", fp32=True)}
    assert files["adapter/adapter_model.safetensors"] == numbers * 4
    stored = (tiny_llama / "model.safetensors").stat().st_size
    assert abs(files["merged/model.safetensors"] - stored) < 10_000
    halved = outputs(base, tmp_path / "iter_3.pth", dtype="float16")
    assert halved[1].size * 2 == files["merged/model.safetensors"]


def test_planning_and_converting_import_no_torch() -> None:
    code = (
        "import sys, core.weights.convert, core.weights.merge_plan, core.weights.preview, "
        "core.weights.manifest, core.commands.weights; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
