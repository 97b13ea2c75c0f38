"""The backend under the witness: through hundreds of schedules nothing overlaps.

The same engine with its care taken away dies by the same witness, so its silence counts.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model
from tests.engine._scripts import Ended, run_script

pytestmark = pytest.mark.slow

TEXT = "The quick brown fox."
WITNESS = {"MLX_GUARDED_WITNESS": "1"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, str]:
    folder = tmp_path_factory.mktemp("models")
    return (
        str(make_tiny_model(folder / "deepseek-r1", context_window=50_000)),
        str(make_scripted_model(folder / "scripted", TEXT)),
        str(make_tiny_model(folder / "phi3", architecture="phi3", seed=1)),
        str(make_tiny_model(folder / "mamba", architecture="mamba", seed=2)),
    )


SCHEDULES = '''
import gc, json, random
from collections import Counter
from mlx_guarded_llm.engine import observer

models = sys.argv[1:5]
text = sys.argv[5]
kinds, ends = Counter(), Counter()

def act(chance, backend, number):
    """A few random calls, one after the other."""
    for n in range(chance.randrange(1, 3)):
        time.sleep(chance.uniform(0, 0.01))
        model, tokens = chance.choice(models), chance.randrange(1, 16)
        name = f"{id(backend)}-{number}-{n}"
        try:
            what = chance.choice(ACTIONS)
            ends[what(chance, backend, model, tokens, name)] += 1
        except GuardedLLMError as error:
            ends[type(error).__name__] += 1

def generate(chance, backend, model, tokens, name):
    result = backend.generate(model, "Hello " * chance.randrange(1, 9), max_tokens=tokens)
    assert model != SCRIPTED or text.startswith(result.text), result
    return result.finish_reason

def cancelled(chance, backend, model, tokens, name):
    timer = threading.Timer(chance.uniform(0, 0.05), backend.cancel, [name])
    timer.start()
    try:
        return backend.generate(model, "Hello", max_tokens=40, request_id=name).finish_reason
    finally:
        timer.join()

def stream(chance, backend, model, tokens, name):
    for _ in zip(range(chance.randrange(30)), backend.stream(model, "Hello", max_tokens=tokens)):
        pass
    return "streamed"

def timed_out(chance, backend, model, tokens, name):
    backend.generate(model, "Hello", max_tokens=60, timeout=chance.uniform(0, 0.05))
    return "in time"

def load(chance, backend, model, tokens, name):
    backend.load(model, pin=chance.random() < 0.2)
    return "loaded"

def unload(chance, backend, model, tokens, name):
    return f"unloaded {backend.unload(model)}"

def run(chance, backend, model, tokens, name):
    def work():
        import mlx.core as mx
        return mx.arange(3).tolist()
    assert backend.run(work) == [0, 1, 2]
    return "ran"

ACTIONS = [generate, generate, generate, stream, stream, cancelled, timed_out, load, unload, run]

def tight():
    """A budget in which two of the models fit, not three."""
    with Backend(prefix_cache=0) as backend:
        for model in models[:2]:
            backend.load(model)
        return int(backend.memory()[0] * 1.02)

def schedule(seed, budget):
    chance = random.Random(seed)
    backends = [
        Backend(
            load_wait=chance.uniform(0, 0.05),
            fairness_window=chance.uniform(0, 0.05),
            memory_budget=budget if chance.random() < 0.5 else None,
            prefix_cache=0 if chance.random() < 0.5 else "1MB",
            on_load_deadline="raise" if chance.random() < 0.1 else "pause",
            keep_alive=0.02 if chance.random() < 0.2 else None,
            max_active=chance.choice((1, 2, 8)),
        )
        for _ in range(2 if chance.random() < 0.2 else 1)
    ]
    threads = [
        spawn(lambda n=n: act(random.Random(f"{seed}/{n}"), chance.choice(backends), n))
        for n in range(3)
    ]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), f"schedule {seed} hangs"
    for backend in backends:
        assert backend.close()
        kinds.update(event.kind for event in backend.events())
        kinds["evictions"] += sum(
            len(event.details.get("evict", ())) for event in backend.events()
        )

failed = []
threading.excepthook = lambda hook: failed.append(repr(hook.exc_value))
budget = tight()
gc.freeze()  # what is imported is no garbage: no unload need search it
for seed in range(int(sys.argv[6])):
    schedule(seed, budget)
    assert not failed, (seed, failed)
print(json.dumps({"seen": observer.process_observer().seen, "kinds": kinds, "ends": ends}))
'''


@pytest.mark.timeout(600)
def test_random_schedules(models: tuple[str, ...], tmp_path: Path) -> None:
    ended = run_script(tmp_path, SCHEDULES, *models, TEXT, "300", env=WITNESS, timeout=580)
    assert ended.code == 0, ended.err
    assert "MLXGuardedWitness" not in ended.err
    report = json.loads(ended.out)
    seen, kinds, ends = report["seen"], report["kinds"], report["ends"]
    print(report)
    assert min(seen[kind] for kind in ("load", "step", "unload", "foreign")) > 50, seen
    assert kinds["load.deferred"] > 20, kinds
    assert kinds["request.paused"] > 20, kinds
    assert kinds["engine.stopped"] == kinds["engine.started"] >= 300, kinds
    assert min(ends[end] for end in ("stop", "length", "cancelled", "RequestTimeout")) > 5, ends
    assert "EngineDied" not in ends and "GenerationFailed" not in ends, ends


# ---- the alarm works ---------------------------------------------------------------------------

INCIDENT = """
import resource
from contextlib import contextmanager
from mlx_guarded_llm.engine.engine import Engine

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is expected
{broken}
backend = Backend(load_wait=0.0)
backend.load(SCRIPTED)
stream = backend.stream(TINY, "Hello", max_tokens=50_000)
next(stream)
try:
    {act}
