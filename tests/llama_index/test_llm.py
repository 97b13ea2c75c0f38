"""Chat and completion on a real backend with tiny models, and the options of a call."""

from __future__ import annotations

import asyncio
import copy
import itertools
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock
from llama_index.llms.mlx_guarded import MLXGuarded
from pydantic import ValidationError

from mlx_guarded_llm import Backend, RetryPolicy
from mlx_guarded_llm.errors import FallbackRefused, InvalidRequest, ModelNotFound
from mlx_guarded_llm.results import Result
from tests.conftest import MakeModel
from tests.engine._backend import events
from tests.llama_index._helpers import Fake, big, user

ANSWER = "The answer is 42."
THOUGHT = "Let me see."


@pytest.fixture
def llm(backend: Backend, scripted: MakeModel) -> MLXGuarded:
    return MLXGuarded(model=scripted(ANSWER), backend=backend)


@pytest.fixture
def thinker(backend: Backend, scripted: MakeModel) -> MLXGuarded:
    model = scripted(f"<think>{THOUGHT}</think>{ANSWER}", thinking=True)
    return MLXGuarded(model=model, backend=backend)


@pytest.fixture
def noise(backend: Backend, tiny: MakeModel) -> MLXGuarded:
    """A model whose answers run to `max_tokens`."""
    return MLXGuarded(model=tiny(), backend=backend, max_tokens=8)


# ---- the four ways to chat and to complete -------------------------------------------


def test_chat(llm: MLXGuarded) -> None:
    response = llm.chat(user())
    assert response.message.content == ANSWER
    raw: Any = response.raw
    assert raw["model"] == llm.model
    assert raw["finish_reason"] == "stop"
    assert raw["usage"]["total_tokens"] > raw["usage"]["completion_tokens"] > 0
    assert raw["guard"]["attempts"][0]["outcome"] == "ok"


async def test_achat(llm: MLXGuarded) -> None:
    response = await llm.achat(user())
    assert response.message.content == ANSWER
    assert isinstance(response.raw, dict) and response.raw["guard"]["served_model"] == llm.model


def test_stream_chat(llm: MLXGuarded) -> None:
    seen = list(llm.stream_chat(user()))
    assert len(seen) > 3
    assert "".join(response.delta or "" for response in seen) == ANSWER
    assert seen[-1].message.content == ANSWER
    for earlier, later in itertools.pairwise(seen):
        assert str(later.message.content).startswith(str(earlier.message.content))
    assert isinstance(seen[-1].raw, dict) and seen[-1].raw["guard"]["degraded"] == []


async def test_astream_chat(llm: MLXGuarded) -> None:
    seen = [response async for response in await llm.astream_chat(user())]
    assert "".join(response.delta or "" for response in seen) == ANSWER
    assert seen[-1].message.content == ANSWER
    assert isinstance(seen[-1].raw, dict)


async def test_the_loop_goes_on_while_a_model_answers(noise: MLXGuarded) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await noise.achat(user(), max_tokens=50)
    ticker.cancel()
    assert ticks > 10


async def test_many_at_once(llm: MLXGuarded) -> None:
    answers = await asyncio.gather(*(llm.achat(user(str(n))) for n in range(8)))
    assert {answer.message.content for answer in answers} == {ANSWER}


def test_complete(llm: MLXGuarded) -> None:
    response = llm.complete("What is 6 times 7?")
    assert response.text == ANSWER
    assert isinstance(response.raw, dict) and response.raw["guard"]["served_model"] == llm.model


async def test_acomplete(llm: MLXGuarded) -> None:
    assert (await llm.acomplete("What is 6 times 7?")).text == ANSWER


def test_stream_complete(llm: MLXGuarded) -> None:
    seen = list(llm.stream_complete("What is 6 times 7?"))
    assert "".join(response.delta or "" for response in seen) == ANSWER == seen[-1].text
    assert isinstance(seen[-1].raw, dict)


async def test_astream_complete(llm: MLXGuarded) -> None:
    stream = await llm.astream_complete("What is 6 times 7?")
    seen = [response async for response in stream]
    assert "".join(response.delta or "" for response in seen) == ANSWER == seen[-1].text


def test_thinking_is_a_block_of_its_own(thinker: MLXGuarded) -> None:
    message = thinker.chat(user()).message
    assert message.content == ANSWER
    (thought,) = (block for block in message.blocks if isinstance(block, ThinkingBlock))
    assert thought.content == THOUGHT


