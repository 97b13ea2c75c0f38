"""The incident, replayed by a server without a guard: the witness must see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_guarded_llm.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    a = make_tiny_model(folder / "deepseek-r1")
    b = make_tiny_model(folder / "phi3", architecture="phi3", seed=1)
    return str(a), str(b)


def naive(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_guarded_llm.testing.naive", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )


def test_a_load_beside_a_generation_dies(models: tuple[str, str]) -> None:
    died = naive(*models, "--max-tokens", "400", "--at", "5")
    assert died.returncode == -signal.SIGABRT, died.stderr
    assert "-[MLXGuardedWitness enter:]: failed assertion 'load of phi3 on loader" in died.stderr
    assert "of deepseek-r1 on MainThread" in died.stderr
    assert "naive.py" in died.stderr
    assert died.stdout, "the answer had begun"


def test_the_same_server_in_turn_lives(models: tuple[str, str]) -> None:
    lived = naive(*models, "--max-tokens", "40", "--at", "5", "--serial")
    assert lived.returncode == 0, lived.stderr
    assert "MLXGuardedWitness" not in lived.stderr
    assert "loaded" in lived.stderr


SCHEDULES = """
import json, random, sys, threading, time
import mlx.core as mx
import mlx_lm
from mlx_guarded_llm.testing.witness import Witness, install

model_a, model_b = sys.argv[1:]
found = []
install(on_violation=found.append)
model, tokenizer = mlx_lm.load(model_a)[:2]
read = mx.load
reads = []

def noticed_load(*args, **kwargs):  # a moment that is certainly inside the load
    reads.append(time.perf_counter())
    return read(*args, **kwargs)

mx.load = noticed_load

def generate(delay, pause, times):
    time.sleep(delay)
    times.append(time.perf_counter())
    for response in mlx_lm.stream_generate(model, tokenizer, "Hello", max_tokens=12):
        times.append(time.perf_counter())
        time.sleep(pause)
    times.append(time.perf_counter())
    mx.clear_streams()

def load(delay, times):
    time.sleep(delay)
    times.append(time.perf_counter())
    mlx_lm.load(model_b)
    times.append(time.perf_counter())
    mx.clear_streams()

chance = random.Random(7)
trials = []
for _ in range(30):
    found.clear(); reads.clear()
    generating, loading = [], []
    threads = [
        threading.Thread(target=generate, args=(chance.uniform(0, 0.06), 0.002, generating)),
        threading.Thread(target=load, args=(chance.uniform(0, 0.12), loading)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # By the naive code's own clock, wide for "apart" and narrow for "overlapped".
    apart = loading[1] < generating[0] or generating[-1] < loading[0]
    overlapped = generating[1] < reads[0] < generating[-2]
    trials.append([apart, overlapped, len(found)])
print(json.dumps(trials))
"""


def test_thirty_random_schedules(models: tuple[str, str]) -> None:
    """No overlap goes unseen, and no schedule without one is accused."""
    finished = subprocess.run(
        [sys.executable, "-c", SCHEDULES, *models],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=Path(__file__).parents[2],
    )
    assert finished.returncode == 0, finished.stderr
    trials = json.loads(finished.stdout.splitlines()[-1])
    for apart, overlapped, violations in trials:
        assert not (apart and overlapped)
        assert not (apart and violations), "a false alarm"
        assert violations or not overlapped, "an overlap that was not seen"
    assert sum(overlapped for _, overlapped, _ in trials) >= 3, "the schedules must reach both"
    assert sum(apart for apart, _, _ in trials) >= 3, "the schedules must reach both"
