"""`mlx-guarded chat`: a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..errors import GuardedLLMError
from ..params import SamplingParams
from . import opening, options, report
from .answer import follow, unfinished
from .console import err, say, short
from .shown import Shown
from .words import size

if TYPE_CHECKING:
    from ..backend import Backend

HELP = "/model NAME switches the model, /reset forgets the conversation, /quit ends it"


def chat(
    model: options.Model,
    system: options.System = None,
    thinking: options.Thinking = None,
    timeout: options.Timeout = None,
    max_tokens: options.MaxTokens = SamplingParams.max_tokens,
    temperature: options.Temperature = SamplingParams.temperature,
    top_p: options.TopP = SamplingParams.top_p,
    top_k: options.TopK = SamplingParams.top_k,
    min_p: options.MinP = SamplingParams.min_p,
    seed: options.Seed = None,
    stop: options.Stop = None,
    load_wait: options.LoadWait = 120.0,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer. /model NAME goes on with another model, /reset
    forgets the conversation, /quit or Ctrl-D ends it.

    [dim]mlx-guarded chat smollm2-135m --system "Answer in one sentence."[/dim]
    """
    asked: dict[str, Any] = options.given(timeout=timeout, thinking=thinking, seed=seed) | {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "stop": tuple(stop or ()),
    }
    with opening.open_backend(load_wait=load_wait, memory_budget=memory_budget) as backend:
        conversation = Conversation(backend, model, system, asked)
        conversation.load(model)
        _say(HELP)
        while (line := _read()) is not None:
            word, _, rest = line.partition(" ")
            match word:
                case "":
                    continue
                case "/quit" | "/exit":
                    break
                case "/reset":
                    conversation.reset()
                    _say("the conversation is forgotten")
                case "/model" if rest.strip():
                    conversation.switch(rest.strip())
                case _ if word.startswith("/"):
                    _say(HELP)
                case _:
                    conversation.ask(line)


class Conversation:
    """The messages so far, and the model that answers them."""

    def __init__(
        self, backend: Backend, model: str, system: str | None, asked: dict[str, Any]
    ) -> None:
        self._backend = backend
        self._asked = asked
        self._first = [{"role": "system", "content": system}] if system else []
        self.model = model
        self.messages: list[dict[str, str]] = [*self._first]

    def load(self, model: str) -> None:
        """Make a model ready."""
        from .progress import ProgressLine

        with ProgressLine(model) as progress:
            info = self._backend.load(model, on_progress=progress.update)
        _say(
            f"{short(info.name)} is ready: {size(info.memory_bytes)}, "
            f"{info.context_window:,} tokens of context"
        )

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [*self._first]

    def switch(self, model: str) -> None:
        """Go on with another model; if it cannot be had, with the same one."""
        try:
            self.load(model)
            self.model = model
        except GuardedLLMError as error:
            report.report(error)
            _say(f"going on with {short(self.model)}")

    def ask(self, question: str) -> None:
        """Show an answer. A question that got none is forgotten."""
        from .progress import ProgressLine

        messages = [*self.messages, {"role": "user", "content": question}]
        with ProgressLine(self.model) as progress:
            shown = Shown(progress)
            try:
                stream = self._backend.stream(
                    self.model, messages, on_progress=progress.update, **self._asked
                )
                result = follow(self._backend, stream, shown.show)
            except GuardedLLMError as error:
                shown.end()
                report.report(error)
                return
            shown.end()
        if result is None:
            report.note("cancelled before there was an answer.")
            return
        if reason := unfinished(result, self._asked["max_tokens"]):
            report.note(reason)
        if result.text:
            self.messages = [*messages, {"role": "assistant", "content": result.text}]


def _read() -> str | None:
    """The next line, or None at the end. Ctrl-C at the prompt throws the line away."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        import readline  # noqa: F401 - gives input() a history and editing keys
    except ImportError:
        pass
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            _say("")
            return None
        except KeyboardInterrupt:
            _say("\n/quit or Ctrl-D ends the conversation")


def _say(text: str) -> None:
    say(err(), Text(text, style="dim"))
