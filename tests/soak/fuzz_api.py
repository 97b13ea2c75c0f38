"""Requests made from the server's own OpenAPI document, valid and not, and what comes back.

    python -m tests.soak.fuzz_api --cases 5000 [--seed N]

schemathesis draws the requests of each operation; a part of them gets a model that is there
and messages that make sense, so that it comes to an answer. Half of the cases go to a server
that needs keys, with the right key, a wrong one or none. For each response:

- its status is declared, its body has the shape that is declared for it, and no status is 500;
- an answer is one for the real clients: the types of `openai` and `anthropic` take it, event by
  event if it is a stream, and a stream ends as it must;
- it comes within `PATIENCE`.

At the end the server still answers, has nothing queued or running, holds no more descriptors or
threads than before, has written nothing to stderr, and ends with code 0.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any

import anthropic.types
import hypothesis
import openai.types.chat
import openai.types.responses
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from pydantic import AfterValidator, TypeAdapter
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .served import KEYS, MODELS, PATIENCE, Served, served

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
ENDLESS = ("/models/sse", "/guard/events")  # until their client goes
MAX_TOKENS = 8
TALKS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Well?"},
    ],
)
# What a case may get besides what its schema says. Most of these are wrong.
HEADERS: tuple[Mapping[str, str], ...] = (
    {},
    {},
    {},
    {"x-guard-deadline": "30"},
    {"x-guard-deadline": "inf"},
    {"x-guard-deadline": "1e300"},
    {"x-guard-deadline": "-1"},
    {"x-guard-priority": "batch"},
    {"x-guard-priority": "\u00fc"},
    {"last-event-id": "00000000-" + "9" * 5000},
    {"last-event-id": "\u00e9"},
    {"anthropic-version": "2023-06-01"},
    {"origin": "http://["},
    {"origin": "null"},
    {"host": "[::1"},
    {"host": "evil.example"},
    {"traceparent": "00-" + "f" * 32},
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=utf-16"},
    {"accept-encoding": "br;q=nan"},
)


def _floats(text: str) -> list[float]:
    return array("f", base64.b64decode(text, validate=True)).tolist()  # ValueError, if it is cut


class Embedding(openai.types.Embedding):
    """As clients get it, who may ask for base64; openai's client decodes that before its type."""

    embedding: list[float] | Annotated[str, AfterValidator(_floats)]  # type: ignore[assignment]  # it is wider


class Embeddings(openai.types.CreateEmbeddingResponse):
    """Vectors in either form."""

    data: list[Embedding]  # type: ignore[assignment]  # it is wider


# Of each path that answers: what a whole answer is, and what an event of a stream is.
WHOLE: Mapping[str, Any] = {
    "/v1/chat/completions": openai.types.chat.ChatCompletion,
    "/v1/completions": openai.types.Completion,
    "/v1/embeddings": Embeddings,
    "/v1/responses": openai.types.responses.Response,
    "/v1/messages": anthropic.types.Message,
    "/v1/messages/count_tokens": anthropic.types.MessageTokensCount,
}
EVENTS: Mapping[str, Any] = {
    "/v1/chat/completions": openai.types.chat.ChatCompletionChunk,
    "/v1/completions": openai.types.Completion,
    "/v1/responses": openai.types.responses.ResponseStreamEvent,
    "/v1/messages": anthropic.types.RawMessageStreamEvent,
}
LAST = ("message_stop", "response.completed", "response.failed", "response.incomplete", "error")


