"""The engine dies in the middle of answers, and no client notices more than a pause."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.conftest import MakeModel

from .conftest import Serve

STREAMS = 8
TEXT = " ".join(f"{number} and" for number in range(300))


def test_every_stream_gets_its_whole_answer(serve: Serve, scripted: MakeModel) -> None:
    model = scripted(TEXT, context_window=4096)
    running = serve(models={"long": model}, options={"isolation": "process"})
    begun = threading.Barrier(STREAMS + 1)

    def ask() -> dict[str, Any]:
        body = {
            "model": "long",
            "messages": [{"role": "user", "content": "Count."}],
            "stream": True,
        }
        parts, guard = [], None
        with httpx.stream(
            "POST", f"{running.url}/v1/chat/completions", json=body, timeout=100
        ) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                data = json.loads(line[6:])
                parts.append(data["choices"][0]["delta"].get("content") or "")
                if len(parts) == 5:
                    begun.wait(60)
                guard = data.get("guard", guard)
        return {"text": "".join(parts), "guard": guard}

    with ThreadPoolExecutor(STREAMS) as pool:
        asked = [pool.submit(ask) for _ in range(STREAMS)]
        begun.wait(60)
        pid = running.backend.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGABRT)
        answers = [future.result() for future in asked]
    assert {answer["text"] for answer in answers} == {TEXT}
    assert any(answer["guard"]["resumed"] for answer in answers)
    found = running.client.get("/health").json()
    assert found["status"] == "ok" and found["engine_deaths"] == 1
    assert "SIGABRT" in found["last_death"]["cause"]
