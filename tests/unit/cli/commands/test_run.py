from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from mlx_guarded_llm.errors import (
    GuardedLLMError,
    InvalidRequest,
    MemoryRefused,
    ModelNotFound,
    RequestCancelled,
)
from mlx_guarded_llm.results import Chunk, ToolCall

from ..conftest import FakeBackend, Run, last_chunk


def test_the_answer_alone_is_on_stdout(backend: FakeBackend, run: Run) -> None:
    done = run("run", "tiny", "Where?")
    assert done.exit_code == 0
    assert done.stdout == "Paris it is.\n"
    assert done.stderr == ""
    assert backend.closed


def test_options_reach_the_backend(backend: FakeBackend, run: Run) -> None:
    done = run(
        "run", "tiny", "Where?", "--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9",
        "--top-k", "4", "--min-p", "0.1", "--seed", "3", "--stop", "a", "--stop", "b",
        "--no-thinking", "--thinking-budget", "64", "--timeout", "8", "--load-wait", "2",
        "--memory-budget", "1GB",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert backend.options == {"load_wait": 2.0, "memory_budget": "1GB"}
    assert backend.asked == [
        (
            "tiny",
            "Where?",
            {
                "max_tokens": 9,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 4,
                "min_p": 0.1,
                "seed": 3,
                "stop": ("a", "b"),
                "thinking": False,
                "thinking_budget": 64,
                "timeout": 8.0,
                "raw": False,
            },
        )
    ]


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_model_is_named_with_what_it_is_loaded_with(
    command: str, backend: FakeBackend, run: Run, tmp_path: Path
) -> None:
    arguments = ["--draft", "prompt", "--context-window", "64", "--revision", "v1"]
    question = ["Where?"] if command == "run" else []
    done = run(command, "tiny", *question, *arguments, "--adapter-path", tmp_path, stdin="Where?\n")
    assert done.exit_code == 0, done.stderr
    name = f"tiny[adapter_path={tmp_path},context_window=64,draft=prompt,revision=v1]"
    assert backend.asked[0][0] == name


def test_a_dash_reads_stdin(backend: FakeBackend, run: Run) -> None:
    assert run("run", "tiny", "-", stdin="from a pipe\n").exit_code == 0
    assert backend.asked[0][1] == "from a pipe\n"


def test_an_empty_stdin_is_a_usage_error(backend: FakeBackend, run: Run) -> None:
    done = run("run", "tiny", "-", stdin="")
    assert done.exit_code == 2
    assert "error: the prompt is empty." in done.stderr
    assert not backend.asked


def test_a_system_message_makes_messages(backend: FakeBackend, run: Run) -> None:
    run("run", "tiny", "Where?", "--system", "Be short.")
    assert backend.asked[0][1] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Where?"},
    ]


def test_a_system_message_and_raw_exclude_each_other(backend: FakeBackend, run: Run) -> None:
    done = run("run", "tiny", "Where?", "--system", "Be short.", "--raw")
    assert done.exit_code == 2
    assert "--raw" in done.stderr
    assert not backend.asked


def test_json_is_one_object(backend: FakeBackend, run: Run) -> None:
    call = ToolCall("call-1", "look", {"at": "x"})
    backend.scripts = [
        [Chunk(reasoning="hm"), Chunk(text="Zürich"), Chunk(tool_calls=(call,)), last_chunk()]
    ]
    done = run("run", "tiny", "Where?", "--json")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    answer = json.loads(done.stdout)
    assert answer["text"] == "Zürich"
    assert answer["reasoning"] == "hm"
    assert answer["tool_calls"] == [{"id": "call-1", "name": "look", "arguments": {"at": "x"}}]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    }
    assert answer["finish_reason"] == "stop"
    assert answer["guard"]["served_model"] == "tiny"
    assert answer["guard"]["deferred"] == 0.5


def test_thinking_does_not_go_down_a_pipe(backend: FakeBackend, run: Run) -> None:
    backend.scripts = [[Chunk(reasoning="hm"), Chunk(text="Yes."), last_chunk()]]
    assert run("run", "tiny", "Sure?").stdout == "Yes.\n"


