"""The peers that are Python APIs: one model, one answer at a time, in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.peers.environments import Environment
from benchmarks.peers.http import END_SECONDS, SILENCE_SECONDS, START_SECONDS
from benchmarks.peers.servers import TORCH
from benchmarks.side import Ask, CannotRun, Heard, Hearing, Setup, Side, family

WORKER = Path(__file__).with_name("python_api_worker.py")


class PythonAPI(Side):
    """A worker in the peer's environment; requests and answers go through its pipes.

    Attributes:
        installed: its environment.
    """

    installed: Environment

    def __init__(self) -> None:
        super().__init__()
        self._one = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._unread = b""
        self._model = ""

    def open(self, setup: Setup) -> None:
        """See `Side`."""
        if len(setup.loaded) != 1:
            raise CannotRun("an object of its API holds one model")
        self._model = setup.loaded[0]
        folder = setup.models[self._model]
        # -P: the worker's folder is not searched for modules; there is an http.py in it.
        command: list[str | Path] = [self.installed.python(), "-P", WORKER, self.name, folder]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0
        )
        try:
            ready = self._event(START_SECONDS)
        except (OSError, ValueError) as error:
            reason = f"{error}:\n{self._log_end()}"
            self.close()
            raise CannotRun(reason) from error
        self.notes.append("one answer at a time; its tokens are counted by encoding the text")
        if ready["note"]:
            self.notes.append(ready["note"])

    def ask(self, ask: Ask) -> Heard:
        """See `Side`."""
        hearing = Hearing()
        request = {
            "messages": list(ask.messages),
            "max_tokens": ask.max_tokens,
            "options": dict(ask.options),
        }
        with self._one:
            try:
                if ask.model != self._model:
                    raise ValueError(f"it holds {self._model}, not {ask.model}")
                self._send(request)
                while True:
                    event = self._event(SILENCE_SECONDS)
                    if "piece" not in event:
                        break
                    hearing.take(event["piece"])
            except (OSError, ValueError) as broken:
                return hearing.heard(f"{type(broken).__name__}: {broken}")
        hearing.tokens = event.get("tokens")
        return hearing.heard(event.get("error", ""))

    def close(self) -> None:
        """See `Side`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def processes(self) -> list[psutil.Process]:
        """See `Side`."""
        return family(self._process.pid) if self._process else []

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _event(self, seconds: float) -> Any:
        """The worker's next line.

        Raises:
            OSError: it has ended, or was silent for that long.
            ValueError: the line is not JSON.
        """
        assert self._process is not None and self._process.stdout is not None
        replies = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([replies], [], [], seconds)[0]:
                raise TimeoutError(f"no word from the worker for {seconds:.0f} s")
            part = os.read(replies, 65536)
            if not part:
                raise BrokenPipeError("the worker has ended")
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def _log_end(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-8:])


class LlamaIndexMLX(PythonAPI):
    """llama-index-llms-mlx."""

    name = "llama-index-llms-mlx"
    version = "0.6.0"
    # torch: it asks the tokenizer for torch's tensors.
    installed = Environment(name=name, requirements=(f"{name}=={version}", TORCH))


class LangChainMLX(PythonAPI):
    """langchain-mlx."""

    name = "langchain-mlx"
    version = "0.0.1"
    installed = Environment(name=name, requirements=(f"{name}=={version}",))
