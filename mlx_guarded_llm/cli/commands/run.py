"""`mlx-guarded run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ...errors import InvalidRequest
from ...models.naming import with_options
from ...params import SamplingParams
from ...results import Result
from .. import arguments, backends, reporting
from ..answer import AnswerPrinter, as_json, follow, guard_lines, unfinished
from ..console import err, say, write


def run(
    model: arguments.Model,
    prompt: Annotated[
        str,
        typer.Argument(
            help='The question; "-" reads it from stdin.', metavar="PROMPT", show_default=False
        ),
    ],
    system: arguments.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no template.")] = False,
    thinking: arguments.Thinking = None,
    thinking_budget: arguments.ThinkingBudget = None,
    timeout: arguments.Timeout = None,
    as_json_: arguments.AsJson = False,
    show_guard: Annotated[
        bool, typer.Option("--show-guard", help="Then tell who answered and what it waited for.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Then tell the story of the request.")
    ] = False,
    max_tokens: arguments.MaxTokens = SamplingParams.max_tokens,
    temperature: arguments.Temperature = None,
    top_p: arguments.TopP = None,
    top_k: arguments.TopK = None,
    min_p: arguments.MinP = None,
    seed: arguments.Seed = None,
    stop: arguments.Stop = None,
    revision: arguments.Revision = None,
    adapter_path: arguments.AdapterPath = None,
    kv_bits: arguments.KVBits = None,
    kv_group_size: arguments.KVGroupSize = None,
    context_window: arguments.ContextWindow = None,
    draft: arguments.Draft = None,
    hosts: arguments.Hosts = None,
    load_wait: arguments.LoadWait = None,
    memory_budget: arguments.MemoryBudget = None,
    url: arguments.Url = None,
    local: arguments.Local = False,
    trace: arguments.Trace = None,
) -> None:
    """Answer one prompt.

    The answer goes to stdout as it comes; everything else goes to stderr.

    [dim]mlx-guarded run smollm2-135m "What is the capital of France?"
    git diff | mlx-guarded run qwen3-4b - --system "Review this."
    mlx-guarded run smollm2-135m "Name a colour." --json | jq .guard[/dim]
    """
    from ..progress import ProgressLine  # late, as rich.progress is slow to import

    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise InvalidRequest(
            "the prompt is empty.", hint='Give a text, or "-" and a text on stdin.'
        )
    loading = arguments.given(
        revision=revision,
        adapter_path=adapter_path,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        context_window=context_window,
        draft=draft,
        hosts=hosts,
    )
    asked: dict[str, Any] = arguments.given(
        timeout=timeout,
        thinking=thinking,
        thinking_budget=thinking_budget,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
    ) | {
        "raw": raw,
        "max_tokens": max_tokens,
        "stop": tuple(stop or ()),
    }
    conversation = conversation_of(question, system, raw=raw)
    with (
        ProgressLine(model) as progress,
        backends.open_backend(
            url=url, local=local, load_wait=load_wait, memory_budget=memory_budget
        ) as backend,
    ):
        printer = AnswerPrinter(progress, quiet=as_json_)
        named = with_options(model, loading)
        stream = backend.stream(named, conversation, on_progress=progress.update, **asked)
        try:
            result = follow(backend, stream, printer.show)
        finally:
            printer.end()
            if trace is not None:
                backend.write_trace(trace)
        if result is None:
            reporting.note("cancelled before there was an answer.")
            raise typer.Exit(reporting.CANCELLED)
        story = backend.explain(stream.request_id) if explain else ""
    if as_json_:
        write(json.dumps(as_json(result), ensure_ascii=False) + "\n")
    if reason := unfinished(result, max_tokens):
        reporting.note(reason)
    _tell(result, show_guard=show_guard, story=story)
    if trace is not None:
        reporting.note(f"the trace is in {trace}; `mlx-guarded trace {trace}` shows it.")
    if result.finish_reason == "cancelled":
        raise typer.Exit(reporting.CANCELLED)


def conversation_of(
    question: str, system: str | None, *, raw: bool = False
) -> str | list[dict[str, str]]:
    """The prompt as the backend takes it: a text, or messages."""
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
        reporting.note(f"a tool call could not be read ({call.error}).")
    if show_guard:
        table = Table.grid(padding=(0, 2))
        for label, text in guard_lines(result):
            table.add_row(Text(label, style="dim"), text)
        err().print(table)
    if story:
        say(err(), Text(story))
