"""An OpenAI-compatible HTTP server: started, asked in streams, ended.

The client is the standard library's, a connection for each request: on one machine a
connection takes a tenth of a millisecond, and reading a piece of an answer as little, so
that the client takes nothing from the server it shares the cores with.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.side import Ask, CannotRun, Heard, Hearing, Setup, Side, await_end, family

START_SECONDS = 600.0
# Without an event of an answer. A model may have to be loaded first, others may be ahead.
SILENCE_SECONDS = 180.0
ANSWER_SECONDS = 900.0  # of a whole answer
END_SECONDS = 10.0
GET_SECONDS = 10.0
CONNECTION_PAUSES = (0.05, 0.2, 0.8)


class Refused(Exception):
    """The server answered a request with an error.

    Attributes:
        status: of HTTP; 200 if the error came inside a stream.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:500]}")
        self.status = status


@dataclass
class Streamed(Hearing):
    """An answer that comes as events."""

    finished: bool = False

    def take_event(self, event: Mapping[str, Any]) -> None:
        """Take what an event holds of it.

        Raises:
            Refused: it tells an error.
        """
        if event.get("error"):
            raise Refused(200, json.dumps(event["error"]))
        self.model = event.get("model") or self.model
        if usage := event.get("usage"):
            self.tokens = usage.get("completion_tokens", self.tokens)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            self.take(thought + (delta.get("content") or ""))
            self.finished |= choice.get("finish_reason") is not None


class Asked:
    """A request that is being answered, on a thread of its own."""

    def __init__(self, hearing: Streamed, answer: Callable[[], Heard]) -> None:
        self._hearing = hearing
        self._heard: Heard | None = None
        self._thread = threading.Thread(target=self._run, args=(answer,), daemon=True)
        self._thread.start()

    def await_pieces(self, count: int) -> None:
        """Wait until so many pieces of the answer have come, or it is over."""
        while len(self._hearing.pieces) < count and self._thread.is_alive():
            self._thread.join(0.005)

    def heard(self) -> Heard:
        """Wait until it is over, and tell what came."""
        self._thread.join()
        assert self._heard is not None
        return self._heard

    def _run(self, answer: Callable[[], Heard]) -> None:
        self._heard = answer()


