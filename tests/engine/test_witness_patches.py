"""What an installed witness sees of real MLX and mlx-lm, each case in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.testing.tiny import make_tiny_model

PRELUDE = """
import json, sys, threading
from contextlib import contextmanager
from pathlib import Path
import mlx.core as mx
import mlx_lm
from mlx_lm import load, stream_generate
from mlx_lm.generate import BatchGenerator
from mlx_guarded_llm.engine import observer
from mlx_guarded_llm.testing.witness import Witness, install, uninstall, witnessed

model_a, model_b = sys.argv[1:]
found = []

def pairs():
    return [[violation.entered, violation.beside] for violation in found]

def on_another_thread(work):
    def run():
        work()
        mx.clear_streams()  # a thread that used MLX must not end without
    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    a = make_tiny_model(folder / "model-a")
    b = make_tiny_model(folder / "model-b", architecture="phi3", seed=1)
    return str(a), str(b)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
    )


def observe(models: tuple[str, str], code: str, **variables: str) -> Any:
    """Run code after the prelude; its last line of output is JSON."""
    finished = run("-c", PRELUDE + code, *models, **variables)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_everything_is_put_back(models: tuple[str, str]) -> None:
    facts = observe(
        models,
        """
import importlib
generate = importlib.import_module("mlx_lm.generate")
utils = importlib.import_module("mlx_lm.utils")

def bound():
    return [mx.eval, mx.async_eval, mx.synchronize, mx.save_safetensors, mx.array.item,
            mx.array.__repr__, utils.load_model, generate.generate_step, BatchGenerator.next,
            BatchGenerator.insert_segments, BatchGenerator.remove, BatchGenerator.close]

from mlx.core import eval as my_eval
before, mine = bound(), [my_eval]  # in lists, where no patch reaches
with witnessed(on_violation=found.append) as witness:
    assert observer.process_observer() is witness
    during = bound()
    mine.append(my_eval)
    try:
        install()
    except RuntimeError as error:
        refused = str(error)
    late = mx.eval
    mx.eval(mx.ones(3))
    seen = dict(witness.seen)
assert type(observer.process_observer()) is observer.Observer
late(mx.ones(3))  # a wrapper somebody kept passes through
mx.array(1).item()
assert dict(witness.seen) == seen
uninstall()
print(json.dumps({
    "changed": [a is not b for a, b in zip(before, during)],
    "restored": [a is b for a, b in zip(before, bound())],
    "mine": [mine[0] is not mine[1], mine[0] is my_eval],
    "refused": refused,
    "seen": seen,
}))
""",
    )
    assert all(facts["changed"]) and all(facts["restored"]) and all(facts["mine"])
    assert "installed already" in facts["refused"]
    assert facts["seen"] == {"eval": 1}


def test_serial_use_of_everything_never_alarms(models: tuple[str, str]) -> None:
    violations, seen = observe(
        models,
        """
witness = install(on_violation=found.append)
a, tokenizer = load(model_a)
for response in stream_generate(a, tokenizer, "Hello", max_tokens=8):
    response.logprobs.max().item()
    mx.eval(response.logprobs)
mlx_lm.generate(a, tokenizer, "Hello", max_tokens=8)
mlx_lm.generate(a, tokenizer, "Hello", max_tokens=8, draft_model=a)
b, _ = load(model_b)
mlx_lm.batch_generate(a, tokenizer, [[1, 2, 3], [4, 5]], max_tokens=[4, 9])
load(model_b)
for response in stream_generate(b, tokenizer, "Hello", max_tokens=50):
    break
del response
load(model_b)
stream = stream_generate(b, tokenizer, "Hello", max_tokens=50)
next(stream)
stream.close()
load(model_b)

# A batch: finished, emptied, closed or forgotten, it is over.
batch = BatchGenerator(a, max_tokens=4)
batch.insert([[1, 2, 3]])
while batch.next_generated():
    pass
load(model_b)
uids = batch.insert([[1, 2, 3], [4, 5]])
batch.next(); batch.next()
batch.remove(uids[:1]); batch.next(); batch.remove(uids[1:])
load(model_b)
batch.insert([[1, 2, 3]])
batch.next()
batch.close()
load(model_b)
batch = BatchGenerator(b, max_tokens=40)
batch.insert([[1, 2, 3]])
batch.next()
del batch
load(model_b)

# Two batches and a stream of one thread may be stepped in turn.
batches = [BatchGenerator(model, max_tokens=6) for model in (a, b)]
for batch in batches:
    batch.insert([[1, 2, 3]])
stream = stream_generate(a, tokenizer, "Hello", max_tokens=6)
for _ in range(9):
    next(stream, None)
    for batch in batches:
        batch.next()
mx.synchronize()
def elsewhere():
    model, tokenizer = load(model_b)
    for response in stream_generate(model, tokenizer, "Hello", max_tokens=4):
        response.logprobs.tolist()
on_another_thread(elsewhere)
print(json.dumps([pairs(), witness.seen]))
""",
    )
    assert violations == []
    assert seen["load"] == 10
    assert seen["step"] > 50 and seen["eval"] > 10


