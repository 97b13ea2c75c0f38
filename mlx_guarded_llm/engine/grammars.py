"""The grammars of requests, compiled for the models that answer them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import GrammarUnavailable, InvalidRequest
from ..grammar.compiler import GrammarCompiler, is_installed
from ..grammar.forms import Calls, answer_form
from ..params import SamplingParams
from .constraint import Constraint, Thinking

if TYPE_CHECKING:
    from ..models.spec import ModelFiles
    from .prompt import Prompt


class Grammars:
    """Makes constraints. Compilers are kept, one for each model. Used by one thread."""

    def __init__(self) -> None:
        self._compilers: dict[str, GrammarCompiler | GrammarUnavailable] = {}

    def forget(self, model: str) -> None:
        """The model's tokenizer may be another one next time. From any thread."""
        self._compilers.pop(model, None)

    def constraint(
        self, files: ModelFiles, tokenizer: Any, prompt: Prompt, params: SamplingParams
    ) -> Constraint | None:
        """What holds the answer to a prompt, or None when it is free.

        Raises:
            InvalidGrammar: what was asked for cannot be held to.
            GrammarUnavailable: a grammar is needed, and llguidance is missing or cannot
                read the tokenizer.
            InvalidRequest: the parts of the request do not go together.
        """
        if prompt.calls_are_forced and params.has_form:
            raise InvalidRequest(
                "tool_choice asks for a call, and schema, regex or grammar for a text.",
                hint="Leave one of them out, or use tool_choice='auto'.",
            )
        must = params.has_form or prompt.calls_are_forced
        calls = _calls(prompt)
        if not must and (calls is None or not is_installed()):
            return None
        try:
            compiler = self._compiler(files, tokenizer)
        except GrammarUnavailable:
            if must:
                raise
            return None
        _check_model(tokenizer)
        form = answer_form(compiler, params, calls)
        assert form is not None, "without a form and calls there was nothing to do"
        return Constraint(
            compiler.matcher(form),
            vocabulary=compiler.vocabulary,
            thinking=_thinking(tokenizer, prompt, binding=form.binding),
        )

    def _compiler(self, files: ModelFiles, tokenizer: Any) -> GrammarCompiler:
        compiler = self._compilers.get(files.spec.name)
        if compiler is None:
            try:
                compiler = GrammarCompiler(tokenizer, vocabulary=logits_width(files.config))
            except GrammarUnavailable as error:  # it takes a while to find out: once is enough
                compiler = error
            self._compilers[files.spec.name] = compiler
        if isinstance(compiler, GrammarUnavailable):
            raise compiler
        return compiler


def logits_width(config: Any) -> int:
    """Tokens a model has logits for, by its config; 0 when that does not say."""
    text = config.get("text_config")
    size = config.get("vocab_size") or (text or {}).get("vocab_size") or 0
    return int(size)


def _calls(prompt: Prompt) -> Calls | None:
    """What the grammar says of tool calls; None when there are none, or not in JSON."""
    form = prompt.tool_format
    if form is None or not form.is_json:
        return None
    return Calls(
        start=form.start,
        end=form.end,
        tools=prompt.tools,
        several=prompt.several_calls,
        forced=prompt.calls_are_forced,
    )


def _check_model(tokenizer: Any) -> None:
    if tokenizer.response_initial_state:
        raise GrammarUnavailable(
            "The model writes its answers in a format of its own, with headers that a grammar "
            "would leave out.",
            hint="Answers of this model cannot be held to a grammar.",
        )


def _thinking(tokenizer: Any, prompt: Prompt, *, binding: bool) -> Thinking | None:
    opened = prompt.initial_state == "reasoning"
    # By its first token alone a start of several could be anything.
    may_open = prompt.may_think and len(tokenizer.think_start_tokens) == 1
    if not (opened or may_open):
        return None
    return Thinking(
        opened=opened,
        start=tokenizer.think_start_tokens[0],
        end=tuple(tokenizer.think_end_tokens),
        barred=frozenset(tokenizer.eos_token_ids) if binding else frozenset(),
    )
