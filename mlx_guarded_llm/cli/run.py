"""`mlx-guarded run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import InvalidRequest
from ..params import SamplingParams
from ..results import Result
from . import opening, options, report
from .answer import as_json, follow, guard_lines, unfinished
from .console import err, say, write
from .shown import Shown


def run(
    model: options.Model,
    prompt: Annotated[
        str,
        typer.Argument(
            help='The question; "-" reads it from stdin.', metavar="PROMPT", show_default=False
        ),
    ],
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no template.")] = False,
    thinking: options.Thinking = None,
    timeout: options.Timeout = None,
    as_json_: options.AsJson = False,
    show_guard: Annotated[
        bool, typer.Option("--show-guard", help="Then tell who answered and what it waited for.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Then tell the story of the request.")
    ] = False,
    max_tokens: options.MaxTokens = SamplingParams.max_tokens,
    temperature: options.Temperature = SamplingParams.temperature,
    top_p: options.TopP = SamplingParams.top_p,
    top_k: options.TopK = SamplingParams.top_k,
    min_p: options.MinP = SamplingParams.min_p,
    seed: options.Seed = None,
    stop: options.Stop = None,
    load_wait: options.LoadWait = 120.0,
    memory_budget: options.MemoryBudget = None,
    trace: options.Trace = None,
) -> None:
    """Answer one prompt.

    The answer goes to stdout as it comes; everything else goes to stderr.

    [dim]mlx-guarded run smollm2-135m "What is the capital of France?"
    git diff | mlx-guarded run qwen3-4b - --system "Review this."
    mlx-guarded run smollm2-135m "Name a colour." --json | jq .guard[/dim]
    """
    from .progress import ProgressLine  # late, as rich.progress is slow to import

    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise InvalidRequest(
            "the prompt is empty.", hint='Give a text, or "-" and a text on stdin.'
        )
    asked: dict[str, Any] = options.given(timeout=timeout, thinking=thinking, seed=seed) | {
        "raw": raw,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "stop": tuple(stop or ()),
    }
    conversation = messages(question, system, raw=raw)
    with (
        ProgressLine(model) as progress,
        opening.open_backend(load_wait=load_wait, memory_budget=memory_budget) as backend,
    ):
        shown = Shown(progress, quiet=as_json_)
        stream = backend.stream(model, conversation, on_progress=progress.update, **asked)
        try:
            result = follow(backend, stream, shown.show)
        finally:
            shown.end()
            if trace is not None:
                backend.write_trace(trace)
        story = backend.explain(stream.request_id) if explain else ""
    if result is None:
        report.note("cancelled before there was an answer.")
        raise typer.Exit(report.CANCELLED)
    if as_json_:
        write(json.dumps(as_json(result), ensure_ascii=False) + "\n")
    if reason := unfinished(result, max_tokens):
        report.note(reason)
    _tell(result, show_guard=show_guard, story=story)
    if trace is not None:
        report.note(f"the trace is in {trace}; `mlx-guarded trace {trace}` shows it.")
    if result.finish_reason == "cancelled":
        raise typer.Exit(report.CANCELLED)


def messages(question: str, system: str | None, *, raw: bool = False) -> str | list[dict[str, str]]:
    """The prompt in the form that the backend takes."""
    if system is None:
        return question
    if raw:
        raise InvalidRequest(
            "--system needs the model's chat template, which --raw leaves out.",
            hint="Give one of the two.",
        )
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _tell(result: Result, *, show_guard: bool, story: str) -> None:
    for call in result.invalid_tool_calls:
        report.note(f"a tool call could not be read ({call.error}).")
    if show_guard:
        table = Table.grid(padding=(0, 2))
        for label, text in guard_lines(result):
            table.add_row(Text(label, style="dim"), text)
        err().print(table)
    if story:
        say(err(), Text(story))