def test_an_unfinished_generation_is_in_the_way_of_a_load(models: tuple[str, str]) -> None:
    assert (
        observe(
            models,
            """
install(on_violation=found.append)
a, tokenizer = load(model_a)
stream = stream_generate(a, tokenizer, "Hello", max_tokens=50)
load(model_b)  # not begun: a generator does nothing before its first next
next(stream)
load(model_b)
stream.close()
batch = BatchGenerator(a, max_tokens=50)
uids = batch.insert([[1, 2, 3], [4, 5]])
load(model_b)
batch.next()
batch.remove(uids[:1])
load(model_b)
batch.remove(uids[1:])
batch = BatchGenerator(a, max_tokens=3)
batch.insert([[1, 2, 3], [4, 5]], max_tokens=[3, 30])
for _ in range(6):
    batch.next()
load(model_b)
batch.close()
# Even from within a step of the same thread.
batch = BatchGenerator(a, max_tokens=3, logits_processors=[
    lambda tokens, logits: (load(model_b), logits)[1]])
batch.insert([[1, 2, 3]])
batch.next(); batch.next()
print(json.dumps(pairs()))
""",
        )
        == [["load of model-b", "unfinished generation of model-a"]] * 4
    )


def test_other_threads_are_in_the_way(models: tuple[str, str]) -> None:
    violations = observe(
        models,
        """
install(on_violation=found.append)
a, tokenizer = load(model_a)
b, _ = load(model_b)
stream = stream_generate(a, tokenizer, "Hello", max_tokens=50)
next(stream)
turn = threading.Lock()

def evaluations():
    mx.eval(mx.ones(3) + 1)
    mx.async_eval(mx.ones(3) + 1)
    mx.synchronize()
    (mx.ones(1) + 1).item()
    (mx.ones(3) + 1).tolist()
    repr(mx.ones(3) + 1)
    bool(mx.ones(1) + 1)
    float(mx.ones(1) + 1)
    mx.save_safetensors("/dev/null", {"x": mx.ones(3) + 1})

def generation():
    mine = stream_generate(b, tokenizer, "Hello", max_tokens=5)
    with turn:  # a lock around each step is not enough
        next(mine)
    mine.close()

on_another_thread(evaluations)
on_another_thread(generation)
on_another_thread(lambda: load(model_b))
stream.close()
count = len(found)
on_another_thread(evaluations)
on_another_thread(generation)
on_another_thread(lambda: load(model_b))
print(json.dumps([pairs(), len(found) - count]))
""",
    )
    pairs, afterwards = violations
    assert afterwards == 0
    assert {beside for _, beside in pairs} == {"unfinished generation of model-a"}
    evaluators = ["eval", "async_eval", "synchronize", "item", "tolist"]
    evaluators += ["__repr__", "__bool__", "__float__", "save_safetensors"]
    assert [entered for entered, _ in pairs] == [
        *(f"eval of {name}" for name in evaluators),
        "step of model-b",
        "load of model-b",
    ]


