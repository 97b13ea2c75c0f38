"""`Backend.connect`: a backend whose models a server runs. The contract's own tests run over it
with `make test-remote`; here is what only such a backend has.
"""

from __future__ import annotations

import asyncio
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding
from llama_index.llms.mlx_guarded import MLXGuarded

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend, BaseBackend, GuardedLLM, as_backend, default_backend, errors
from mlx_guarded_llm.backend.remote import frames
from mlx_guarded_llm.backend.remote.calls import AGAIN, Calls, Outbox, Reply
from mlx_guarded_llm.errors import (
    BackendClosed,
    ContextOverflow,
    GuardedLLMError,
    InvalidRequest,
    ModelNotFound,
    RequestCancelled,
    ServerUnavailable,
)
from mlx_guarded_llm.holder import Holder
from mlx_guarded_llm.results import Collector
from mlx_guarded_llm.server.errors import RETRY_AFTER
from tests.conftest import MakeBackend, MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve
from .test_command import SCRIPT, environment, start, where  # noqa: F401

LONG = 50_000


@pytest.fixture
def connect() -> Iterator[Any]:
    """`Backend.connect`, and the end of what it made."""
    made: list[BaseBackend] = []

    def begin(url: str, **options: Any) -> BaseBackend:
        made.append(Backend.connect(url, **options))
        return made[-1]

    yield begin
    for backend in made:
        backend.close()


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


@pytest.mark.parametrize(
    "kind", [k for k in subclasses(GuardedLLMError) if k.__module__ == errors.__name__]
)
def test_every_error_arrives_as_it_was(kind: type[GuardedLLMError]) -> None:
    held_by: Any = (("a", "b"),)
    if issubclass(kind, errors.MemoryRefused):
        held_by = (Holder("train.py", 7, ("m",), 5),)
    state = {"message": "it broke.", "hint": "Mend it.", "waited": 1.5, "held_by": held_by}
    error = errors.rebuild(kind, ("it broke.", "Mend it."), dict(state))
    line = frames.write_frame(frames.Frame(error=frames.failure(error)))
    sent = frames.read_frame(line).error
    assert sent is not None
    found = frames.raised(sent)
    assert type(found) is kind and vars(found) == state and str(found) == str(error)
    assert type(vars(found)["held_by"][0]) is type(held_by[0])
    newer = frames.Failure(kinds=("NotYetKnown", *sent.kinds), message="it broke.")
    assert type(frames.raised(newer)) is kind


def test_what_a_server_does_not_serve(paris: Running, connect: Any, tiny: MakeModel) -> None:
    backend = connect(paris.url)
    with pytest.raises(ModelNotFound, match="paris"):
        backend.generate(tiny(), "Hello")
    for options in ({"adapter_path": "/tmp"}, {"revision": "x"}):
        with pytest.raises(InvalidRequest, match="settings"):
            backend.generate("paris", "Hello", **options)
    with pytest.raises(InvalidRequest, match="settings"):
        backend.load("paris[adapter_path=/tmp]")
    with pytest.raises(InvalidRequest, match=r"run\(\)"):
        backend.run(lambda: 1)
    assert backend.generate("paris[context_window=256]", "Hello").text == ANSWER


def test_a_prompt_of_megabytes_goes_there(paris: Running, connect: Any) -> None:
    with pytest.raises(ContextOverflow, match="4000000 characters"):
        connect(paris.url).generate("paris", "word " * 800_000)
    assert connect(paris.url).generate("paris", "Go on").text == ANSWER


def test_keys(serve: Serve, scripted: MakeModel, connect: Any) -> None:
    keys = {
        "boss": {"key": "b", "admin": True},
        "one": {"key": "o", "models": ["paris"]},
        "two": {"key": "t"},
    }
    running = serve(models={"paris": scripted(ANSWER), "rome": scripted("Rome.")}, keys=keys)
    with pytest.raises(InvalidRequest, match="401"):
        connect(running.url)
    one, two, boss = (connect(running.url, key=key) for key in "otb")
    assert one.generate("paris", "Hello").text == ANSWER
    with pytest.raises(ModelNotFound):
        one.generate("rome", "Hello")
    for call in (one.events, lambda: one.load("paris"), lambda: one.forgive("paris")):
        with pytest.raises(InvalidRequest, match="key may not"):
            call()
    assert two.generate("rome", "Hello").text == "Rome."
    assert [info.name for info in one.models()] == ["paris"]
    assert [info.name for info in boss.models()] == ["paris", "rome"]
    assert boss.events()


