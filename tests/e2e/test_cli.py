"""The console script itself, on real tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_guarded_llm.record import overlaps, read_perfetto, timeline
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model

pytestmark = pytest.mark.e2e

SCRIPT = Path(sys.executable).with_name("mlx-guarded")
ANSWER = "The capital of France is Paris, and no other."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def paris(folder: Path) -> Path:
    return make_scripted_model(folder / "paris", ANSWER)


@pytest.fixture(scope="module")
def endless(folder: Path) -> Path:
    """Large enough that an answer lasts for seconds."""
    return make_tiny_model(folder / "endless", hidden_size=256, layers=6, context_window=8192)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    own = {
        "MLX_GUARDED_CACHE_DIR": str(folder / "cache"),
        "HF_HOME": str(folder / "hub"),
        "COLUMNS": "200",
    }
    return {**os.environ, **own}


def cli(
    environment: dict[str, str], *arguments: str | Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=environment,
    )


def test_run_prints_the_answer_and_nothing_else(
    environment: dict[str, str], paris: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    done = cli(environment, "run", paris, "-", "--trace", trace, stdin="Capital of France?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n"
    shown = cli(environment, "trace", trace)
    assert shown.returncode == 0, shown.stderr
    assert "Nothing overlapped: 1 generation and 1 load" in shown.stdout


def test_run_json(environment: dict[str, str], paris: Path) -> None:
    done = cli(environment, "run", paris, "Where?", "--json", "--explain", "--seed", "4")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"] == ANSWER
    assert answer["finish_reason"] == "stop"
    assert answer["guard"]["served_model"] == answer["guard"]["requested_model"] == str(paris)
    assert answer["guard"]["seed"] == 4
    assert answer["usage"]["completion_tokens"] > 3
    assert "the load finished" in done.stderr


def test_ctrl_c_keeps_the_text_and_ends_cleanly(environment: dict[str, str], endless: Path) -> None:
    with subprocess.Popen(
        [SCRIPT, "run", str(endless), "Go on", "--max-tokens", "8000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begun = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        rest, errors = process.stdout.read(), process.stderr.read().decode()
    assert process.returncode == 130, errors
    assert time.monotonic() - pressed < 20
    assert len(begun) == 5
    assert rest.endswith(b"\n")
    assert "note: cancelled after" in errors
    assert "Traceback" not in errors


def test_a_failure_of_the_model_is_one_line(environment: dict[str, str], folder: Path) -> None:
    broken = make_tiny_model(folder / "broken")
    (broken / "model.safetensors").write_bytes(b"short")
    done = cli(environment, "run", broken, "Hi")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_models_knows_this_machine(environment: dict[str, str], paris: Path) -> None:
    aliases = paris.parent / "models.toml"
    aliases.write_text('[paris]\nmodel = "paris"\n')
    done = cli({**environment, "MLX_GUARDED_MODELS_FILE": str(aliases)}, "models", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    (entry,) = [model for model in listed["models"] if model["name"] == "paris"]
    assert entry["fits"] is True
    assert entry["context_window"] == 2048
    assert listed["budget_bytes"] > entry["memory_bytes"] > entry["size_bytes"] / 2


def test_doctor(environment: dict[str, str]) -> None:
    done = cli(environment, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 tokens" in done.stdout
    assert "for models" in done.stdout


def test_the_demo(environment: dict[str, str], endless: Path, paris: Path, tmp_path: Path) -> None:
    trace = tmp_path / "demo.json"
    done = cli(
        environment, "demo", "--model-a", endless, "--model-b", paris,
        "--max-tokens", "600", "--load-wait", "0.2", "--trace", trace,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # What the guard tells in between may break a line anywhere in the answer.
    said = re.findall(r"B paris +\| (.*)", done.stdout)
    assert "".join(said).replace(" ", "") == ANSWER.replace(" ", "")
    assert "load of paris deferred" in done.stdout
    assert "The load of paris was deferred for 0.2" in done.stdout
    assert "while request-A stood still" in done.stdout
    assert "request-A (endless) generated from" in done.stdout
    assert "Nothing overlapped: 2 generations and 2 loads" in done.stdout
    assert "A witness watched 2 loads and" in done.stdout
    shown = cli(environment, "trace", trace)
    assert shown.returncode == 0
    assert "deferred" in shown.stdout
    assert "paused" in shown.stdout


def test_the_demo_without_the_guard_dies(
    environment: dict[str, str], endless: Path, paris: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    done = cli(
        environment, "demo", "--naive", "--model-a", endless, "--model-b", paris,
        "--max-tokens", "200", "--trace", str(trace),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [(load, generation)] = overlaps(timeline(read_perfetto(trace)))
    assert (load.label, generation.label) == ("load of paris", "request-A")
    assert "failed assertion 'load of paris on loader overlaps" in done.stdout
    assert "It died of SIGABRT" in done.stdout
