"""A backend that answers from a script, put in the place of the real one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mlx_guarded_llm.backend import ModelInfo
from mlx_guarded_llm.cli import backends, reporting
from mlx_guarded_llm.cli.app import app
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.models import Progress
from mlx_guarded_llm.results import Chunk, FinishReason, Provenance, Usage

Item = Chunk | BaseException | Callable[[], None]


def last_chunk(
    reason: FinishReason = "stop", *, tokens: int = 3, text: str = "", **guard: Any
) -> Chunk:
    return Chunk(
        text=text,
        finish_reason=reason,
        usage=Usage(prompt_tokens=5, completion_tokens=tokens),
        guard=Provenance(
            **{
                "request_id": "request-1",
                "requested_model": "tiny",
                "served_model": "tiny",
                "seed": 7,
                "queued": 1.5,
                "deferred": 0.5,
                "loading": 1.0,
                "prefill": 0.25,
                "decode": 2.0,
                **guard,
            }
        ),
    )


ANSWER: tuple[Item, ...] = (Chunk(text="Paris"), Chunk(text=" it is."), last_chunk())


class FakeStream:
    request_id = "request-1"

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        for item in self._items:
            if isinstance(item, Chunk):
                yield item
            elif isinstance(item, BaseException):
                raise item
            else:
                item()

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeBackend:
    """Answers each request with the next script; the last one stays."""

    scripts: list[Sequence[Item]] = field(default_factory=lambda: [ANSWER])
    options: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    load_error: GuardedLLMError | None = None
    closed: bool = False

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def stream(self, model: str, prompt: Any, **options: Any) -> FakeStream:
        options.pop("on_progress")(Progress("load", 5, 10))
        self.asked.append((model, prompt, options))
        return FakeStream(self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0])

    def load(self, model: str, **_: Any) -> ModelInfo:
        if self.load_error is not None and self.asked:
            raise self.load_error
        return ModelInfo(
            name=model,
            state="resident",
            pinned=False,
            active=0,
            waiting=0,
            memory_bytes=1_000_000,
            context_window=2048,
            fingerprint="f",
            idle_seconds=0.0,
        )

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def explain(self, request_id: str) -> str:
        return f"Request {request_id} had a story."

    def write_trace(self, path: Path) -> Path:
        path.write_text("{}")
        return path


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()

    def open_backend(*, url: str | None = None, local: bool = False, **options: Any) -> FakeBackend:
        fake.options = options
        return fake

    monkeypatch.setattr(backends, "open_backend", open_backend)
    return fake


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(reporting, "_debug", False)
    logger = logging.getLogger("mlx_guarded_llm")
    handlers, level = [*logger.handlers], logger.level

    def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)

    yield invoke
    logger.handlers[:] = handlers
    logger.setLevel(level)
