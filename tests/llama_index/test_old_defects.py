"""What llama-index-llms-mlx 0.6.0 got wrong with mlx-lm 0.32: each is right here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from llama_index.llms.mlx_guarded import MLXGuarded

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import MemoryRefused
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_for
from tests.llama_index._helpers import user

ANSWER = "Grüße aus Köln: 42."


def test_no_torch_is_needed(scripted: MakeModel) -> None:
    # complete() and chat() imported torch.
    code = f"""
        import sys
        sys.modules["torch"] = None  # importing it is an ImportError
        from llama_index.core.llms import ChatMessage
        from llama_index.llms.mlx_guarded import MLXGuarded
        from mlx_guarded_llm import Backend
        with Backend(offline=True, memory_budget="1GiB") as backend:
            llm = MLXGuarded(model={scripted(ANSWER)!r}, backend=backend)
            assert llm.complete("Hi").text == {ANSWER!r}
            assert llm.chat([ChatMessage("Hi")]).message.content == {ANSWER!r}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_streams_work_and_cut_no_character_in_two(backend: Backend, scripted: MakeModel) -> None:
    # Streaming raised ValueError.
    llm = MLXGuarded(model=scripted(ANSWER, piece_bytes=2), backend=backend)
    deltas = [response.delta or "" for response in llm.stream_chat(user())]
    assert "".join(deltas) == ANSWER and not any("\ufffd" in delta for delta in deltas)
    assert [*llm.stream_complete("Hi")][-1].text == ANSWER


def test_the_template_asks_for_an_answer(backend: Backend, tiny: MakeModel) -> None:
    # There was no add_generation_prompt, so the model went on with the question.
    llm = MLXGuarded(model=tiny(), backend=backend, max_tokens=1)
    raw: Any = llm.chat(user("Hi")).raw
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokens = backend.tokens(tiny(), prompt, raw=True, special_tokens=False)
    assert raw["usage"]["prompt_tokens"] == len(tokens)


def test_options_of_a_call_are_heeded(backend: Backend, tiny: MakeModel) -> None:
    # stop, max_tokens and tools given to a call were dropped.
    llm = MLXGuarded(model=tiny(), backend=backend, max_tokens=20)
    whole = str(llm.chat(user()).message.content)
    raw: Any = llm.chat(user(), max_tokens=3).raw
    assert raw["usage"]["completion_tokens"] == 3
    stopped = str(llm.chat(user(), stop=[whole[5:8]]).message.content)
    assert stopped == whole[: whole.index(whole[5:8])]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    response = llm.chat(user(), tools=[tool], tool_choice="required", max_tokens=200)
    assert llm.get_tool_calls_from_response(response)[0].tool_name == "f"


async def test_async_calls_leave_the_loop_free(backend: Backend, tiny: MakeModel) -> None:
    # achat() and its siblings blocked the event loop for as long as the model answered.
    llm = MLXGuarded(model=tiny(), backend=backend, max_tokens=1500)
    task = asyncio.create_task(llm.achat(user()))
    await asyncio.to_thread(wait_for, backend, "request.first_token")
    assert not task.done(), "the loop runs while the model answers"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_usage_is_told(backend: Backend, scripted: MakeModel) -> None:
    raw: Any = MLXGuarded(model=scripted(ANSWER), backend=backend).chat(user()).raw
    usage = raw["usage"]
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_answer_can_be_cancelled(backend: Backend, tiny: MakeModel) -> None:
    llm = MLXGuarded(model=tiny(), backend=backend, max_tokens=1500)
    task = asyncio.create_task(llm.achat(user()))
    await asyncio.to_thread(wait_for, backend, "request.first_token")
    task.cancel()
    end = await asyncio.to_thread(wait_for, backend, "request.finished")
    assert end.cause == "cancelled" and end.details["completion_tokens"] < 1500


def test_memory_is_bounded(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(memory_budget="1KB")
    with pytest.raises(MemoryRefused):
        MLXGuarded(model=tiny(), backend=backend).chat(user())


def test_no_weights_are_loaded_by_the_constructor(backend: Backend, tiny: MakeModel) -> None:
    llm = MLXGuarded(model=tiny(), backend=backend)
    assert llm.metadata.context_window == 2048
    assert llm.to_dict() and events(backend, "load.") == []
    llm.chat(user(), max_tokens=1)
    assert events(backend, "load.")


def test_several_threads_may_use_one_model(backend: Backend, scripted: MakeModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    llm = MLXGuarded(model=scripted(ANSWER), backend=backend)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: llm.chat(user(str(n))).message.content, range(8)))
    assert set(answers) == {ANSWER}
