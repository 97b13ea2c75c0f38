"""Spans of questions, by the conventions for generative AI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.conftest import MakeModel

from .conftest import Running, Serve

BODY = {
    "model": "paris",
    "messages": [{"role": "user", "content": "A secret question"}],
    "temperature": 0.0,
    "max_tokens": 100,
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(spans: InMemorySpanExporter, paris: Running, stream: bool) -> None:
    reply = paris.client.post(
        "/v1/chat/completions", json=BODY | {"stream": stream}, headers={"traceparent": PARENT}
    )
    (span,) = spans.get_finished_spans()
    assert span.name == "chat paris"
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    told = dict(span.attributes or {})
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "paris"
    assert told["gen_ai.response.id"] == reply.headers["x-guard-request-id"]
    assert told["gen_ai.request.temperature"] == 0.0
    assert told["gen_ai.request.max_tokens"] == 100
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert isinstance(told["gen_ai.usage.output_tokens"], int)
    assert told["mlx_guarded.fallback"] is False
    assert "secret" not in span.to_json()


def test_an_error(spans: InMemorySpanExporter, serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted("x")}, options={"memory_budget": 1000})
    assert running.client.post("/v1/chat/completions", json=BODY).status_code == 507
    (span,) = spans.get_finished_spans()
    assert dict(span.attributes or {})["error.type"] == "MemoryRefused"
    assert span.status.status_code is trace.StatusCode.ERROR


def test_it_does_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from mlx_guarded_llm.server.tracing import span\n"
        "with span('chat', 'm', 'r', {}, {}) as made: made.failed(ValueError(), None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
