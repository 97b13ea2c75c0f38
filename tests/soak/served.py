"""`mlx-guarded serve` as a process, for the runs that attack it."""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_embedder, make_tiny_model

# Descriptors and threads that may be held beyond those after the warm-up: a fetch may be ending
# just now, and the threads of asyncio's own pool start as they are needed and stay.
COUNT_SLACK = (4, 4 + min(32, (os.cpu_count() or 1) + 4))
PATIENCE = 60.0  # seconds for an answer of a few tokens; nothing here takes so long
ANSWER = "The capital of France is Paris."
MODELS = ("paris", "noise", "bert")
KEYS: Mapping[str, Mapping[str, Any]] = {
    "ops": {"key": "ops-secret", "admin": True},
    "some": {"key": "some-secret", "models": ["paris"]},
}


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: where.
        process: of it.
        before: its descriptors and threads when it had warmed up.
        faults: what was off, by kind, with the first example and how often it was seen.
    """

    url: str
    process: psutil.Process
    before: tuple[int, int] = (0, 0)
    faults: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Of somebody who may do everything."""
        return {"x-api-key": "ops-secret"}

    def fault(self, kind: str, example: str) -> None:
        """Something was off."""
        first, count = self.faults.get(kind, (example, 0))
        self.faults[kind] = (first, count + 1)

    def held(self) -> tuple[int, int]:
        """Descriptors and threads."""
        return self.process.num_fds(), self.process.num_threads()

    def ask(self) -> None:
        """A question whose answer is known."""
        body = {"model": "paris", "messages": [{"role": "user", "content": "Where?"}]}
        url = f"{self.url}/v1/chat/completions"
        try:
            reply = httpx.post(url, json=body, headers=self.headers, timeout=PATIENCE)
            said = reply.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
        if said != ANSWER:
            self.fault("another's answer", repr(said))

    def check_rest(self) -> None:
        """Nothing is queued, running or left open, sooner or later."""
        end = time.monotonic() + PATIENCE
        told: Mapping[str, Any] = {}
        held = self.held()
        while time.monotonic() < end:
            told = httpx.get(f"{self.url}/health", timeout=PATIENCE).json()
            held = self.held()
            grown = any(map(operator.gt, held, map(operator.add, self.before, COUNT_SLACK)))
            if not (told["running"] or told["waiting"] or grown):
                break
            time.sleep(0.05)
        else:
            self.fault("not at rest", f"{told}; held {held}, before {self.before}")
        if told.get("engine_deaths"):
            self.fault("the engine died", str(told))

    def report(self, what: str, cases: int, seed: int) -> int:
        """Print what was off, and return the exit code."""
        for kind, (example, count) in sorted(self.faults.items()):
            print(f"FAULT, {count} times: {kind}: {example}", file=sys.stderr)
        word = f"FAILED, {len(self.faults)} kinds of faults" if self.faults else "ok"
        print(f"{what}: {word}: {cases} cases, seed {seed}")
        return 1 if self.faults else 0


@contextmanager
def served(folder: Path, *, keys: bool = False, limits: Mapping[str, Any]) -> Iterator[Served]:
    """A server of tiny models, warmed up. Its end is checked as well.

    Args:
        folder: for its files.
        keys: clients need one of `KEYS`.
        limits: of its settings.
    """
    made = {
        "paris": make_scripted_model(folder / "paris", ANSWER),
        "noise": make_tiny_model(folder / "noise", thinking=True, tools=True),
        "bert": make_tiny_embedder(folder / "bert"),
    }
    lines = [f"[limits]\n{_table(limits)}"]
    for name, where in made.items():
        entry = {"model": str(where), "max_tokens": 48 if name == "paris" else 8}
        lines.append(f"[models.{name}]\n{_table(entry)}\n[models.{name}.retry]\nattempts = 1")
    lines += [f"[keys.{name}]\n{_table(key)}" for name, key in KEYS.items() if keys]
    config = folder / "server.toml"
    config.write_text("early_errors = 0.5\nheartbeat = 0.2\n" + "\n".join(lines))
    script = Path(sys.executable).with_name("mlx-guarded")
    log = folder / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [str(script), "serve", "--port", "0", "--config", str(config)],
            env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"at (http://\S+)/v1", line)
            if not found:
                raise SystemExit(f"the server did not begin: {line}{log.read_text()}")
            running = Served(found[1], psutil.Process(process.pid))
            _warm_up(running)
            yield running
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
            if code:
                running.fault("its exit code", str(code))
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    if "Traceback" in said or re.search(r" (ERROR|CRITICAL) ", said):
        running.fault("written to stderr", said[-3000:])


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _warm_up(running: Served) -> None:
    """Have every model loaded and every package imported, and enough threads started."""
    with httpx.Client(base_url=running.url, headers=running.headers, timeout=PATIENCE) as http:
        for model in MODELS[:2]:
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
            for stream in (False, True):
                http.post("/v1/chat/completions", json=body | {"stream": stream})
        http.post("/v1/embeddings", json={"model": "bert", "input": "Hi"})
        http.get("/metrics")
    running.before = running.held()