def test_a_key_for_some_models_is_one_for_no_others(
    serve: Serve, scripted: MakeModel, connect: Any
) -> None:
    folder = scripted("Rome.")
    keys = {"one": {"key": "o", "models": ["paris"]}, "two": {"key": "t"}}
    running = serve(models={"paris": scripted(ANSWER)}, keys=keys, any_model=True)
    assert connect(running.url, key="t").generate(folder, "Hello").text == "Rome."
    with pytest.raises(ModelNotFound):
        connect(running.url, key="o").generate(folder, "Hello")


def test_a_client_has_the_server_log_in_nowhere(
    serve: Serve, scripted: MakeModel, connect: Any
) -> None:
    folder = scripted("Rome.")
    running = serve(models={"paris": folder}, any_model=True)
    for model, options in (("paris", {"hosts": "local:2"}), (f"{folder}[hosts=local:2]", {})):
        with pytest.raises(InvalidRequest, match="hosts is what only the server's settings"):
            connect(running.url).generate(model, "Hello", **options)
    body = {"model": f"{folder}[hosts=local:2]", "messages": [{"role": "user", "content": "Hello"}]}
    reply = running.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and "hosts" in reply.json()["error"]["message"]


PROGRAM = """
import sys
from mlx_guarded_llm import Backend, GuardedLLM
llm = GuardedLLM(sys.argv[1], "endless", on_degraded="mark", max_tokens=400)
with llm.stream("Hello") as stream:
    print(next(stream).text and "first", flush=True)
    sys.stdin.readline()
    print(sum(1 for _ in stream) > 10)
Backend.connect(sys.argv[1]).close()
"""


def test_programs_beside_each_other(serve: Serve, tiny: MakeModel) -> None:
    url = serve(models={"endless": tiny()}).url
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for program in programs:  # each has a request under way before any goes on
        assert program.stdout is not None
        assert program.stdout.readline().strip() == "first"
    assert [program.communicate("\n", timeout=100)[0].strip() for program in programs] == [
        "True"
    ] * 3


def test_nobody_cancels_what_is_anothers(serve: Serve, tiny: MakeModel, connect: Any) -> None:
    keys = {"one": {"key": "o"}, "two": {"key": "t"}}
    running = serve(models={"endless": tiny()}, keys=keys)
    one, two = (connect(running.url, key=key) for key in "ot")
    stream = one.stream("endless", "Hello", max_tokens=LONG)
    next(stream)
    two.cancel(stream.request_id)
    two.memory()  # the call above has been answered by now
    for _ in range(20):
        assert next(stream).finish_reason is None
    one.cancel(stream.request_id)
    assert list(stream)[-1].finish_reason == "cancelled"


def test_dropping_a_stream_ends_it_there(serve: Serve, tiny: MakeModel, connect: Any) -> None:
    running = serve(models={"endless": tiny()})
    backend = connect(running.url)
    with backend.stream("endless", "Hello", max_tokens=LONG) as stream:
        next(stream)
    until(lambda: running.backend.health().running == 0)


def test_closing_ends_what_waits(serve: Serve, tiny: MakeModel, connect: Any) -> None:
    running = serve(models={"endless": tiny()})
    backend = connect(running.url)
    stream = backend.stream("endless", "Hello", max_tokens=LONG)
    next(stream)
    assert backend.close()
    with pytest.raises(BackendClosed):
        list(stream)
    with pytest.raises(BackendClosed, match="connect"):
        backend.models()