def test_thinking_is_streamed_apart(thinker: MLXGuarded) -> None:
    seen = list(thinker.stream_chat(user()))
    deltas = [response.additional_kwargs.get("thinking_delta", "") for response in seen]
    assert "".join(deltas) == THOUGHT
    assert "".join(response.delta or "" for response in seen) == ANSWER


# ---- prompts -------------------------------------------------------------------------


class Noting(Fake):
    """Also notes the prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[Any] = []

    def generate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        self.prompts.append(prompt)
        return super().generate(model, prompt, **arguments)


def test_a_completion_is_one_user_message() -> None:
    backend = Noting()
    big(backend).complete("Hi")
    assert backend.prompts == [[{"role": "user", "content": "Hi"}]]
    assert "raw" not in backend.calls[0][1]


def test_a_formatted_prompt_is_sent_as_it_is() -> None:
    backend = Noting()
    big(backend).complete("<|im_start|>", formatted=True)
    assert backend.prompts == ["<|im_start|>"]
    assert backend.calls[0][1]["raw"] is True


def test_a_template_of_the_users_own_is_heeded() -> None:
    backend = Noting()
    llm = big(
        backend,
        messages_to_prompt=lambda messages: f"[{messages[0].content}]",
        completion_to_prompt=lambda prompt: f"<{prompt}>",
    )
    llm.chat(user("Hi"))
    llm.complete("Hi")
    llm.complete("Hi", formatted=True)
    assert backend.prompts == ["[Hi]", "<Hi>", "Hi"]
    assert all(arguments["raw"] is True for _, arguments in backend.calls)


def test_messages_are_not_changed(thinker: MLXGuarded) -> None:
    messages = [
        *user(),
        thinker.chat(user()).message,
        ChatMessage(role="user", content="Are you sure?"),
    ]
    before = copy.deepcopy(messages)
    thinker.chat(messages)
    list(thinker.stream_chat(messages))
    assert messages == before


# ---- options -------------------------------------------------------------------------


def test_settings_hold_for_every_call_and_a_call_may_differ() -> None:
    backend = Fake()
    llm = big(backend, temperature=0.5, seed=1, stop=["END"], additional_kwargs={"top_k": 3})
    llm.chat(user())
    llm.chat(user(), temperature=0.0, seed=2, stop=[], top_k=4, max_tokens=9)
    llm.chat(user(), temperature=None)
    shown = [
        {k: v for k, v in arguments.items() if k in ("temperature", "seed", "stop", "top_k")}
        for _, arguments in backend.calls
    ]
    assert shown[0] == {"temperature": 0.5, "seed": 1, "stop": ["END"], "top_k": 3}
    assert shown[1] == {"temperature": 0.0, "seed": 2, "stop": [], "top_k": 4}
    assert shown[2] == shown[0]
    assert "max_tokens" not in backend.calls[0][1] and backend.calls[1][1]["max_tokens"] == 9


def test_what_is_not_set_is_left_to_the_library() -> None:
    backend = Fake()
    big(backend).chat(user())
    assert backend.calls == [("big", {})]


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_an_option_that_nobody_knows_is_an_error(ask: str) -> None:
    subject: Any = user() if ask == "chat" else "Hi"
    for method in (ask, f"stream_{ask}"):
        with pytest.raises(InvalidRequest, match="unknown option 'temprature'"):
            getattr(big(Fake()), method)(subject, temprature=1)


async def test_an_unknown_option_is_an_error_of_the_async_calls_too() -> None:
    with pytest.raises(InvalidRequest, match="unknown option 'temprature'"):
        await big(Fake()).achat(user(), temprature=1)
    with pytest.raises(InvalidRequest, match="unknown option 'temprature'"):
        await big(Fake()).astream_chat(user(), temprature=1)


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        big(None, temprature=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retry": RetryPolicy(), "max_retries": 2}, "not both"),
        ({"fallbacks": [3]}, "a fallback is a int"),
        ({"fallbacks": [{"model_name": "gpt"}]}, "pass them again"),
        ({"backend": "localhost"}, "must be a Backend"),
        ({"on_fallback": "ignore"}, "on_fallback"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MLXGuarded(**({"model": "big"} | settings))


def test_max_tokens_and_stop_end_an_answer(llm: MLXGuarded, noise: MLXGuarded) -> None:
    assert llm.chat(user(), stop=["answer"]).message.content == "The "
    raw: Any = noise.chat(user(), max_tokens=3).raw
    assert raw["usage"]["completion_tokens"] == 3
    assert raw["finish_reason"] == "length" and raw["guard"]["capped"]
    assert raw["guard"]["degraded"] == []


def test_a_seed_gives_the_same_answer(noise: MLXGuarded) -> None:
    answers = {noise.chat(user(), temperature=1.0, seed=seed).message.content for seed in (1, 1, 2)}
    assert len(answers) == 2


def test_log_probabilities_when_asked_for(noise: MLXGuarded) -> None:
    assert noise.chat(user()).logprobs is None
    response = noise.chat(user(), logprobs=True, top_logprobs=2)
    assert response.logprobs is not None and len(response.logprobs) == 8
    for token, *others in response.logprobs:
        assert token.logprob >= max(other.logprob for other in others), "it is greedy"


def test_a_timeout_is_one_of_ours(noise: MLXGuarded) -> None:
    with pytest.raises(TimeoutError, match="gave no answer"):
        noise.chat(user(), timeout=0.0)


def test_an_unknown_model_is_an_error_of_its_name(backend: Backend) -> None:
    with pytest.raises(ModelNotFound, match="no-such-model"):
        MLXGuarded(model="no-such-model", backend=backend).chat(user())


def test_a_fallback_on_a_real_backend(backend: Backend, scripted: MakeModel) -> None:
    llm = MLXGuarded(
        model="no-such-model", backend=backend, fallbacks=[scripted(ANSWER)], on_fallback="mark"
    )
    for response in (llm.chat(user()), [*llm.stream_chat(user())][-1]):
        raw: Any = response.raw
        assert response.message.content == ANSWER
        assert raw["guard"]["requested_model"] == "no-such-model" and raw["guard"]["fallback"]
        assert raw["model"] == scripted(ANSWER)
    with pytest.raises(FallbackRefused):
        llm.chat(user(), on_fallback="raise")


# ---- metadata ------------------------------------------------------------------------


def test_metadata_is_read_from_the_files(backend: Backend, tiny: MakeModel) -> None:
    metadata = MLXGuarded(model=tiny(), backend=backend).metadata
    assert (metadata.context_window, metadata.num_output) == (2048, 1024)
    assert metadata.is_chat_model and metadata.is_function_calling_model
    assert metadata.model_name == tiny()
    assert events(backend, "load.") == [], "nothing was loaded for it"


def test_a_model_without_a_chat_template_is_no_chat_model(
    backend: Backend, tiny: MakeModel
) -> None:
    metadata = MLXGuarded(model=tiny(chat_template=None), backend=backend).metadata
    assert not metadata.is_chat_model and not metadata.is_function_calling_model


def test_predict_of_a_model_without_a_chat_template_sends_plain_text(
    backend: Backend, scripted: MakeModel
) -> None:
    from llama_index.core.prompts import PromptTemplate

    llm = MLXGuarded(model=scripted(ANSWER, chat_template=None), backend=backend)
    assert llm.predict(PromptTemplate("Q: {q}"), q="6 x 7?") == ANSWER


def test_metadata_can_be_set(backend: Backend, tiny: MakeModel) -> None:
    metadata = MLXGuarded(
        model=tiny(),
        backend=backend,
        context_window=512,
        max_tokens=100,
        is_function_calling_model=False,
    ).metadata
    assert (metadata.context_window, metadata.num_output) == (512, 100)
    assert not metadata.is_function_calling_model


@pytest.mark.parametrize("max_tokens", [2048, 4096, 10**9])
def test_a_long_output_leaves_room_for_a_prompt(
    backend: Backend, scripted: MakeModel, max_tokens: int
) -> None:
    from llama_index.core.response_synthesizers import get_response_synthesizer
    from llama_index.core.schema import NodeWithScore, TextNode

    llm = MLXGuarded(model=scripted(ANSWER), backend=backend, max_tokens=max_tokens)
    for one in (llm, llm.model_copy(update={"context_window": 1500})):
        assert 0 < one.metadata.num_output < one.metadata.context_window
    nodes = [NodeWithScore(node=TextNode(text="Six times seven is 42."))]
    answer = get_response_synthesizer(llm=llm).synthesize("6 x 7?", nodes)
    assert str(answer) == ANSWER


def test_metadata_of_a_model_that_is_not_here_is_a_guess() -> None:
    metadata = big(Fake()).metadata
    assert metadata.context_window == 3900 and metadata.is_chat_model


def test_making_one_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the shared backend is made at first use")

    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend.default_backend", refuse)
    MLXGuarded(model="big").class_name()


def test_without_a_backend_the_shared_one_is_used(
    backend: Backend, scripted: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_guarded_llm.backend.default_backend.default_backend", lambda: backend)
    llm = MLXGuarded(model=scripted(ANSWER))
    assert llm.metadata.context_window == 2048
    assert llm.chat(user()).message.content == ANSWER
    assert events(backend, "request.finished"), "the shared backend answered"
