"""`mlx-guarded chat`: a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from ...errors import GuardedLLMError
from ...models.naming import with_options
from ...params import SamplingParams
from ...record.phrases import size
from .. import arguments, backends, reporting
from ..answer import AnswerPrinter, follow, not_as_usual, unfinished
from ..console import err, say, short
from ..facts import AnswerFacts, LoadFacts
from ..status_line import open_line

if TYPE_CHECKING:
    from ...backend import BaseBackend

HELP = "/model NAME switches the model, /reset forgets the conversation, /quit ends it"


def chat(
    model: arguments.Model,
    system: arguments.System = None,
    thinking: arguments.Thinking = None,
    thinking_budget: arguments.ThinkingBudget = None,
    timeout: arguments.Timeout = None,
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
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer. /model NAME goes on with another model, /reset
    forgets the conversation, /quit or Ctrl-D ends it.

    [dim]mlx-guarded chat smollm2-135m --system "Answer in one sentence."[/dim]
    """
    loading = arguments.given(
        revision=revision,
        adapter_path=adapter_path,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        context_window=context_window,
        draft=draft,
        hosts=hosts,
    )
    model = with_options(model, loading)
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
        "max_tokens": max_tokens,
        "stop": tuple(stop or ()),
    }
    with backends.open_backend(
        url=url, local=local, load_wait=load_wait, memory_budget=memory_budget
    ) as backend:
        conversation = Conversation(backend, model, system, asked)
        try:
            conversation.load(model)
        except KeyboardInterrupt:  # report it now, as closing waits for the load
            reporting.note(f"cancelled; {short(model)} is not loaded.")
            raise typer.Exit(reporting.CANCELLED) from None
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
        self, backend: BaseBackend, model: str, system: str | None, asked: dict[str, Any]
    ) -> None:
        self._backend = backend
        self._asked = asked
        self._first = [{"role": "system", "content": system}] if system else []
        self.model = model
        self.messages: list[dict[str, str]] = [*self._first]

    def load(self, model: str) -> None:
        """Make a model ready."""
        with open_line(model, LoadFacts(self._backend, model)) as line:
            info = self._backend.load(model, on_progress=line.update)
        _say(
            f"{short(info.name)} is ready: {size(info.memory_bytes)}, "
            f"{info.context_window:,} tokens of context"
        )

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = [*self._first]

    def switch(self, model: str) -> None:
        """Go on with another model, or with the same one if that fails."""
        try:
            self.load(model)
            self.model = model
        except GuardedLLMError as error:
            reporting.report(error)
            _say(f"going on with {short(self.model)}")
        except KeyboardInterrupt:
            _say(f"cancelled; going on with {short(self.model)}")

    def ask(self, question: str) -> None:
        """Show an answer. A question without an answer is forgotten."""
        messages = [*self.messages, {"role": "user", "content": question}]
        facts = AnswerFacts(self._backend, self.model)
        with open_line(self.model, facts) as line:
            printer = AnswerPrinter(line)
            try:
                stream = self._backend.stream(
                    self.model, messages, on_progress=line.update, **self._asked
                )
                facts.request_id = stream.request_id
                result = follow(self._backend, stream, printer.show)
            except GuardedLLMError as error:
                printer.end()
                reporting.report(error)
                return
            printer.end()
        if result is None:
            reporting.note("cancelled before there was an answer.")
            return
        for reason in (unfinished(result, self._asked["max_tokens"]), not_as_usual(result)):
            if reason:
                reporting.note(reason)
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
