from __future__ import annotations

import json
import os
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.backend import programs, runtime_folder
from mlx_guarded_llm.backend.crashes import FILE, Crashes
from mlx_guarded_llm.cli.doctor import checks
from mlx_guarded_llm.errors import EngineDied
from mlx_guarded_llm.worker.parent.death import Cause, Death

from ..conftest import Run

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = checks.Check(name="generate", ok=True, text="16 tokens")
    monkeypatch.setattr(checks, "trial", lambda: iter([fine]))


def test_all_is_well(run: Run) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.stdout
    for name in ("python", "packages", "aliases", "disk", "crashes", "memory", "pip", "generate"):
        assert f"ok      {name}" in done.stdout
    assert "hub" not in done.stdout.replace("huggingface-hub", "")
    assert done.stdout.endswith("All is well.\n")


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10, 9, 1))
    done = run("doctor")
    assert done.exit_code == 1
    assert "problem disk" in done.stdout
    assert "MLX_GUARDED_CACHE_DIR" in done.stdout
    assert "1 problem found." in done.stdout


def test_a_broken_aliases_file(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("x")
    monkeypatch.setenv("MLX_GUARDED_MODELS_FILE", str(file))
    done = run("doctor")
    assert done.exit_code == 1
    assert "problem aliases" in done.stdout
    assert "generate" in done.stdout, "the other checks go on"


def test_a_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "mlx":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    done = run("doctor")
    assert done.exit_code == 1
    assert "mlx not installed" in done.stdout
    assert "mlx-guarded-llm[cpu]" in done.stdout


def test_an_engine_that_does_not_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def open_backend(**_: Any) -> Any:
        raise EngineDied("MLX cannot be used.", hint="Install it.")

    monkeypatch.setattr("mlx_guarded_llm.cli.backends.open_backend", open_backend)
    found = list(checks.trial())
    assert found == [
        checks.Check(name="generate", ok=False, text="MLX cannot be used.", hint="Install it.")
    ]


def test_the_hub_is_asked_only_when_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert run("doctor").exit_code == 0
    done = run("doctor", "--online")
    assert done.exit_code == 1
    assert "problem hub" in done.stdout
    assert "no route" in done.stdout


class TestCrashes:
    @staticmethod
    def note(folder: Path, *models: str, cause: Cause = "abort", **changes: Any) -> None:
        """Write crashes of now into the log, with `changes` to each entry."""
        log = Crashes(folder / FILE)
        for model in models:
            log.add(Death(cause=cause, text="", pid=1, code=-6, work="step", model=model))
        entries = json.loads((folder / FILE).read_text())
        (folder / FILE).write_text(json.dumps([entry | changes for entry in entries]))

    def test_none(self, tmp_path: Path) -> None:
        assert checks.crashes(tmp_path) == checks.Check(
            name="crashes", ok=True, text="none in the last 7 days"
        )

    def test_the_newest_are_told_with_what_to_do(self, tmp_path: Path) -> None:
        self.note(tmp_path, "oldest", "older", "", "newest")
        found = checks.crashes(tmp_path)
        assert found.ok
        head, shown = found.text.split(", the newest: ")
        assert head == "4 in the last 7 days"
        newest, bare, older = shown.split("; ")
        assert newest.endswith(" newest (SIGABRT while generating)")
        assert bare.endswith(" without a model (SIGABRT while generating)")
        assert older.endswith(" older (SIGABRT while generating)")
        assert "upgrade mlx" in found.hint and str(tmp_path / FILE) in found.hint

    def test_one_that_a_backend_quarantines_is_a_problem(self, run: Run, tmp_path: Path) -> None:
        self.note(tmp_path / "cache", "phi3", "llama", "phi3", "phi3", "llama")
        done = run("doctor")
        assert done.exit_code == 1
        assert "problem crashes" in done.stdout
        said = " ".join(done.stdout.split())
        assert "A backend quarantines phi3" in said and "Upgrade mlx and mlx-lm" in said

    def test_what_happened_with_other_versions_may_be_mended(self, tmp_path: Path) -> None:
        self.note(tmp_path, "phi3", "phi3", "phi3", versions={"mlx": "0.1"})
        found = checks.crashes(tmp_path)
        assert found.ok and found.text.startswith("3 in the last 7 days")

    def test_those_of_last_month_are_past(self, tmp_path: Path) -> None:
        then = (datetime.now(UTC) - timedelta(days=30)).isoformat()
        self.note(tmp_path, "phi3", "phi3", "phi3", time=then)
        assert checks.crashes(tmp_path).text == "none in the last 7 days"

    @pytest.mark.parametrize(
        ("cause", "advice"),
        [
            ("out_of_memory", "memory_budget"),
            ("hung", "stall_timeout"),
            ("not_started", "import mlx.core"),
            ("exit", "upgrade mlx"),
        ],
    )
    def test_each_cause_has_its_advice(self, tmp_path: Path, cause: Cause, advice: str) -> None:
        self.note(tmp_path, "phi3", "phi3", cause=cause)
        found = checks.crashes(tmp_path)
        assert found.ok and advice in found.hint

    def test_a_kill_from_outside_is_no_crash(self, tmp_path: Path) -> None:
        self.note(tmp_path, "phi3", "phi3", "phi3", "phi3", cause="killed")
        assert checks.crashes(tmp_path).text == "none in the last 7 days"
        self.note(tmp_path, "llama")
        found = checks.crashes(tmp_path)
        assert found.ok and found.text.startswith("1 in the last 7 days")

    def test_a_broken_log_is_no_crash(self, tmp_path: Path) -> None:
        (tmp_path / FILE).write_text("[{")
        assert checks.crashes(tmp_path).text == "none in the last 7 days"


def test_other_programs_that_hold_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / "run"))
    assert checks.memory().text == "no other program holds any for models"
    other = programs.Programs()
    claim = programs.Claim(device="cpu", bytes=2**30, models={"theirs": 2**30})
    assert other.claim(0, claim, 2**40, lambda answer: None) and other.flush(60)
    found = checks.memory()
    assert found.ok and f"(process {os.getpid()}) holds 1.00 GiB for theirs" in found.text
    monkeypatch.setenv(programs.VARIABLE, "0")
    assert checks.memory().ok and "not counted" in checks.memory().text
    monkeypatch.delenv(programs.VARIABLE)
    other.release(0)
    assert other.flush(60)
    (tmp_path / "run").chmod(0o755)
    found = checks.memory()
    assert not found.ok and "cannot be counted" in found.text
    assert runtime_folder.VARIABLE in found.hint


def test_memory_that_is_swapped_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.swap_memory", lambda: Usage(9 * 10**9, 5 * 10**9, 4 * 10**9))
    done = run("doctor")
    assert done.exit_code == 0
    assert "5 GB of memory are swapped out" in done.stdout


def test_a_gpu_that_stands_idle(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "nvidia0"
    monkeypatch.setattr(checks, "_NVIDIA", device)
    monkeypatch.setattr(checks, "installed", lambda name: name == "mlx-cpu")
    assert "problem gpu" not in run("doctor").stdout
    device.touch()
    done = run("doctor")
    assert done.exit_code == 1
    assert "problem gpu" in done.stdout
    assert "cuda13" in done.stdout
    monkeypatch.setattr(checks, "installed", lambda name: False)
    assert "problem gpu" not in run("doctor").stdout


def test_a_version_that_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "misfits", lambda: ["mlx-lm 0.1 is installed"])
    assert "problem packages" in run("doctor").stdout
