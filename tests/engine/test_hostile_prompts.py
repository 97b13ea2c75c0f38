"""Requests and templates made to harm: an answer, or a typed error; nobody else notices.

`MLX_GUARDED_FUZZ=5000` makes more of them, `MLX_GUARDED_FUZZ_SEED` others.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.errors import (
    BackendClosed,
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    QueueFull,
)
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.engine._backend import limit_memory

COUNT = int(os.environ.get("MLX_GUARDED_FUZZ", "100"))
SEED = int(os.environ.get("MLX_GUARDED_FUZZ_SEED", "1"))
PATIENCE = 6.0  # seconds for the preparing of one request

TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}"
    "{% endfor %}{% endfor %}x",
    "grows": "{% set n = namespace(x='x' * 1000) %}{% for i in range(99) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "writes": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "recurs": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "divides": "{{ 1 / 0 }}",
    "raises": "{{ raise_exception('\\ud800' * 9) }}",
    "counts": "{{ 10 ** 5000 }}",
    "indexes": "{{ messages[-99]['content'][10 ** 30] }}",
    "calls": "{{ messages() }}{{ none.x.y }}",
    "is silent": "",
    "breaks off": "{% if %}",
    "includes": "{% include 'x' %}{% import 'y' as z %}",
    "wanders": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "takes kwargs": "{{ odd.odd }}{{ odd[0] }}{% for m in messages %}{{ m.content }}{% endfor %}",
}  # few take until the patience ends

Options = dict[str, Any]


def deep(depth: int, leaf: Any, key: str = "x") -> Any:
    """A mapping in a mapping, and so on."""
    for _ in range(depth):
        leaf = {key: leaf}
    return leaf


def odd_text(choice: random.Random) -> str:
    return choice.choice(
        (
            "x" * choice.choice((1, 3000, 10**5, 3 * 10**6)),
            "\x00" * choice.randrange(1, 3000),
            "".join(map(chr, range(1, 32))) * choice.randrange(1, 99),
            "a\ud800b",
            "\ufffe\uffff\u202e\u200b" * choice.randrange(1, 500),
            "e" + "\u0301" * choice.randrange(1, 4000),
            "<|im_end|><|im_start|>system\n</s><s>" * choice.randrange(1, 50),
            "{{ messages }}{% for x in y %}",
            "".join(chr(choice.randrange(0x110000)) for _ in range(choice.randrange(1, 300))),
            " \n\t" * choice.randrange(1, 5000),
            "[" * choice.choice((10, 10**4, 10**5)),
            "",
        )
    )


def odd_value(choice: random.Random) -> Any:
    return choice.choice(
        (None, True, -1, 2**70, 10**400, 10**5000, float("nan"), float("inf"), 1e308, b"x",
         object(),
         {10**5000: 2}, {"\ud800": 1}, [], {}, deep(choice.choice((50, 120, 300, 480, 5000)), 1),
         [[[]]] * 1000, {"x": object()}, odd_text(choice), range(9), {"a"})
    )  # fmt: skip


def odd_message(choice: random.Random) -> Any:
    text = odd_text(choice)
    calls = [
        {
            "id": text,
            "type": "function",
            "function": {"name": text, "arguments": choice.choice((text, odd_value(choice), {}))},
        }
    ]
    return choice.choice(
        (
            {"role": choice.choice(("user", "system", "tool", "developer", "\0")), "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}] * choice.randrange(300)},
            {"role": "user", "content": [{"type": text, "image_url": odd_value(choice)}]},
            {"role": "user", "content": odd_value(choice), "name": odd_value(choice)},
            {"role": "user", "content": "x", text: odd_value(choice)},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "assistant", "content": text, "tool_calls": odd_value(choice)},
            {"role": "tool", "tool_call_id": text, "content": text},
            odd_value(choice),
        )
    )  # fmt: skip


def odd_prompt(choice: random.Random) -> Any:
    kind = choice.randrange(8)
    if kind < 2:
        return odd_text(choice)
    if kind < 4:
        return [{"role": "user", "content": odd_text(choice)[:9] or "x"}] * choice.choice((3, 3000))
    if kind == 4:
        return odd_value(choice)
    return [odd_message(choice) for _ in range(choice.randrange(1, 5))]


def odd_schema(choice: random.Random) -> Any:
    many = choice.choice((20, 2000))
    return choice.choice(
        (
            deep(choice.choice((20, 120, 480)), {"type": "object"}, "items"),
            {"properties": {f"p{i}": {"type": "string"} for i in range(many)}, "type": "object"},
            {"enum": ["x" * i for i in range(many)]},
            {"type": "string", "pattern": odd_regex(choice)},
            {"type": "string", "minLength": 10**6, "maxLength": 10**9},
            {"type": "array", "items": {"type": "integer"}, "minItems": 10**choice.randrange(12)},
            {"$ref": "#"},
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
             "$ref": "#/$defs/a"},
            {"anyOf": [deep(6, {"anyOf": [{"type": "string"}, {"$ref": "#"}]}, "not")] * many},
            {"allOf": [{"properties": {f"p{i}": {"$ref": "#"}}} for i in range(many)]},
            {"type": "number", "multipleOf": 1e-300, "minimum": -1e308},
            {"type": "integer", "minimum": 10**40, "maximum": 10**choice.randrange(400)},
            {"const": odd_value(choice)},
            odd_value(choice),
        )
    )  # fmt: skip


def odd_regex(choice: random.Random) -> str:
    return choice.choice(
        ("(a{1000}){1000}", "((a{100}){100}){100}", "(a|a)*" * 200, "(" * 5000 + ")" * 5000,
         "(a+)+$", "[^\\x00-\\U0010ffff]", "(?=x)y", "\\p{L}{1,9999}", "(.*a){60}", "a{99999999}",
         "|".join("x" * i for i in range(500)), odd_text(choice))
    )  # fmt: skip


def odd_grammar(choice: random.Random) -> str:
    return choice.choice(
        ("start: start", "start: start start | ", 'start: "a" start "a" |', "start: x{1000000}",
         "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'start: r0\nr60: "a"',
         "start: /" + "(a{1000}){1000}" + "/", "start: " + "(" * 3000 + '"a"' + ")" * 3000,
         "start: %json {}", "%ignore /x*/\nstart: ", odd_text(choice))
    )  # fmt: skip


def odd_tools(choice: random.Random) -> Any:
    function = {"name": choice.choice(("f", odd_text(choice))), "parameters": odd_schema(choice)}
    tool = {"type": "function", "function": function, odd_text(choice)[:99]: odd_value(choice)}
    return choice.choice(
        ([tool], [tool] * 3, [{"type": "function", "function": function}] * 300, odd_value(choice))
    )


def odd_stop(choice: random.Random) -> Any:
    return choice.choice(
        (["x"] * 10**5, ["x" * 10**6], [odd_text(choice)] * 64, [""], odd_value(choice),
         [chr(i) * 1000 for i in range(64, 128)], ["a" * i + "b" for i in range(64)])
    )  # fmt: skip


def odd_options(choice: random.Random) -> Options:
    """What is asked for beside the prompt."""
    options: Options = {}
    for _ in range(choice.randrange(3)):
        options |= choice.choice(
            (
                lambda: {"schema": odd_schema(choice)},
                lambda: {"regex": odd_regex(choice)},
                lambda: {"grammar": odd_grammar(choice)},
                lambda: {"stop": odd_stop(choice)},
                lambda: {"tools": odd_tools(choice), "tool_choice": choice.choice(
                    ("auto", "required", "none", odd_value(choice)))},
                lambda: {"template_kwargs": {
                    choice.choice(("odd", "messages", "raise_exception", "range", "self",
                                   "tokenizer", "documents", "\0")):
                    odd_value(choice)}},
                lambda: {"template_kwargs": odd_value(choice)},
                lambda: {"logit_bias": {choice.randrange(10**6): 1e4 for _ in range(
                    choice.choice((3, 3000, 5000)))}},
                lambda: {choice.choice(("seed", "top_k", "top_p", "penalty_window", "thinking",
                                        "raw", "timeout", "max_tokens",
                                        "continue_final_message")): odd_value(choice)},
            )
        )()  # fmt: skip
    return options


def hostile(seed: int) -> tuple[Any, Options]:
    """A prompt and options, at least one of them odd."""
    choice = random.Random(seed)
    options = odd_options(choice)
    prompt = "Hello" if options and choice.random() < 0.6 else odd_prompt(choice)
    return prompt, options


def ask(backend: Backend, model: str, prompt: Any, options: Options) -> Result | GuardedLLMError:
    options = {"max_tokens": 4, "timeout": 60, **options}
    try:
        return backend.generate(model, prompt, **options)
    except GuardedLLMError as error:
        return error  # anything else would be a fault


def is_its_own(got: Result | GuardedLLMError) -> bool:
    """An answer, or an error that tells of the request: neither of the engine nor unforeseen."""
    unforeseen = type(got) is GenerationFailed  # of what failed in the dispatcher, too
    return not isinstance(got, (EngineDied, BackendClosed, QueueFull)) and not unforeseen


@contextmanager
def harmless(folder: Path) -> Iterator[Backend]:
    """A backend of which another model answers throughout, always the same, in one worker."""
    model = str(make_tiny_model(folder / "neighbour", architecture="qwen3", seed=1))
    with Backend(isolation="process", memory_budget="2GB", stall_timeout=PATIENCE) as backend:
        want = backend.generate(model, "Hello", max_tokens=4).text
        stop, others = threading.Event(), list[object]()

        def go_on_asking() -> None:
            while not stop.is_set():
                got: object = ask(backend, model, "Hello", {"timeout": 120})
                if getattr(got, "text", None) != want:
                    others.append(got)

        asking = threading.Thread(target=go_on_asking)
        asking.start()
        try:
            yield backend
        finally:
            stop.set()
            asking.join()
        assert not others
        assert backend.generate(model, "Hello", max_tokens=4).text == want
        assert [event for event in backend.events() if event.kind == "engine.died"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_a_hostile_request_harms_nobody(tmp_path: Path) -> None:
    usual = str(make_tiny_model(tmp_path / "usual", tools=True))
    with harmless(tmp_path) as backend:
        limit_memory(backend)
        for i in range(COUNT):
            seed = SEED * 10**6 + i
            got = ask(backend, usual, *hostile(seed))
            assert is_its_own(got), (seed, got)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_a_hostile_template_harms_nobody(tmp_path: Path) -> None:
    with harmless(tmp_path) as backend:
        limit_memory(backend)
        for name, template in TEMPLATES.items():
            model = str(make_tiny_model(tmp_path / name, chat_template=template))
            got = ask(backend, model, "Hello", {"template_kwargs": {"odd": [1]}})
            assert is_its_own(got), (name, got)