class Fuzz:
    """One run against one server.

    Args:
        running: the server.
        keys: that it needs one.
        seed: of everything that is drawn.
    """

    def __init__(self, running: Served, *, keys: bool, seed: int) -> None:
        self._running = running
        self._keys = keys
        self._seed = seed
        self._session = requests.Session()
        self.statuses: Counter[str] = Counter()
        self.longest = 0.0
        self.cases = 0
        headers = running.headers
        self._schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json", headers=headers)
        # Of a body that is to be one, how it becomes one that is answered.
        self._adapters = {kind: TypeAdapter(kind) for kind in (*WHOLE.values(), *EVENTS.values())}

    def run(self, cases: int) -> None:
        """So many, over all operations."""
        found = [one.ok() for one in self._schema.get_all_operations() if isinstance(one, Ok)]
        weights = [6 if operation.path in WHOLE else 1 for operation in found]
        while self.cases < cases:  # of operations that take nothing there are few different cases
            left = cases - self.cases
            for operation, weight in zip(found, weights, strict=True):
                each = math.ceil(left * weight / (2 * sum(weights)))
                for mode in GenerationMode:
                    self._drive(operation, mode, each)
            self._seed += 1
        self._session.close()

    def _drive(self, operation: Any, mode: GenerationMode, count: int) -> None:
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            strategy.validate()
        except Exception as error:  # nothing about it can be wrong, as it takes nothing
            if "Unsatisfiable" not in type(error).__name__:
                raise
            strategy = operation.as_strategy()

        @hypothesis.seed(self._seed)
        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(case=strategy, extra=_EXTRA)
        def one(case: Any, extra: dict[str, Any]) -> None:
            self._one(case, extra)

        try:
            one()
        except hypothesis.errors.Unsatisfiable:
            if mode is GenerationMode.POSITIVE:
                raise

    def _one(self, case: Any, extra: dict[str, Any]) -> None:
        self.cases += 1
        path, method = case.operation.path, case.method.upper()
        if isinstance(case.body, dict) and method == "POST":
            case.body = _sensible(path, case.body, extra)
        sent = case.as_transport_kwargs(base_url=self._running.url)
        headers = {**dict(sent.pop("headers", None) or {}), **extra["headers"], **self._key(extra)}
        # As bytes: a client of our own would refuse to send some.
        headers = {name: value.encode() for name, value in headers.items()}
        shown = f"{method} {path} {headers} {repr(case.body)[:600]}"
        began = time.monotonic()
        try:
            with self._session.request(
                **sent, headers=headers, stream=True, timeout=PATIENCE
            ) as reply:
                self.statuses[f"{path} {reply.status_code}"] += 1
                self._check(case, reply, shown)
        except requests.exceptions.RequestException as error:
            self._running.fault(f"{method} {path}: {type(error).__name__}", f"{shown}: {error}")
        self.longest = max(self.longest, time.monotonic() - began)

    def _key(self, extra: dict[str, Any]) -> dict[str, str]:
        return {"x-api-key": extra["key"]} if self._keys and extra["key"] else {}

    def _check(self, case: Any, reply: requests.Response, shown: str) -> None:
        path, method = case.operation.path, case.method.upper()
        where = f"{method} {path} {reply.status_code}"
        streamed = reply.headers.get("content-type", "").startswith("text/event-stream")
        if reply.status_code == 200 and streamed and path in ENDLESS:
            return  # leaving is a part of the case
        if reply.status_code == 200 and streamed:
            self._check_events(path, reply, shown)
            return
        content = reply.content
        if reply.status_code == 500:
            self._running.fault(where, f"{shown}: {content[:500]!r}")
        try:
            case.validate_response(Response.from_requests(reply, verify=True), checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            self._running.fault(f"{where}: {failure}", f"{shown}: {content[:500]!r}")
        if reply.status_code == 200 and path in WHOLE and method == "POST":
            self._take(WHOLE[path], content, where, shown)

    def _check_events(self, path: str, reply: requests.Response, shown: str) -> None:
        last: Any = None
        for line in reply.iter_lines():
            if not line.startswith(b"data: "):
                continue
            data = line.removeprefix(b"data: ")
            if data == b"[DONE]":
                last = "[DONE]"
                continue
            last = json.loads(data)
            if "error" in last and last.get("type") in (None, "error"):
                last = "error"
                if json.loads(data)["error"]["code"] == "internal_error":
                    self._running.fault(f"{path}: an event of 500", f"{shown}: {data!r}")
            else:
                if path == "/v1/completions":  # its type is that of whole answers alone
                    data = data.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
                self._take(EVENTS[path], data, f"{path}: an event", shown)
                last = last.get("type")
        if last not in ("[DONE]", *LAST):
            self._running.fault(f"{path}: the end of a stream", f"{shown}: {last!r}")

    def _take(self, kind: Any, content: bytes, where: str, shown: str) -> None:
        try:
            self._adapters[kind].validate_json(content)
        except ValueError as error:
            self._running.fault(f"{where} is no {kind}", f"{shown}: {content[:500]!r}: {error}")


_EXTRA = st.fixed_dictionaries(
    {
        "model": st.sampled_from([*MODELS, "nobody", None]),
        "talk": st.sampled_from([*TALKS, None]),
        "text": st.sampled_from(["Hi", ["Hi", "you"], None]),
        "stream": st.sampled_from([True, False, None]),
        "headers": st.sampled_from(HEADERS),
        "key": st.sampled_from(
            [*(str(key["key"]) for key in KEYS.values()), "ops-secret", "x", ""]
        ),
        "bare": st.booleans(),
    }
)


def _sensible(path: str, body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """A body that may come to an answer, and to one that ends soon."""
    # Alone, or beside all else that was drawn, of which one thing is usually refused.
    kept = dict(body) if not extra["bare"] else dict(list(body.items())[-1:])
    if extra["model"] is not None:
        kept["model"] = extra["model"]
    if extra["talk"] is not None and ("messages" in body or path.endswith(("s/chat", "messages"))):
        kept["messages"] = extra["talk"]
    if extra["text"] is not None:
        for name in ("input", "prompt"):
            if name in body:
                kept[name] = extra["text"]
    if extra["stream"] is not None and path in EVENTS:
        kept["stream"] = extra["stream"]
    if path == "/v1/messages" and extra["bare"]:
        kept["max_tokens"] = MAX_TOKENS
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        # Those beyond what the server takes are left as they are.
        if isinstance(kept.get(name), (int, float)) and MAX_TOKENS < kept[name] < 2**63:
            kept[name] = MAX_TOKENS
    return kept


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=None, help="drawn if not given")
    options = parser.parse_args()
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    load_all_checks()
    code = 0
    for keys in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            with served(Path(folder), keys=keys, limits={"body_seconds": 5.0}) as running:
                fuzz = Fuzz(running, keys=keys, seed=seed)
                fuzz.run(options.cases // 2)
                running.ask()
                running.check_rest()
            for name, count in sorted(fuzz.statuses.items()):
                print(f"  {name:<40} {count}")
            print(f"longest: {fuzz.longest:.2f} s")
            what = f"api, {'with' if keys else 'without'} keys"
            code |= running.report(what, fuzz.cases, seed)
    return code


if __name__ == "__main__":
    sys.exit(main())
