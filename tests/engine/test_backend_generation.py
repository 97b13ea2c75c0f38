"""What comes back from one request: text, reasons, counts, thinking, tools, log probabilities."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Chunk, Result
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.conftest import MakeModel
from tests.engine._backend import events, raw_tokens, text_of, tokens_of, wait_until

ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HARD = [
    "héllo wörld, ça va?",
    "你好 世界",
    "😀👩\u200d💻🏳️\u200d🌈 done",
    "e\u0301 שלום مرحبا",
    "line\n\n\tnext \ufffd end",
]


async def asked(backend: Backend, way: str, model: str, prompt: Any, **options: Any) -> Result:
    """Ask in one of four ways; a stream must add up to the same result."""
    if way == "generate":
        return backend.generate(model, prompt, **options)
    if way == "agenerate":
        return await backend.agenerate(model, prompt, **options)
    if way == "stream":
        chunks = list(backend.stream(model, prompt, **options))
    else:
        chunks = [chunk async for chunk in backend.astream(model, prompt, **options)]
    return put_together(chunks)


def put_together(chunks: list[Chunk]) -> Result:
    *others, last = chunks
    assert all((c.finish_reason, c.usage, c.guard) == (None, None, None) for c in others)
    assert last.finish_reason and last.usage and last.guard
    return Result(
        text=text_of(chunks),
        reasoning="".join(c.reasoning for c in chunks),
        tool_calls=tuple(call for c in chunks for call in c.tool_calls),
        invalid_tool_calls=tuple(call for c in chunks for call in c.invalid_tool_calls),
        logprobs=tuple(logprob for c in chunks for logprob in c.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        guard=last.guard,
    )


four_ways = pytest.mark.parametrize("way", ["generate", "stream", "agenerate", "astream"])


@four_ways
async def test_exact_text(backend: Backend, scripted: MakeModel, way: str) -> None:
    model = scripted(ANSWER)
    result = await asked(backend, way, model, "What is the capital of France?")
    assert result.text == ANSWER
    assert result.finish_reason == "stop"
    assert result.reasoning == ""
    assert not (result.tool_calls or result.invalid_tool_calls or result.logprobs)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    special = sum(map(len, ("<|im_start|>", "<|im_end|>", "<|im_start|>")))
    assert result.usage.prompt_tokens == len(prompt) - special + 3
    pieces = math.ceil(len(ANSWER) / 3)
    assert pieces - 1 <= result.usage.completion_tokens <= pieces + 1  # and the stop token
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens
    assert result.guard.served_model == result.guard.requested_model == model
    assert result.guard.degraded == () and not result.guard.resumed
    assert len(result.guard.fingerprint) == 32


@four_ways
async def test_thinking_is_split_off(backend: Backend, scripted: MakeModel, way: str) -> None:
    model = scripted("<think>Paris, I think.</think>\n\nIt is Paris.", thinking=True)
    result = await asked(backend, way, model, "Capital?")
    assert (result.reasoning, result.text) == ("Paris, I think.", "It is Paris.")


def test_thinking_that_the_prompt_opens(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("Paris, I think.</think>\n\nIt is Paris.", thinking="open")
    result = backend.generate(model, "Capital?")
    assert (result.reasoning, result.text) == ("Paris, I think.", "It is Paris.")


def test_thinking_cut_off_is_not_an_answer(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("<think>Paris, I think.</think>\n\nIt is Paris.", thinking=True)
    result = backend.generate(model, "Capital?", max_tokens=4)
    assert result.text == "" and "Paris, I think.".startswith(result.reasoning)
    assert result.finish_reason == "length"


@four_ways
async def test_tool_calls(backend: Backend, scripted: MakeModel, way: str) -> None:
    model = scripted(f"Let me look.{CALL}", tools=True)
    result = await asked(backend, way, model, "Weather?", tools=[WEATHER])
    assert result.text == "Let me look."
    (call,) = result.tool_calls
    assert (call.name, dict(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert result.finish_reason == "tool_calls" and result.invalid_tool_calls == ()


def test_a_call_that_cannot_be_read(backend: Backend, scripted: MakeModel) -> None:
    # A format that is no JSON: of one that is, a grammar leaves no wrong calls.
    template = "{# <tool_call>\n<function= #}" + chatml(tools=True)
    model = scripted("<tool_call>\nget_weather\n</tool_call>", tools=True, chat_template=template)
    result = backend.generate(model, "Weather?", tools=[WEATHER])
    assert result.tool_calls == () and len(result.invalid_tool_calls) == 1
    assert result.finish_reason == "stop"


def test_a_conversation_with_tools(backend: Backend, scripted: MakeModel) -> None:
    model = scripted(f"Let me look.{CALL}", tools=True)
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert backend.generate(model, messages, tools=[WEATHER]).text == "Let me look."
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == "{}", "left as it was"


def test_without_tools_a_call_is_text(backend: Backend, scripted: MakeModel) -> None:
    assert backend.generate(scripted(CALL, tools=True), "Weather?").text == CALL


@pytest.mark.parametrize("text", HARD)
def test_characters_are_never_broken(backend: Backend, scripted: MakeModel, text: str) -> None:
    model = scripted(text, piece_bytes=2)
    chunks = list(backend.stream(model, "Say it"))
    assert text_of(chunks) == text
    for chunk in chunks:
        assert chunk.text.count("\ufffd") <= text.count("\ufffd")
    whole = chunks[-1].usage
    assert whole
    for max_tokens in range(1, min(whole.completion_tokens, 6)):
        cut = backend.generate(model, "Say it", max_tokens=max_tokens).text
        assert text.startswith(cut)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["two"], "one "),
        ("two", "one "),
        (["ee f", "three"], "one two "),
        (["four!"], "one two three four"),
        (["one"], ""),
        (["absent"], "one two three four"),
    ],
)
def test_stop_strings(
    backend: Backend, scripted: MakeModel, stop: list[str] | str, expected: str
) -> None:
    chunks = list(backend.stream(scripted("one two three four"), "Count", stop=stop))
    assert text_of(chunks) == expected
    assert chunks[-1].finish_reason == "stop"
    so_far = ""
    for chunk in chunks:  # nothing was handed out that had to be taken back
        so_far += chunk.text
        assert expected.startswith(so_far)


def test_a_stop_string_ends_the_generation(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("tick tack ", loop=True)
    result = backend.generate(model, "Go", stop=["tack"], max_tokens=500)
    assert result.text == "tick " and result.usage.completion_tokens < 10
    assert result.stop_string == "tack"
    assert backend.generate(model, "Go", stop=["tock"], max_tokens=5).stop_string == ""


def test_length(backend: Backend, tiny: MakeModel) -> None:
    result = backend.generate(tiny(), "Hello", max_tokens=5)
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 5)


def test_the_context_window_bounds_the_answer(backend: Backend, tiny: MakeModel) -> None:
    result = backend.generate(tiny(context_window=64), "Hello", max_tokens=1000)
    assert result.usage.total_tokens == 64 and result.finish_reason == "length"


def test_cancelled(backend: Backend, tiny: MakeModel) -> None:
    stream = backend.stream(tiny(), "Hello", max_tokens=1500)
    chunks = [next(stream), next(stream)]
    backend.cancel(stream.request_id)
    chunks += stream
    result = put_together(chunks)
    assert result.finish_reason == "cancelled"
    assert 2 <= result.usage.completion_tokens < 1500
    assert result.text


class TestPrompts:
    def test_a_string_is_one_user_message(self, backend: Backend, tiny: MakeModel) -> None:
        plain = backend.generate(tiny(), "Hello", max_tokens=12)
        message = backend.generate(tiny(), [{"role": "user", "content": "Hello"}], max_tokens=12)
        assert plain.text == message.text
        assert plain.usage.prompt_tokens == message.usage.prompt_tokens

    def test_raw_is_text_to_continue(self, backend: Backend, tiny: MakeModel) -> None:
        raw = backend.generate(tiny(), "Hello", raw=True, max_tokens=12)
        assert raw.usage.prompt_tokens == len("Hello")
        assert raw.text != backend.generate(tiny(), "Hello", max_tokens=12).text

    def test_raw_ids_are_continued_as_they_are(self, backend: Backend, tiny: MakeModel) -> None:
        for folder in (tiny(), tiny(chat_template=None)):
            ids = backend.tokens(folder, "Hello", raw=True)
            text, given = (
                backend.generate(folder, prompt, raw=True, max_tokens=12)
                for prompt in ("Hello", ids)
            )
            assert given.text == text.text
            assert given.usage.prompt_tokens == len(ids)
            assert backend.tokens(folder, ids, raw=True) == ids
        with pytest.raises(InvalidRequest, match="embeddings for the tokens"):
            backend.generate(tiny(), [10**6], raw=True)

    def test_a_base_model_continues_strings(self, backend: Backend, tiny: MakeModel) -> None:
        base = tiny(chat_template=None)
        raw = backend.generate(base, "Hello", raw=True, max_tokens=12)
        assert backend.generate(base, "Hello", max_tokens=12).text == raw.text

    def test_the_whole_prompt_counts(self, backend: Backend, tiny: MakeModel) -> None:
        prompts = ("Hello", "hello", "Hellp")
        texts = {backend.generate(tiny(), prompt, max_tokens=8).text for prompt in prompts}
        assert len(texts) == 3

    def test_a_prompt_of_many_prefill_steps(self, make_backend: Any, tiny: MakeModel) -> None:
        long = "The quick brown fox. " * 20
        one = make_backend(prefill_step_size=2048).generate(tiny(), long, max_tokens=12)
        many = make_backend(prefill_step_size=16).generate(tiny(), long, max_tokens=12)
        assert one.text == many.text


class TestGreedy:
    @pytest.mark.parametrize("quantize_bits", [None, 4])
    def test_same_tokens_as_plain_mlx_lm(
        self, backend: Backend, tiny: MakeModel, quantize_bits: int | None
    ) -> None:
        model = tiny(quantize_bits=quantize_bits)
        ours = backend.generate(model, "Tell me more", max_tokens=40, logprobs=True)
        assert tokens_of(ours) == backend.run(partial(raw_tokens, model, "Tell me more", 40))

    def test_a_scripted_answer_with_its_stop_token(
        self, backend: Backend, scripted: MakeModel
    ) -> None:
        ours = backend.generate(scripted(ANSWER), "Hello", logprobs=True)
        assert tokens_of(ours) == backend.run(partial(raw_tokens, scripted(ANSWER), "Hello", 40))
        assert len(ours.logprobs) == ours.usage.completion_tokens


class TestLogprobs:
    def test_of_each_token(self, backend: Backend, tiny: MakeModel) -> None:
        plain = backend.generate(tiny(), "Hello", max_tokens=10)
        assert plain.logprobs == ()
        result = backend.generate(tiny(), "Hello", max_tokens=10, logprobs=True)
        assert result.text == plain.text
        assert len(result.logprobs) == 10
        assert all(p.logprob <= 0 and p.top == () for p in result.logprobs)

    @four_ways
    async def test_alternatives(self, backend: Backend, tiny: MakeModel, way: str) -> None:
        result = await asked(backend, way, tiny(), "Hello", max_tokens=10, top_logprobs=5)
        assert len(result.logprobs) == 10
        for logprob in result.logprobs:
            values = [value for _, _, value in logprob.top]
            assert len(values) == 5 and values == sorted(values, reverse=True)
            assert sum(map(math.exp, values)) <= 1 + 1e-5
            token, text, value = logprob.top[0]
            assert (token, text) == (logprob.token, logprob.text), "greedy takes the likeliest"
            assert value == pytest.approx(logprob.logprob)

    def test_of_a_certain_token(self, backend: Backend, scripted: MakeModel) -> None:
        result = backend.generate(scripted(ANSWER), "Hello", top_logprobs=2)
        assert all(p.logprob == pytest.approx(0, abs=1e-3) for p in result.logprobs)
        assert "".join(p.text for p in result.logprobs[:-1]).replace("Ġ", " ") == ANSWER

    def test_two_that_ask_for_different_counts(self, backend: Backend, tiny: MakeModel) -> None:
        streams = [backend.stream(tiny(), "Hello", max_tokens=20, top_logprobs=n) for n in (2, 7)]
        for n, stream in zip((2, 7), streams, strict=True):
            assert all(len(p.top) == n for chunk in stream for p in chunk.logprobs)


class TestSampling:
    """Options that choose the token, each by an effect that can be known beforehand."""

    def test_logit_bias(self, backend: Backend, tiny: MakeModel) -> None:
        always = backend.generate(tiny(), "Hello", max_tokens=6, logit_bias={ord("Z"): 1000})
        assert always.text == "ZZZZZZ"
        free = backend.generate(tiny(), "Hello", max_tokens=1, top_logprobs=2).logprobs[0]
        never = {free.token: -1000.0}
        other = backend.generate(tiny(), "Hello", max_tokens=1, logit_bias=never, logprobs=True)
        assert other.logprobs[0].token == free.top[1][0]

    @pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
    def test_filters_down_to_the_likeliest(
        self, backend: Backend, tiny: MakeModel, options: dict[str, Any]
    ) -> None:
        greedy = backend.generate(tiny(), "Hello", max_tokens=16)
        hot = backend.generate(tiny(), "Hello", max_tokens=16, temperature=5.0, seed=1, **options)
        assert hot.text == greedy.text

    def test_filters_keep_what_they_say(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(
            tiny(), "Hello", max_tokens=24, temperature=20.0, top_k=3, top_logprobs=3, seed=5
        )
        for logprob in result.logprobs:
            assert logprob.token in [token for token, _, _ in logprob.top]
        assert any(p.token != p.top[0][0] for p in result.logprobs)

    def test_temperature_and_seed(self, backend: Backend, tiny: MakeModel) -> None:
        texts = {
            backend.generate(tiny(), "Hello", max_tokens=16, temperature=t, seed=s).text
            for t, s in [(0.0, 1), (0.0, 2), (2.0, 1), (2.0, 2), (2.0, 1)]
        }
        assert len(texts) == 3

    @pytest.mark.parametrize(
        "options",
        [{"presence_penalty": 100.0}, {"frequency_penalty": 100.0}, {"repetition_penalty": 100.0}],
    )
    def test_penalties(self, backend: Backend, tiny: MakeModel, options: dict[str, Any]) -> None:
        plain: dict[str, Any] = {"max_tokens": 40, "logprobs": True}
        free = tokens_of(backend.generate(tiny(), "Hello", **plain))
        assert len({*free}) < len(free), "without a penalty this model repeats itself"
        tokens = tokens_of(backend.generate(tiny(), "Hello", **plain, **options))
        assert len({*tokens}) == len(tokens)

    def test_a_penalty_forgets(self, backend: Backend, tiny: MakeModel) -> None:
        options: dict[str, Any] = {"presence_penalty": 100.0, "penalty_window": 2}
        result = backend.generate(tiny(), "Hello", max_tokens=40, logprobs=True, **options)
        tokens = tokens_of(result)
        assert all(len({*tokens[i : i + 3]}) == 3 for i in range(len(tokens) - 2))
        assert len({*tokens}) < len(tokens)


class TestProvenance:
    def test_times_add_up(self, backend: Backend, tiny: MakeModel) -> None:
        began = time.monotonic()
        guard = backend.generate(tiny(), "Hello", max_tokens=20).guard
        elapsed = time.monotonic() - began
        assert 0 < guard.loading <= guard.queued
        assert guard.deferred == guard.paused == 0
        assert 0 < guard.queued + guard.prefill + guard.decode <= elapsed
        first, started, finished = (
            events(backend, f"request.{verb}", request_id=guard.request_id)[0]
            for verb in ("queued", "started", "finished")
        )
        assert guard.queued >= started.time - first.time
        assert guard.prefill + guard.decode == pytest.approx(
            finished.time - started.time, abs=0.5 * elapsed
        )
        (load,) = events(backend, "load.finished")
        assert guard.loading == pytest.approx(load.details["seconds"], rel=0.5, abs=0.05)

    def test_second_request_did_not_load(self, backend: Backend, tiny: MakeModel) -> None:
        backend.load(tiny())
        assert backend.generate(tiny(), "Hello", max_tokens=2).guard.loading == 0

    def test_a_name_of_ones_own(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(), "Hello", max_tokens=2, request_id="mine")
        assert result.guard.request_id == "mine"
        assert "mine" in backend.explain("mine")
        assert backend.stream(tiny(), "Hello", max_tokens=2, request_id="more").request_id == "more"
        again = backend.generate(tiny(), "Hello", max_tokens=2, request_id="mine")
        assert again.text == result.text, "an ended request's name is free again"

    def test_names_are_unique(self, backend: Backend, tiny: MakeModel) -> None:
        streams = [backend.stream(tiny(), "Hello", max_tokens=2) for _ in range(5)]
        assert len({stream.request_id for stream in streams}) == 5
        assert all(list(stream)[-1].guard for stream in streams)

    def test_plain_values(self, backend: Backend, tiny: MakeModel) -> None:
        guard = backend.generate(tiny(), "Hello", max_tokens=2).guard.as_dict()
        assert guard["requested_model"] == tiny() and guard["seed"] >= 0


def test_progress(backend: Backend, tiny: MakeModel) -> None:
    steps: list[Any] = []
    backend.generate(tiny(), "Hello", max_tokens=2, on_progress=steps.append)
    wait_until(lambda: any(step.stage == "prefill" for step in steps))
    assert {step.stage for step in steps} <= {"verify", "load", "prefill"}
    load = [step for step in steps if step.stage == "load"]
    assert load and load[-1].done == load[-1].total


def test_a_broken_progress_callback_harms_nothing(make_backend: Any, tiny: MakeModel) -> None:
    def broken(step: Any) -> None:
        raise RuntimeError("the progress bar is broken")

    backend = make_backend(on_progress=broken)
    assert backend.generate(tiny(), "Hello", max_tokens=2, on_progress=broken).text
