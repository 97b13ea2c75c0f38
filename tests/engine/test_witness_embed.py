"""Embedding beside generations, loads and unloads, under the witness: nothing overlaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_guarded_llm.testing.tiny import make_tiny_embedder, make_tiny_model
from tests.engine._scripts import run_script

SCHEDULES = """
import gc, json, random
from collections import Counter
from mlx_guarded_llm.engine import observer

EMBEDDER, COUNT = OTHER, int(sys.argv[4])
kinds, ends = Counter(), Counter()

def embed(chance, backend, name):
    texts = ["x " * chance.randrange(60) for _ in range(chance.choice((1, 3, 60)))]
    vectors = backend.embed(EMBEDDER, texts, request_id=name).vectors
    assert vectors.shape == (len(texts), 32)
    return "embedded"

def cancelled(chance, backend, name):
    timer = threading.Timer(chance.uniform(0, 0.05), backend.cancel, [name])
    timer.start()
    try:
        return embed(chance, backend, name)
    finally:
        timer.join()

def timed_out(chance, backend, name):
    backend.embed(EMBEDDER, ["x " * 60] * 100, timeout=chance.uniform(0, 0.05))
    return "in time"

def generate(chance, backend, name):
    model = chance.choice((TINY, SCRIPTED))
    return backend.generate(model, "Hello", max_tokens=chance.randrange(1, 40)).finish_reason

def unload(chance, backend, name):
    return f"unloaded {backend.unload(chance.choice((TINY, EMBEDDER)))}"

ACTIONS = [embed, embed, cancelled, timed_out, generate, generate, unload]

def act(chance, backend, n):
    for turn in range(3):
        try:
            ends[chance.choice(ACTIONS)(chance, backend, f"r{n}-{turn}")] += 1
        except GuardedLLMError as error:
            ends[type(error).__name__] += 1

failed = []
threading.excepthook = lambda hook: failed.append(repr(hook.exc_value))
with Backend() as backend:
    for model in (TINY, EMBEDDER):
        backend.load(model)
gc.freeze()  # what is imported is no garbage: no unload need search it
for seed in range(COUNT):
    chance = random.Random(seed)
    backend = Backend(
        load_wait=chance.uniform(0, 0.03),
        fairness_window=chance.uniform(0, 0.03),
        max_active=chance.choice((1, 2, 8)),
    )
    threads = [
        spawn(lambda n=n: act(random.Random(f"{seed}/{n}"), backend, n)) for n in range(4)
    ]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), f"schedule {seed} hangs"
    assert backend.close()
    kinds.update(event.kind for event in backend.events())
    assert not failed, (seed, failed)
print(json.dumps({"seen": observer.process_observer().seen, "kinds": kinds, "ends": ends}))
"""


@pytest.mark.timeout(300)
def test_random_schedules(tmp_path: Path) -> None:
    models = [
        make_tiny_model(tmp_path / "tiny"),
        make_tiny_model(tmp_path / "other", seed=1),
        make_tiny_embedder(tmp_path / "embedder", context_window=128),
    ]
    witness = {"MLX_GUARDED_WITNESS": "1"}
    ended = run_script(tmp_path, SCHEDULES, *map(str, models), "25", env=witness, timeout=280)
    assert ended.code == 0, ended.err
    assert "MLXGuardedWitness" not in ended.err
    report = json.loads(ended.out)
    seen, kinds, ends = report["seen"], report["kinds"], report["ends"]
    print(report)
    assert min(seen[kind] for kind in ("load", "step", "unload")) > 20, seen
    assert kinds["load.deferred"] > 5 and kinds["request.paused"] > 5, kinds
    assert min(ends[end] for end in ("embedded", "length", "RequestTimeout")) > 5, ends
    assert "EngineDied" not in ends and "GenerationFailed" not in ends, ends