class HTTPServer(Side):
    """An OpenAI-compatible server as a child process with a session of its own.

    Attributes:
        sampling: the options of `Ask` that the server knows, with its own names for them.
            Others are left out, and `notes` says so.
        environment: variables it is started with besides ours.
        patience: seconds without an event after which an answer is given up.
    """

    sampling: Mapping[str, str]
    environment: Mapping[str, str] = {}
    patience = SILENCE_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self._setup: Setup | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._port = 0

    @abstractmethod
    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """What starts it.

        Args:
            setup: how it is to be started.
            port: where it is to listen, on 127.0.0.1.
            scratch: an empty folder for its settings, and the one it runs in.

        Raises:
            CannotRun: it lacks what the setup asks for, or cannot be installed.
        """

    def served(self, model: str) -> str:
        """The name of "large" or "small" in requests; its folder unless overridden."""
        return str(self._opened().models[model])

    def load(self, model: str) -> None:
        """Load "large" or "small"; by a short request unless overridden.

        Raises:
            CannotRun: it is not loaded.
        """
        messages = ({"role": "user", "content": "Hi"},)
        heard = self.ask(Ask(model=model, messages=messages, max_tokens=1))
        if heard.error:
            raise CannotRun(f"{model} is not loaded: {heard.error}\n{self._log_end()}")

    def open(self, setup: Setup) -> None:
        """See `Side`."""
        self._setup = setup
        self._scratch = tempfile.TemporaryDirectory(prefix="peer-")
        scratch = Path(self._scratch.name)
        self._port = _free_port()
        try:
            command = [str(part) for part in self.command(setup, self._port, scratch)]
            with self._log().open("wb") as log:
                self._process = _start(command, scratch, log, self.environment)
            self._await_readiness()
            for model in setup.loaded:
                self.load(model)
        except BaseException:
            self.close()
            raise

    def ask(self, ask: Ask) -> Heard:
        """See `Side`."""
        return self._hear(ask, Streamed())

    def begin(self, ask: Ask) -> Asked:
        """Ask from a thread of its own, and do not wait."""
        hearing = Streamed()
        return Asked(hearing, lambda: self._hear(ask, hearing))

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page.

        Raises:
            OSError, HTTPException: the server is not there, or is silent for too long.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=GET_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def health(self) -> str:
        """What it says of itself at `/health`, in a few words.

        Raises:
            OSError, HTTPException: the server is not there, or is silent for too long.
        """
        status, body = self.get("/health")
        try:
            said = json.loads(body)["status"]
        except (ValueError, KeyError, TypeError):
            said = ""
        return f"HTTP {status} {said}".strip()

    def is_running(self) -> bool:
        """Whether the process that was started has not ended."""
        return self._process is not None and self._process.poll() is None

    def _hear(self, ask: Ask, hearing: Streamed) -> Heard:
        try:
            self._answer(ask, hearing)
        except TimeoutError:
            return hearing.heard(f"TimeoutError: no event for {self.patience:.0f} s")
        except (OSError, HTTPException, ValueError, Refused) as error:
            return hearing.heard(f"{type(error).__name__}: {error}")
        if hearing.tokens is None:
            self._note("tells no usage in streams: tokens are counted as pieces of text")
        return hearing.heard()

    def close(self) -> None:
        """See `Side`."""
        if self._process is not None:
            _end(self._process, self.processes())
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def processes(self) -> list[psutil.Process]:
        """See `Side`."""
        return family(self._process.pid) if self._process else []

    def _answer(self, ask: Ask, hearing: Streamed) -> None:
        """Ask and hear the answer to its end.

        Raises:
            Refused: the server tells an error.
            OSError, HTTPException, ValueError: the answer breaks off, or is none.
        """
        with self._post("/v1/chat/completions", self._body(ask)) as response:
            hearing.headers = time.monotonic()
            _read(response, hearing, self.patience)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.served(ask.model),
            "messages": list(ask.messages),
            "max_tokens": ask.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name, value in ask.options.items():
            if name in self.sampling:
                body[self.sampling[name]] = value
            else:
                self._note(f"knows no {name}: left out of its requests")
        return body

    @contextlib.contextmanager
    def _post(self, path: str, body: Mapping[str, Any]) -> Iterator[HTTPResponse]:
        """A request on a connection of its own.

        Raises:
            Refused: the answer is an error.
            OSError, HTTPException: the server is not there, or is silent for too long.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=self.patience)
        try:
            response = self._send(connection, path, json.dumps(body).encode())
            if response.status >= 400:
                raise Refused(response.status, response.read().decode(errors="replace"))
            yield response
        finally:
            connection.close()

    def _send(self, connection: HTTPConnection, path: str, body: bytes) -> HTTPResponse:
        """As clients do, try again if a connection is dropped while the server lives.

        A server may let few connections wait, and drop some of many that come at once.
        """
        dropped = False
        for pause in (*CONNECTION_PAUSES, None):
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                break
            except ConnectionError:
                connection.close()
                if pause is None or self._process is None or self._process.poll() is not None:
                    raise
                dropped = True
                time.sleep(pause)
        if dropped:
            self._note("drops connections when many come at once: they were tried again")
        return response

    def _await_readiness(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if process.poll() is not None:
                raise CannotRun(f"ended with {process.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise CannotRun(f"not ready after {START_SECONDS:.0f} s:\n{self._log_end()}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.get("/v1/models")[0] == 200
        except (OSError, HTTPException):
            return False

    def _opened(self) -> Setup:
        assert self._setup is not None, "open() comes first"
        return self._setup

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _log(self) -> Path:
        assert self._scratch is not None
        return Path(self._scratch.name) / "server.log"

    def _log_end(self) -> str:
        lines = self._log().read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-15:])


def _read(response: HTTPResponse, hearing: Streamed, patience: float) -> None:
    """Read server-sent events to their end.

    Raises:
        Refused: the server tells an error in the stream.
        HTTPException, OSError: the stream breaks off, or never ends.
        TimeoutError: there was no event for `patience` seconds.
    """
    last = time.monotonic()
    while line := response.readline():
        now = time.monotonic()
        if now > hearing.began + ANSWER_SECONDS:
            raise HTTPException(f"the answer has no end after {ANSWER_SECONDS:.0f} s")
        if not line.startswith(b"data:"):
            if now > last + patience:  # signs of life are no answer
                raise TimeoutError
            continue
        last = now
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        hearing.take_event(json.loads(data))
    if not hearing.finished:
        raise HTTPException("the stream ended before the answer did")


def _start(
    command: Sequence[str], folder: Path, log: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            # Some leave files in the folder for temporary ones: so it is one that goes.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CannotRun(str(error)) from error


def _end(process: subprocess.Popen[bytes], family: Sequence[psutil.Process]) -> None:
    """End a server, its session, and children that left it; first politely."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGCONT)  # a stopped process takes no other signal
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for left in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait(END_SECONDS)
    await_end(family, END_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