def test_streams_side_by_side_ask_the_deciding_thread_for_nothing(
    serve: Serve, tiny: MakeModel, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(models={"endless": tiny()})
    backend, rows, most = connect(running.url), 32, 20
    backend.load("endless")
    asked: list[Any] = []
    monkeypatch.setattr(running.backend._dispatcher, "call", asked.append)

    async def one() -> list[Any]:
        return [chunk async for chunk in backend.astream("endless", "Hello", max_tokens=most)]

    async def all_() -> list[list[Any]]:
        return await asyncio.gather(*(one() for _ in range(rows)))

    answers = asyncio.run(all_())
    assert not asked
    assert [chunks[-1].usage.completion_tokens for chunks in answers] == [most] * rows
    assert [sum(len(chunk.tokens) for chunk in chunks) for chunks in answers] == [most] * rows


def test_a_piece_may_have_any_separator_of_lines(
    serve: Serve, scripted: MakeModel, connect: Any
) -> None:
    said = "one\u2028two\u2029three\x85four\x0bfive\r\nsix"
    backend = connect(serve(models={"lines": scripted(said)}).url)
    assert backend.generate("lines", "Hello").text == said


def test_what_arrives_together_is_handed_over_together(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    calls: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def counted(call: Any, *args: Any, **options: Any) -> Any:
            if call == outbox.hand_over:
                calls.append(call)
            return call_soon(call, *args, **options)

        monkeypatch.setattr(loop, "call_soon", counted)
        outbox = Outbox(loop)

        async def read(number: int) -> None:
            outbox.put(came.append, number)
            assert not came

        await asyncio.gather(*(read(number) for number in range(32)))
        await asyncio.sleep(0)
        assert len(calls) == 1 and came == list(range(32))
        outbox.put(came.append, 32)
        outbox.hand_over()
        assert came[-1] == 32

    asyncio.run(main())


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "unix://", "http://", ""])
def test_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="address"):
        Backend.connect(url)