except GuardedLLMError as error:
    print(type(error).__name__)
next(stream)
stream.close()
print(sum(event.kind == "request.paused" for event in backend.events()), "paused")
assert backend.close()
"""

ACTS = {
    "load": "backend.load(OTHER)",
    "unload": "backend.unload(SCRIPTED)",
    "foreign": "backend.run(lambda: None)",
    "beside": "import mlx_lm; thread = spawn(lambda: mlx_lm.load(OTHER)); thread.join()",
}

SILENT_PAUSE = """
@contextmanager
def _alone(self):  # as it is, but nobody is told that they stand still
    self._residency.synchronize()
    yield

Engine._alone = _alone
"""

NEVER_PAUSED = """
import dataclasses
send = Engine.send

def lying(self, command):  # a guard that sends exclusive work beside running generations
    paused = {"paused": False} if hasattr(command, "paused") else {}
    send(self, dataclasses.replace(command, **paused))

Engine.send = lying
"""


def incident(folder: Path, models: tuple[str, ...], act: str, broken: str = "") -> Ended:
    body = INCIDENT.replace("{broken}", broken).replace("{act}", ACTS[act])
    return run_script(folder, body, *models, env=WITNESS)


@pytest.mark.parametrize("act", ["load", "unload", "foreign"])
def test_without_a_pause_the_witness_ends_it(
    act: str, models: tuple[str, ...], tmp_path: Path
) -> None:
    ended = incident(tmp_path, models, act, SILENT_PAUSE)
    assert ended.code == -signal.SIGABRT, ended.err
    assert f"-[MLXGuardedWitness enter:]: failed assertion '{act} of " in ended.err
    assert "overlaps unfinished generation of " in ended.err


def test_a_load_beside_the_library_ends_it(models: tuple[str, ...], tmp_path: Path) -> None:
    """Somebody's own thread loads, as in the incident, while the engine generates."""
    ended = incident(tmp_path, models, "beside")
    assert ended.code == -signal.SIGABRT, ended.err
    assert "-[MLXGuardedWitness enter:]: failed assertion 'load of phi3 on Thread-" in ended.err
    assert "deepseek-r1 on mlx-guarded-mlx'" in ended.err


def test_as_it_is_it_lives(models: tuple[str, ...], tmp_path: Path) -> None:
    ended = incident(tmp_path, models, "load")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "1 paused\n"


def test_the_engine_refuses_what_a_lying_guard_sends(
    models: tuple[str, ...], tmp_path: Path
) -> None:
    """Its own check of the invariant is enough, and costs the generation nothing."""
    ended = incident(tmp_path, models, "load", NEVER_PAUSED)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("EngineDied\n")
