"""The stop button: what it ends, what it does not reach, and that memory comes back."""

from __future__ import annotations

import os
import re

import pytest

from mlx_guarded_llm.testing.scripted import make_scripted_model
from tests.server._wait import until

from .conftest import Lab, Notebook

START = """
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor
from mlx_guarded_llm import Backend, GuardedLLM
MODEL = {model!r}
backend = Backend(prefix_cache=0)

def memory():
    import gc
    import mlx.core as mx
    gc.collect()
    return mx.get_active_memory()

def quiet(seconds=60):
    end = time.monotonic() + seconds
    while backend.requests() and time.monotonic() < end:
        time.sleep(0.05)
    return not backend.requests()

def say_begun():
    while not any(request.tokens for request in backend.requests()):
        time.sleep(0.01)
    print("begun")

ENDLESS = dict(max_tokens=150_000)
short = backend.generate(MODEL, "Hello", max_tokens=5).text
before = backend.run(memory)
print("ready")
"""

CELLS = {
    "stream": """
for number, chunk in enumerate(backend.stream(MODEL, "Hello", **ENDLESS)):
    if number == 5:
        print("begun")
""",
    "generate": """
threading.Thread(target=say_begun).start()
backend.generate(MODEL, "Hello", **ENDLESS)
""",
    "async for": """
number = 0
async for chunk in backend.astream(MODEL, "Hello", **ENDLESS):
    number += 1
    if number == 5:
        print("begun")
""",
    "gather": """
threading.Thread(target=say_begun).start()
await asyncio.gather(*(backend.agenerate(MODEL, "Hello", **ENDLESS) for _ in range(3)))
""",
    "guarded": """
threading.Thread(target=say_begun).start()
GuardedLLM(backend, MODEL).generate("Hello", **ENDLESS)
""",
    "langchain": """
from langchain_mlx_guarded import ChatMLXGuarded
threading.Thread(target=say_begun).start()
ChatMLXGuarded(model=MODEL, backend=backend, **ENDLESS).invoke("Hello")
""",
    "llama_index": """
from llama_index.llms.mlx_guarded import MLXGuarded
threading.Thread(target=say_begun).start()
MLXGuarded(model=MODEL, backend=backend, **ENDLESS).complete("Hello")
""",
}

UNREACHED = {
    "threads": """
for _ in range(2):
    threading.Thread(target=backend.generate, args=[MODEL, "Hello"], kwargs=ENDLESS).start()
say_begun()
""",
    "a task": """
task = asyncio.create_task(backend.agenerate(MODEL, "Hello", **ENDLESS))
while not any(request.tokens for request in backend.requests()):
    await asyncio.sleep(0.01)
print("begun")
""",
}

AFTER = """
assert quiet()
assert backend.run(memory) == before, (backend.run(memory), before)
assert [model.state for model in backend.models()] == ["resident"]
assert backend.generate(MODEL, "Hello", max_tokens=5).text == short
print("fine")
"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that never stops."""
    folder = tmp_path_factory.mktemp("model") / "endless"
    return str(make_scripted_model(folder, "and so on, ", loop=True, context_window=200_000))


def begin(lab: Lab, name: str, model: str, *cells: str) -> Notebook:
    from playwright.sync_api import expect

    opened = lab.open(lab.write(f"{name}.ipynb", START.format(model=model), *cells))
    expect(opened.run(0)).to_contain_text("ready")
    expect(opened.run(1)).to_contain_text("begun")
    return opened


def stop(opened: Notebook) -> None:
    """Stop the second cell. What is run before a failed cell has ended is not run at all."""
    from playwright.sync_api import expect

    opened.stop()
    outputs = opened.page.locator(".jp-CodeCell").nth(1)
    expect(outputs).to_contain_text(re.compile("KeyboardInterrupt|CancelledError"))
    opened.ended()


@pytest.mark.parametrize("way", CELLS)
def test_it_ends_what_a_cell_does_and_the_cell_can_be_run_again(
    lab: Lab, endless: str, way: str
) -> None:
    from playwright.sync_api import expect

    opened = begin(lab, f"stop-{way}", endless, CELLS[way], AFTER)
    for _ in range(2):
        stop(opened)
        expect(opened.run(2)).to_contain_text("fine")
        expect(opened.run(1)).to_contain_text("begun")
    stop(opened)
    opened.shot(f"stop-{way}")
    opened.page.close()


@pytest.mark.parametrize("way", UNREACHED)
def test_what_outlives_its_cell_is_not_reached_and_cancel_ends_it(
    lab: Lab, endless: str, way: str
) -> None:
    from playwright.sync_api import expect

    look = "print(len(backend.requests()) > 0)"
    cancel = "for request in backend.requests(): backend.cancel(request.request_id)"
    opened = begin(lab, f"unreached-{way}", endless, UNREACHED[way], look, cancel, AFTER)
    opened.ended()
    opened.stop()
    expect(opened.run(2)).to_contain_text("True")
    opened.run(3)
    expect(opened.run(4)).to_contain_text("fine")
    opened.page.close()


def test_a_restart_ends_the_engine(lab: Lab, endless: str) -> None:
    from playwright.sync_api import expect

    pid = "print('pid', backend.worker_pid)"
    opened = begin(lab, "restart", endless, CELLS["generate"], pid)
    stop(opened)
    found = opened.run(2)
    expect(found).to_contain_text("pid ")
    engine = int(found.inner_text().split()[-1])
    opened.do("kernelmenu:restart")
    opened.page.locator(".jp-Dialog .jp-mod-accept").click()
    until(lambda: not alive(engine))
    opened.page.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
