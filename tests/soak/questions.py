"""What the clients of the chaos ask: models, questions, and whether an answer is the right one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np

from mlx_guarded_llm import BaseBackend
from mlx_guarded_llm.errors import RequestCancelled
from mlx_guarded_llm.results import Collector, Embeddings, Result
from mlx_guarded_llm.testing.tiny import (
    make_scripted_model,
    make_tiny_embedder,
    make_tiny_model,
)

MODELS = ("noise", "sliding", "script")
EMBEDDER = "vectors"
PATIENCE = 600.0  # seconds for one request, whatever happens meanwhile
SCRIPT = (
    "<think>Hm. Zwölf Boxkämpfer, und keiner weiß warum; let me look it up.</think>"
    "Viktor jagt quer über den großen Sylter Deich. 東京、大阪 🦊! One, two, three; nobody"
    " minds the lazy dog, and so on until the very end of it.\n"
    '<tool_call>\n{"name": "look_up", "arguments": {"word": "lighthouse"}}\n</tool_call>'
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
]
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["lighthouse", "ship", "person"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 300},
        },
        "required": ["name", "kind", "age"],
    },
    "minItems": 3,
    "maxItems": 5,
}
SAMPLED: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0.8, "seed": 11, "top_p": 0.9, "max_tokens": 200},
    {"temperature": 1.2, "seed": 12, "top_k": 20, "repetition_penalty": 1.2, "max_tokens": 120},
    {"temperature": 1.0, "seed": 13, "frequency_penalty": 0.5, "top_logprobs": 2},
)


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Question:
    """A request that can be made again and again, and has one answer."""

    name: str
    model: str
    prompt: str | Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_texts(self) -> bool:
        return self.model == EMBEDDER


def make_models(folder: Path) -> Path:
    """Make them all. Returns the file of aliases that names them."""
    make_tiny_model(folder / "noise", seed=1, layers=3, hidden_size=128)
    make_tiny_model(folder / "sliding", architecture="gemma3_text", seed=2, layers=3)
    make_scripted_model(folder / "script", SCRIPT, thinking=True, tools=True)
    make_tiny_embedder(folder / EMBEDDER)
    lines = [f'[{name}]\nmodel = "{folder / name}"\n' for name in (*MODELS, EMBEDDER)]
    aliases = folder / "models.toml"
    aliases.write_text("\n".join(lines))
    return aliases


def questions() -> list[Question]:
    """All of them, less the one with a stop string, which depends on an answer."""
    asked = []
    for model in ("noise", "sliding"):
        prompt = f"Question to {model}: " + "why is the sea so wide? " * 12
        asked += [
            Question("greedy", model, prompt, {"max_tokens": 200}),
            Question("logprobs", model, prompt[:60], {"max_tokens": 100, "top_logprobs": 3}),
            Question("schema", model, prompt[:90], {"schema": SCHEMA, "max_tokens": 300}),
        ]
        asked += [
            Question(f"sampled {n}", model, prompt[: 40 + 90 * n], {"max_tokens": 150, **options})
            for n, options in enumerate(SAMPLED)
        ]
    sure: dict[str, Any] = {"temperature": 0.7, "seed": 5}
    asked += [
        Question("script", "script", "Well? " * 40, {"tools": TOOLS, "max_tokens": 300}),
        Question("script stop", "script", "Well? ", {"stop": ["nobody minds"], "max_tokens": 300}),
        Question("script sampled", "script", "And? " * 20, {**sure, "max_tokens": 300}),
        Question("texts", EMBEDDER, [f"text number {n}, or so" for n in range(24)]),
    ]
    return asked


def stopped(question: Question, answer: Result) -> Question:
    """The same question, to be ended by a string in the middle of its answer."""
    text = answer.text
    middle = len(text) // 2
    stop = next(
        text[at : at + 3]
        for at in range(middle, len(text) - 3)
        if text.index(text[at : at + 3]) == at and text[at : at + 3].isascii()
    )
    return Question("stop", question.model, question.prompt, {**question.options, "stop": [stop]})


def ask(backend: BaseBackend, question: Question, identity: str) -> Result | Embeddings:
    """The whole answer at once."""
    common: dict[str, Any] = {"timeout": PATIENCE, "request_id": identity}
    if question.is_texts:
        return backend.embed(question.model, question.prompt, **common)
    assert isinstance(question.prompt, str)
    return backend.generate(question.model, question.prompt, **common, **question.options)


def read(
    backend: BaseBackend, question: Question, identity: str, heard: Callable[[], None]
) -> Result:
    """The answer piece by piece; `heard` is called for each."""
    collector = Collector()
    for chunk in _stream(backend, question, identity):
        heard()
        collector.add(chunk)
    assert [c.finish_reason is not None for c in collector.chunks].count(True) == 1
    return collector.result()


def read_async(
    backend: BaseBackend, question: Question, identity: str, heard: Callable[[], None]
) -> Result:
    """The same in an event loop of its own."""

    async def collect() -> Result:
        collector = Collector()
        assert isinstance(question.prompt, str)
        async for chunk in backend.astream(
            question.model,
            question.prompt,
            request_id=identity,
            timeout=PATIENCE,
            **question.options,
        ):
            heard()
            collector.add(chunk)
        return collector.result()

    return asyncio.run(collect())


def cancelled(backend: BaseBackend, question: Question, identity: str, after: int) -> str | None:
    """The text until a cancel, given after that many pieces, took effect; None if before any."""
    text = ""
    try:
        for n, chunk in enumerate(_stream(backend, question, identity)):
            text += chunk.text
            if n == after:
                backend.cancel(identity)
    except RequestCancelled:
        return None
    return text


def left(backend: BaseBackend, question: Question, identity: str, after: int) -> str:
    """The text until nobody listened any more."""
    stream = _stream(backend, question, identity)
    text = "".join(chunk.text for chunk in itertools.islice(stream, after))
    stream.close()
    return text


def _stream(backend: BaseBackend, question: Question, identity: str) -> Any:
    assert isinstance(question.prompt, str)
    return backend.stream(
        question.model, question.prompt, request_id=identity, timeout=PATIENCE, **question.options
    )


def differences(expected: Result | Embeddings, answer: Result | Embeddings) -> str:
    """What is wrong with an answer, in words; "" for nothing."""
    if isinstance(expected, Embeddings):
        assert isinstance(answer, Embeddings)
        same = np.allclose(expected.vectors, answer.vectors, atol=1e-5)
        return "" if same else "other vectors"
    assert isinstance(answer, Result)
    old, new = _plain(expected), _plain(answer)
    wrong = [f"{k}: {old[k]!r} became {new[k]!r}" for k in old if old[k] != new[k]]
    if not wrong and not np.allclose(_logprobs(expected), _logprobs(answer), atol=1e-3):
        wrong.append("other log probabilities")
    return "; ".join(wrong)


def _plain(result: Result) -> dict[str, Any]:
    return {
        "text": result.text,
        "reasoning": result.reasoning,
        "calls": [(call.name, call.arguments) for call in result.tool_calls],
        "unreadable": result.invalid_tool_calls,
        "end": result.finish_reason,
        "prompt": result.usage.prompt_tokens,
        "tokens": result.usage.completion_tokens,
        "ids": [(p.token, len(p.top)) for p in result.logprobs],
    }


def _logprobs(result: Result) -> list[float]:
    # Between prefill and decode they differ in their last digits.
    return [p.logprob for p in result.logprobs]


def is_beginning(expected: Result, question: Question, text: str) -> bool:
    """Whether a cut answer is how the whole one begins; what a stop string held back included."""
    whole = expected.text + "".join(question.options.get("stop", ()))
    return whole.startswith(text.removesuffix("\N{REPLACEMENT CHARACTER}"))


def deal(things: Sequence[T], dice: Random) -> Iterator[T]:
    """All of them in some order, and again, without end."""
    while True:
        yield from dice.sample(things, len(things))
