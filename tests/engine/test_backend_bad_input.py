"""Whatever is wrong with a call or a model: a typed error that helps, and nothing is harmed."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, GuardedLLMError
from mlx_guarded_llm.errors import (
    BackendClosed,
    ContextOverflow,
    InvalidRequest,
    MemoryRefused,
    ModelInvalid,
    ModelNotFound,
    ModelUnsupported,
    NoChatTemplate,
    NonFiniteLogits,
    PullFailed,
)
from mlx_guarded_llm.record import timeline
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, text_of

USER = {"role": "user", "content": "Hello"}


def answers(backend: Backend, model: str) -> bool:
    return backend.generate(model, "Hello", max_tokens=3).finish_reason == "length"


def ask_for(backend: Backend, ask: str, model: str) -> None:
    if ask == "load":
        backend.load(model)
    else:
        backend.generate(model, "Hello", max_tokens=3)


class TestModelNames:
    @pytest.mark.parametrize("model", ["", "   ", None, 3, b"x", ["a"], "a\0b", "x" * 5000])
    def test_no_name(self, backend: Backend, model: Any) -> None:
        for call in (backend.load, backend.unload):
            with pytest.raises(InvalidRequest):
                call(model)
        with pytest.raises(InvalidRequest):
            backend.generate(model, "Hello")

    def test_unknown(self, backend: Backend) -> None:
        with pytest.raises(ModelNotFound) as caught:
            backend.generate("smollm3-135m", "Hello")
        assert "smollm2-135m" in caught.value.hint
        with pytest.raises(ModelNotFound):
            backend.generate("./no/such/folder", "Hello")

    def test_not_fetched_and_offline(self, backend: Backend) -> None:
        with pytest.raises(PullFailed) as caught:
            backend.generate("nobody/nothing", "Hello")
        assert caught.value.hint
        assert events(backend, "load.") == []

    async def test_the_async_ones_too(self, backend: Backend) -> None:
        with pytest.raises(ModelNotFound):
            await backend.agenerate("no-such-model", "Hello")
        with pytest.raises(ModelNotFound):
            await backend.aload("no-such-model")


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def half_a_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_size(folder: Path) -> None:
    change(folder, hidden_size=128)


def more_layers(folder: Path) -> None:
    change(folder, num_hidden_layers=3)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in %}")


def unsupported(folder: Path) -> None:
    change(folder, model_type="no_such_architecture", architectures=["NoSuch"])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change(folder: Path, **values: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize("ask", ["generate", "load"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (empty, ModelInvalid),
        (truncated, ModelInvalid),
        (half_a_header, ModelInvalid),
        (no_json, ModelInvalid),
        (no_config, ModelInvalid),
        (no_weights, ModelInvalid),
        (other_size, ModelInvalid),
        (more_layers, ModelInvalid),
        (no_tokenizer, ModelInvalid),
        (broken_tokenizer, ModelInvalid),
        (broken_template, ModelInvalid),
        (unsupported, ModelUnsupported),
        (pickled, ModelUnsupported),
    ],
)
def test_broken_folders(
    backend: Backend,
    tiny: MakeModel,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    error: type[GuardedLLMError],
    ask: str,
) -> None:
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    spoil(folder)
    if ask == "load" and spoil is broken_template:
        backend.load(str(folder))  # raw prompts need no template
        return
    with pytest.raises(error) as caught:
        ask_for(backend, ask, str(folder))
    assert any(word in str(caught.value) for word in (str(folder), "template", "no_such_"))
    assert caught.value.hint and caught.value.fallback
    assert answers(backend, tiny())
    shutil.rmtree(folder)
    make_tiny_model(folder)
    assert answers(backend, str(folder)), "repaired, it works"


class TestPrompts:
    @pytest.mark.parametrize(
        "prompt",
        [
            "",
            [],
            None,
            3,
            {"role": "user", "content": "Hello"},
            ["Hello"],
            [{"content": "Hello"}],
            [{"role": "robot", "content": "Hello"}],
            [{"role": "user"}],
            [{"role": "user", "content": 3}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            [{"role": "user", "content": "Hello", "tool_calls": [{"function": {"name": "f"}}]}],
            [USER, {"role": "tool", "content": "sunny"}],
            [USER, {"role": "assistant", "tool_calls": "f"}],
            [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}],
            [USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}],
            [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{no json"}}],
                },
            ],
            "\ud800",
        ],
    )
    def test_malformed(self, backend: Backend, tiny: MakeModel, prompt: Any) -> None:
        with pytest.raises(InvalidRequest):
            backend.generate(tiny(), prompt)
        with pytest.raises(InvalidRequest):
            backend.stream(tiny(), prompt)

    def test_messages_without_a_template(self, backend: Backend, tiny: MakeModel) -> None:
        base = tiny(chat_template=None)
        with pytest.raises(NoChatTemplate) as caught:
            backend.generate(base, [USER])
        assert caught.value.hint
        assert answers(backend, base)

    def test_a_template_that_refuses(self, backend: Backend, tiny: MakeModel) -> None:
        model = tiny(chat_template="{{ raise_exception('no system messages') }}")
        with pytest.raises(InvalidRequest, match="no system messages"):
            backend.generate(model, [USER])

    def test_longer_than_the_context(self, backend: Backend, tiny: MakeModel) -> None:
        model = tiny(context_window=64)
        with pytest.raises(ContextOverflow) as caught:
            backend.generate(model, "x" * 100, max_tokens=3)
        assert caught.value.prompt_tokens > caught.value.context_window == 64
        assert caught.value.hint and caught.value.fallback
        assert events(backend, "load.") == [], "known before a load"
        assert answers(backend, model)

    def test_tools_for_a_base_model(self, backend: Backend, tiny: MakeModel) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        with pytest.raises(InvalidRequest) as caught:
            backend.generate(tiny(chat_template=None), "Hello", tools=tools)
        assert caught.value.hint


BAD_OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 2.5},
    {"max_tokens": "10"},
    {"max_tokens": True},
    {"temperature": -1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "hot"},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"top_k": 1.5},
    {"min_p": 2},
    {"seed": -1},
    {"seed": 2**64},
    {"seed": "1"},
    {"seed": 1.0},
    {"stop": [""]},
    {"stop": ["x"] * 1000},
    {"stop": ["x" * 5000]},
    {"stop": [1]},
    {"stop": 5},
    {"logprobs": "yes"},
    {"logit_bias": [1, 2]},
    {"logit_bias": "abc"},
    {"repetition_penalty": 0},
    {"repetition_penalty": 1e-9},
    {"presence_penalty": "x"},
    {"frequency_penalty": 1e9},
    {"penalty_window": 0},
    {"logit_bias": {-1: 1.0}},
    {"logit_bias": {"a": 1.0}},
    {"logit_bias": {1: float("nan")}},
    {"logit_bias": {1: "x"}},
    {"logit_bias": dict.fromkeys(range(5000), 0.0)},
    {"top_logprobs": 21},
    {"top_logprobs": -1},
    {"thinking_budget": -1},
    {"thinking_budget": 1.5},
    {"thinking_budget": True},
    {"raw": "yes"},
    {"thinking": "yes"},
    {"tools": "f"},
    {"tools": [{"name": "f"}]},
    {"tool_choice": "required"},
    {"tool_choice": 3},
    {"parallel_tool_calls": "yes"},
    {"schema": "{}"},
    {"schema": [1]},
    {"schema": {"enum": [b"bytes"]}},
    {"regex": ""},
    {"regex": 3},
    {"grammar": ["start: /a/"]},
    {"template_kwargs": {"messages": []}},
    {"template_kwargs": [1]},
    {"timeout": -1},
    {"timeout": float("nan")},
    {"timeout": "soon"},
    {"timeout": True},
    {"no_such_option": 1},
    {"max_new_tokens": 10},
    {"kv_bits": 7},
    {"kv_bits": "8"},
    {"kv_group_size": 5},
]


class TestOptions:
    @pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
    def test_out_of_range(self, backend: Backend, tiny: MakeModel, options: Any) -> None:
        for call in (backend.generate, backend.stream):
            with pytest.raises(InvalidRequest) as caught:
                call(tiny(), "Hello", **options)
            (name,) = options
            assert name.split("_")[0] in str(caught.value)
        assert backend.events() == (), "nothing was started for it"

    def test_none_is_not_given(self, backend: Backend, tiny: MakeModel) -> None:
        plain = backend.generate(tiny(), "Hello", max_tokens=4)
        none = dict.fromkeys(("temperature", "top_p", "seed", "stop", "tools", "kv_bits"))
        assert backend.generate(tiny(), "Hello", max_tokens=4, **none).text == plain.text
        ends = backend.generate(tiny(), "Hello", max_tokens=None, timeout=60)
        assert ends.usage.completion_tokens > 4

    async def test_out_of_range_async(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(InvalidRequest):
            await backend.agenerate(tiny(), "Hello", max_tokens=0)
        with pytest.raises(InvalidRequest):
            backend.astream(tiny(), "Hello", temperature=-1)
        await asyncio.sleep(0)

    def test_unknown_ones_are_listed(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(InvalidRequest, match="temprature") as caught:
            backend.generate(tiny(), "Hello", temprature=1.0)
        assert "temperature" in caught.value.hint

    def test_a_bias_outside_the_vocabulary(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(InvalidRequest, match="99999"):
            backend.generate(tiny(), "Hello", logit_bias={99999: 1.0})
        assert answers(backend, tiny())

    def test_a_kv_cache_that_cannot_be_packed(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(ModelUnsupported, match="groups of 64") as caught:
            backend.load(tiny(hidden_size=64), kv_bits=8, kv_group_size=64)
        assert "kv_group_size" in caught.value.hint
        assert answers(backend, tiny())

    def test_of_load(self, backend: Backend, tiny: MakeModel) -> None:
        options: list[dict[str, Any]] = [
            {"kv_bits": 3},
            {"kv_group_size": 5},
            {"context_window": 0},
            {"no_such_option": 1},
            {"timeout": -1},
            {"revision": "main"},
        ]
        for bad in options:
            with pytest.raises(InvalidRequest):
                backend.load(tiny(), **bad)
        with pytest.raises(ModelInvalid):
            backend.load(tiny(), adapter_path="/no/such/folder")
        assert answers(backend, tiny())

    def test_two_forms_for_one_answer(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(InvalidRequest, match="schema and regex are given"):
            backend.generate(tiny(), "Hello", schema={}, regex="a")

    @pytest.mark.parametrize(
        "options",
        [
            {"isolation": "nowhere"},
            {"load_wait": -1},
            {"load_wait": "x"},
            {"load_wait": float("nan")},
            {"fairness_window": -1},
            {"keep_alive": -1},
            {"on_load_deadline": "explode"},
            {"memory_budget": 0},
            {"memory_budget": "much"},
            {"memory_budget": "12 parsecs"},
            {"memory_budget": 1.5},
            {"prefix_cache": -1},
            {"max_queue": 0},
            {"max_active": 0},
            {"max_active": 1.5},
            {"timeout": -1},
            {"prefill_step_size": 0},
            {"record_size": 0},
            {"record_size": "x"},
        ],
        ids=str,
    )
    def test_of_the_backend(self, make_backend: MakeBackend, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            make_backend(**options)
        assert next(iter(options)) in str(caught.value)


def test_a_name_in_use(backend: Backend, tiny: MakeModel) -> None:
    alone = backend.generate(tiny(), "Hello", max_tokens=30).text
    first = backend.stream(tiny(), "Hello", max_tokens=30, request_id="same")
    text = next(first).text
    with pytest.raises(InvalidRequest, match="same") as caught:
        backend.generate(tiny(), "Hello", max_tokens=3, request_id="same")
    assert caught.value.hint
    assert text + text_of(first) == alone


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_logits_that_are_not_numbers(backend: Backend, tiny: MakeModel, architecture: str) -> None:
    broken = tiny(nan=True, architecture=architecture)
    hot: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
    for options in ({}, hot):
        with pytest.raises(NonFiniteLogits) as caught:
            backend.generate(broken, "Hello", max_tokens=5, **options)
        assert caught.value.hint and not caught.value.retryable and caught.value.fallback
    assert answers(backend, tiny())


def test_over_the_budget(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(memory_budget="16MiB", prefix_cache=0)
    with pytest.raises(MemoryRefused):
        backend.generate(tiny(hidden_size=512, layers=4), "Hello", max_tokens=3)
    assert answers(backend, tiny())


async def test_closed(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend()
    assert answers(backend, tiny())
    backend.close()
    calls: list[Callable[[], Any]] = [
        lambda: backend.generate(tiny(), "Hello"),
        lambda: backend.stream(tiny(), "Hello"),
        lambda: backend.astream(tiny(), "Hello"),
        lambda: backend.load(tiny()),
        lambda: backend.unload(tiny()),
        lambda: backend.run(lambda: 1),
        backend.models,
        backend.memory,
    ]
    for call in calls:
        with pytest.raises(BackendClosed):
            call()
    with pytest.raises(BackendClosed):
        await backend.agenerate(tiny(), "Hello")
    backend.cancel("nobody")
    assert timeline(backend.record.events()).rows, "the record stays"