def test_what_the_engine_reports_is_not_counted_twice(models: tuple[str, str]) -> None:
    """An engine in miniature: reports as the engine makes them, work by mlx-lm."""
    violations, seen = observe(
        models,
        """
witness = install(on_violation=found.append)
current = observer.process_observer()

@contextmanager
def doing(work, model):
    current.began(work, model)
    yield
    current.ended()

with doing("load", "a"):
    a, tokenizer = load(model_a)
    mx.eval(a)
batch = BatchGenerator(a, max_tokens=50)
batch.insert([[1, 2, 3]])
current.generation_began("a", "request-1")
for _ in range(4):
    with doing("step", "a"):
        batch.next()
current.paused(["a"])
mx.synchronize(batch.stream)
with doing("load", "b"):
    load(model_b)
current.resumed()
with doing("step", "a"):
    batch.next()
quiet = len(found)
with doing("load", "b"):
    load(model_b)
with doing("run", "cell"):
    mlx_lm.generate(a, tokenizer, "Hello", max_tokens=3)
loud = pairs()[quiet:]
current.generation_ended("request-1")
with doing("unload", "a"):
    batch.close()
    del batch, a
with doing("load", "b"):
    load(model_b)
print(json.dumps([[quiet, loud, len(found)], witness.seen]))
""",
    )
    assert violations == [
        0,
        [
            ["load of b", "unfinished generation of a"],
            ["foreign of cell", "unfinished generation of a"],
        ],
        2,
    ]
    assert seen == {"load": 4, "step": 5, "eval": 1, "foreign": 1, "unload": 1}


def test_the_environment_installs_it(models: tuple[str, str]) -> None:
    assert observe(
        models,
        """
witness = observer.process_observer()
load(model_a)
print(json.dumps([isinstance(witness, Witness), witness.seen["load"]]))
""",
        MLX_GUARDED_WITNESS="1",
    ) == [True, 1]


class TestScriptRunner:
    MODULE = "mlx_guarded_llm.testing.witness"

    def test_a_clean_script_runs_as_it_would_alone(
        self, models: tuple[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "neighbour.py").write_text("VALUE = 'found'\n")
        script = tmp_path / "script.py"
        script.write_text(
            "import os, sys, neighbour\n"
            "from mlx_lm import load, generate\n"
            "assert __name__ == '__main__'\n"
            "model, tokenizer = load(sys.argv[1])\n"
            "generate(model, tokenizer, 'Hello', max_tokens=3)\n"
            "print(sys.argv[2:], neighbour.VALUE, os.environ['MLX_GUARDED_WITNESS'])\n"
            "sys.exit(3)\n"
        )
        finished = run("-m", self.MODULE, str(script), models[0], "--flag", "-m")
        assert finished.returncode == 3, finished.stderr
        assert finished.stdout == "['--flag', '-m'] found 1\n"
        assert "witness: saw 1 load, 3 step" in finished.stderr

    def test_a_module_that_overlaps_aborts(self, models: tuple[str, str], tmp_path: Path) -> None:
        (tmp_path / "overlap.py").write_text(
            "import sys\n"
            "from mlx_lm import load, stream_generate\n"
            "model, tokenizer = load(sys.argv[1])\n"
            "for response in stream_generate(model, tokenizer, 'Hello', max_tokens=9):\n"
            "    load(sys.argv[2])\n"
            "print('never')\n"
        )
        finished = run("-m", self.MODULE, "-m", "overlap", *models, PYTHONPATH=f"{tmp_path}:.")
        assert finished.returncode == -signal.SIGABRT, finished.stderr
        assert "load of model-b on MainThread overlaps" in finished.stderr
        assert "unfinished generation of model-a on MainThread" in finished.stderr
        assert "overlap.py" in finished.stderr
        assert finished.stdout == ""
