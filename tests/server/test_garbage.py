"""What a request held is freed when it ends: a garbage collection holds up every stream."""

from __future__ import annotations

import gc
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tenacity import Retrying

from tests.conftest import MakeModel

from ._wait import until
from .conftest import Running, Serve
from .test_leaving import LIMIT, PATHS, sending, tasks

TIMES = 5
CODE = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType, types.FrameType)


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """What of this library and of tenacity only a collection finds, by name and how often."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(name for name in map(_name, gc.garbage) if name)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _name(thing: object) -> str | None:
    if isinstance(thing, CODE):
        code = next(getattr(thing, a) for a in dir(thing) if a.endswith("_code"))
        return code.co_qualname if "mlx_guarded_llm" in code.co_filename else None
    module = type(thing).__module__
    ours = module.startswith(("mlx_guarded_llm.", "tenacity"))
    return type(thing).__qualname__ if ours else None


def test_the_check_sees_a_cycle() -> None:
    with garbage() as found:
        for attempt in Retrying():  # tenacity's own: its actions are its methods
            with attempt:
                pass
        del attempt
    assert found["Retrying"] == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", ["whole", "streamed", "left"])
def test_a_request_leaves_no_cycle(serve: Serve, tiny: MakeModel, path: str, way: str) -> None:
    running = serve(models={"noise": tiny(context_window=8192)}, heartbeat=0.02)
    body = {"model": "noise", "stream": way != "whole", **PATHS[path]("Hi")}
    body[LIMIT.get(path, "max_tokens")] = 4000 if way == "left" else 4

    ask(running, path, body, way)  # what is imported or made once
    idle = tasks(running)
    for _ in range(2):  # the remains of an earlier test's server may be found, but only once
        with garbage() as found:
            for _ in range(TIMES):
                ask(running, path, body, way)
                assert tasks(running) <= idle
        left = {name for name, count in found.items() if count >= TIMES}
        if not left:
            break
    assert not left, found


def ask(running: Running, path: str, body: dict[str, Any], way: str) -> None:
    if way != "left":
        assert running.client.post(path, json=body).status_code == 200
        return
    with sending(running, path, body, "close"):
        until(lambda: any(model.active for model in running.backend.models()))