def test_a_cut_off_answer_is_said_to_be_one(backend: FakeBackend, run: Run) -> None:
    backend.scripts = [[Chunk(text="Once upon"), last_chunk("length", tokens=3)]]
    done = run("run", "tiny", "Tell", "--max-tokens", "3")
    assert done.exit_code == 0
    assert "cut off after 3 tokens; raise --max-tokens" in done.stderr
    full = run("run", "tiny", "Tell", "--max-tokens", "30")
    assert "the context window is full" in full.stderr


def test_show_guard_and_explain(backend: FakeBackend, run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = run("run", "tiny", "Where?", "--show-guard", "--explain", "--trace", trace)
    assert done.stdout == "Paris it is.\n"
    assert "1.50 s queued, 0.50 s of that deferred, 1.00 s loading" in done.stderr
    assert "5 prompt, 3 generated, 1.0 tokens/s" in done.stderr
    assert "Request request-1 had a story." in done.stderr
    assert trace.read_text() == "{}"


def test_another_model_that_answered_is_named(backend: FakeBackend, run: Run) -> None:
    backend.scripts = [[last_chunk(text="x", served_model="other", degraded=("fallback",))]]
    done = run("run", "tiny", "Where?", "--show-guard")
    assert "other (asked for as tiny)" in done.stderr
    assert "degraded" in done.stderr
    assert "fallback" in done.stderr


def test_a_trace_that_cannot_be_written_is_said_before_the_work(
    backend: FakeBackend, run: Run, tmp_path: Path
) -> None:
    done = run("run", "tiny", "Where?", "--trace", tmp_path / "nowhere" / "x.json")
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr
    assert not backend.asked


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("there is no model.", hint="See `aliases()`."), 1),
        (MemoryRefused("too big.", needed_bytes=2, budget_bytes=1, hint="memory_budget"), 1),
        (InvalidRequest("top_k is -1."), 2),
        (RequestCancelled("somebody did."), 1),
        (RuntimeError("a bug\nof two lines"), 1),
    ],
)
def test_errors_are_lines_and_codes(
    backend: FakeBackend, run: Run, error: Exception, code: int
) -> None:
    backend.scripts = [[Chunk(text="Par"), error]]
    done = run("run", "tiny", "Where?")
    assert done.exit_code == code
    assert done.stdout == "Par\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 3
    assert all(line.startswith(("hint: ", "see: ")) for line in lines[1:])
    typed = isinstance(error, GuardedLLMError) and type(error) is not InvalidRequest
    assert lines[-1].startswith("see: ") == typed
    assert "Traceback" not in done.stderr
    assert "aliases()" not in done.stderr, "a hint must name a command"
    assert backend.closed


def test_debug_shows_where(backend: FakeBackend, run: Run) -> None:
    backend.scripts = [[RuntimeError("a bug")]]
    done = run("--debug", "run", "tiny", "Where?")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_ends_the_generation_and_keeps_the_text(backend: FakeBackend, run: Run) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert backend.cancelled == ["request-1"]

    backend.scripts = [[Chunk(text="Par"), press, last_chunk("cancelled", tokens=1)]]
    done = run("run", "tiny", "Where?")
    assert done.exit_code == 130
    assert done.stdout == "Par\n"
    assert "cancelled after 1 tokens" in done.stderr
    assert backend.closed


def test_ctrl_c_before_the_answer(backend: FakeBackend, run: Run) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    backend.scripts = [[press, RequestCancelled("request-1 was cancelled.")]]
    done = run("run", "tiny", "Where?", "--json")
    assert done.exit_code == 130
    assert done.stdout == ""
    assert done.stderr == "note: cancelled before there was an answer.\n"


def test_a_second_ctrl_c_does_not_wait(backend: FakeBackend, run: Run) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    backend.scripts = [[Chunk(text="Par"), press, press, threading.Event().wait]]  # type: ignore[list-item]
    done = run("run", "tiny", "Where?")
    assert done.exit_code == 130
    assert done.stdout == "Par\n"
    assert "Traceback" not in done.stderr
    assert signal.getsignal(signal.SIGINT) is before


def test_verbose_logs_to_stderr(backend: FakeBackend, run: Run) -> None:
    import logging

    def log() -> None:
        logging.getLogger("mlx_guarded_llm.load").info("load of tiny started")

    backend.scripts = [[log, last_chunk(text="x")]]
    assert "load of tiny started" in run("--verbose", "run", "tiny", "Where?").stderr