def test_nobody_there(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9", f"unix://{tmp_path}/none"):
        with pytest.raises(ServerUnavailable, match="mlx-guarded serve"):
            Backend.connect(url)


def test_a_unix_socket(start: Any, scripted: MakeModel, tmp_path: Path, connect: Any) -> None:  # noqa: F811
    process = start("--model", f"paris={scripted(ANSWER)}", "--uds", str(tmp_path / "s"))
    assert process.stdout is not None
    process.stdout.readline()
    assert connect(f"unix://{tmp_path}/s").generate("paris", "Hello").text == ANSWER


def test_a_server_that_is_full_says_when_to_ask_again(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, limits={"connections": 1})
    assert running.client.get("/health").status_code == 200  # this client holds the one place
    with pytest.raises(ServerUnavailable, match="503") as caught:
        Backend.connect(running.url)
    assert caught.value.retry_after == RETRY_AFTER


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that goes away is not waited for."""
    monkeypatch.setattr("mlx_guarded_llm.backend.remote.calls.AGAIN", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_dies_is_told_and_what_had_come_is_kept(
    start: Any,  # noqa: F811
    tiny: MakeModel,
    connect: Any,
) -> None:
    process = start("--model", f"endless={tiny()}")
    backend = connect(where(process))
    stream = backend.stream("endless", "Hello", max_tokens=LONG)
    came = [next(stream).text for _ in range(5)]
    process.kill()
    with pytest.raises(ServerUnavailable) as caught:
        came.extend(chunk.text for chunk in stream)
    assert caught.value.text == "".join(came) and len(came) >= 5
    assert caught.value.retryable and caught.value.fallback


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_asked_to_end_tells(
    start: Any,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tiny: MakeModel,
    connect: Any,
) -> None:
    environment["MLX_GUARDED_DRAIN"] = "0"
    process = start("--model", f"endless={tiny()}")
    backend = connect(where(process))
    stream = backend.stream("endless", "Hello", max_tokens=LONG)
    came = next(stream).text
    process.send_signal(signal.SIGTERM)
    with pytest.raises(ServerUnavailable) as caught:
        came += "".join(chunk.text for chunk in stream)
    assert caught.value.text.startswith(came)
    assert process.wait(60) == 0


@dataclass
class Restarting:
    """A server on a Unix socket that ends and begins anew."""

    url: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, env=self.environment, text=True, stdout=pipe)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.communicate()


Restart = Callable[..., Restarting]


@pytest.fixture
def restarting(
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Restart]:
    """Start such a server: `restarting(name=folder)`."""
    monkeypatch.setattr("mlx_guarded_llm.backend.remote.calls.AGAIN", 300.0)
    environment["MLX_GUARDED_DRAIN"] = "0"
    made: list[Restarting] = []

    def make(**models: str) -> Restarting:
        command = [str(SCRIPT), "serve", "--uds", f"{tmp_path}/s"]
        for name, folder in models.items():
            command += ["--model", f"{name}={folder}"]
        made.append(Restarting(f"unix://{tmp_path}/s", command, environment))
        made[-1].begin()
        return made[-1]

    yield make
    for server in made:
        server.end()


def test_a_server_that_comes_back_is_asked_again(
    restarting: Restart, scripted: MakeModel, connect: Any
) -> None:
    server = restarting(paris=scripted(ANSWER))
    backend = connect(server.url)
    server.end()
    later = threading.Timer(1.0, server.begin)
    later.start()
    try:
        assert backend.generate("paris", "Hello").text == ANSWER
    finally:
        later.join()


class Silence(Calls):
    """To a server that says nothing for long, then answers."""

    broken = (TimeoutError,)

    def _open(self) -> None: ...

    async def _shut(self) -> None: ...

    async def _attempt(self, call: str, content: bytes, reply: Reply) -> None:
        del call, content
        if reply.attempts == 1:
            reply.heard = time.monotonic() - 2 * AGAIN
            raise TimeoutError
        reply.end("answered")


def test_a_server_that_was_silent_for_long_is_asked_again() -> None:
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    calls = Silence("nowhere")
    calls.send("generate", {"model": "paris"}, came.put)
    assert came.get(timeout=30) == "answered"
    calls.close(wait=True)


@pytest.mark.parametrize(
    ("how", "options"),
    [(signal.SIGKILL, {}), (signal.SIGTERM, {"temperature": 1.0, "top_logprobs": 2})],
)
def test_an_answer_goes_on_when_its_server_comes_back(
    restarting: Restart,
    tiny: MakeModel,
    connect: Any,
    how: signal.Signals,
    options: dict[str, Any],
) -> None:
    server = restarting(noise=tiny(hidden_size=256, layers=6))
    backend = connect(server.url)
    collector = Collector()
    stream = backend.stream("noise", "Hello", max_tokens=400, **options)
    for _ in range(3):
        collector.add(next(stream))
    server.end(how)
    server.begin()
    for chunk in stream:
        collector.add(chunk)
    result = collector.result()
    assert result.guard.resumed and result.guard.seed is not None
    assert result.usage.completion_tokens == 400
    assert sum(len(chunk.tokens) for chunk in collector.chunks) == 400
    again = backend.generate("noise", "Hello", max_tokens=400, seed=result.guard.seed, **options)
    assert result.text == again.text and not again.guard.resumed
    assert [p.token for p in result.logprobs] == [p.token for p in again.logprobs]
    story = backend.explain(result.guard.request_id)
    assert re.search(r"queued, to go on behind \d+ tokens of another server", story), story


def test_an_answer_of_another_model_does_not_go_on(
    restarting: Restart, tiny: MakeModel, connect: Any
) -> None:
    server = restarting(noise=tiny())
    backend = connect(server.url)
    with backend.stream("noise", "Hello", max_tokens=LONG) as stream:
        came = [next(stream).text for _ in range(3)]
        server.end()
        server.command[-1] = f"noise={tiny(seed=5)}"
        server.begin()
        with pytest.raises(ServerUnavailable, match="other weights") as caught:
            came.extend(chunk.text for chunk in stream)
    assert caught.value.text == "".join(came)


def test_what_was_cancelled_is_not_asked_again(
    restarting: Restart, tiny: MakeModel, connect: Any
) -> None:
    server = restarting(noise=tiny())
    backend = connect(server.url)
    stream = backend.stream("noise", "Hello", max_tokens=LONG)
    came = [next(stream).text for _ in range(3)]
    server.end()
    backend.cancel(stream.request_id)
    with pytest.raises(ServerUnavailable) as caught:
        came.extend(chunk.text for chunk in stream)
    assert caught.value.text == "".join(came)


@pytest.mark.parametrize("emitted", [[10**6], [1] * 40, [-1]])
def test_no_client_makes_an_answer_go_on_behind_nonsense(
    paris: Running, emitted: list[int]
) -> None:
    body = {"model": "paris", "prompt": "Hello", "options": {"max_tokens": 40}, "emitted": emitted}
    reply = paris.client.post("/guard/call/generate", json=body)
    assert reply.status_code == 400 or frames.read_frame(reply.text.strip()).error
    assert paris.backend.generate("paris", "Hello").text == ANSWER


def test_a_fault_of_the_server_is_logged_and_told(
    paris: Running,
    connect: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = connect(paris.url)
    monkeypatch.setattr(paris.backend, "memory", lambda: 1 / 0)
    with pytest.raises(errors.EngineDied, match="unexpectedly"):
        backend.memory()
    until(lambda: "ZeroDivisionError" in caplog.text)


def test_many_at_once(serve: Serve, tiny: MakeModel, connect: Any) -> None:
    running = serve(models={"tiny": tiny()})
    alone = [running.backend.generate("tiny", f"{n}?", max_tokens=20).text for n in range(24)]
    backend = connect(running.url)
    streams = [backend.stream("tiny", f"{n}?", max_tokens=20) for n in range(24)]
    assert ["".join(chunk.text for chunk in stream) for stream in streams] == alone


def test_a_request_may_end_before_it_begins(serve: Serve, tiny: MakeModel, connect: Any) -> None:
    running = serve(models={"tiny": tiny()}, options={"max_active": 1})
    backend = connect(running.url)
    with backend.stream("tiny", "Hello", max_tokens=LONG) as first:
        next(first)
        waiting = backend.stream("tiny", "Hello", max_tokens=5)
        backend.memory()
        backend.cancel(waiting.request_id)
        with pytest.raises((RequestCancelled, ServerUnavailable)):
            list(waiting)


def test_the_frameworks_take_an_address(
    serve: Serve, scripted: MakeModel, embedder: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(models={"paris": scripted(ANSWER), "words": embedder()}).url
    try:
        chat = ChatMLXGuarded(model="paris", backend=url)
        assert chat.invoke("Hello").content == ANSWER
        assert pickle.loads(pickle.dumps(chat)).invoke("Hello").content == ANSWER
        assert MLXGuarded(model="paris", backend=url).complete("Hello").text == ANSWER
        vector = MLXGuardedEmbeddings(model="words", backend=url).embed_query("Hello")
        other = MLXGuardedEmbedding(model_name="words", backend=url).get_query_embedding("Hello")
        assert vector == pytest.approx(other) and len(vector) > 1
        assert GuardedLLM(url, "paris").generate("Hello").guard.served_model == "paris"
        assert as_backend(url) is as_backend(url)
        monkeypatch.setenv("MLX_GUARDED_URL", url)
        monkeypatch.setattr("mlx_guarded_llm.backend.default_backend._shared", None)
        assert default_backend().generate("paris", "Hello").text == ANSWER
        with pytest.raises(InvalidRequest, match="MLX_GUARDED_URL"):
            default_backend(load_wait=5)
        default_backend().close()
    finally:
        as_backend(url).close()


def test_another_version(
    paris: Running, monkeypatch: pytest.MonkeyPatch, make_backend: MakeBackend
) -> None:
    monkeypatch.setattr("mlx_guarded_llm.backend.remote.backend.VERSION", 0)
    with pytest.raises(InvalidRequest, match="version"):
        Backend.connect(paris.url)
