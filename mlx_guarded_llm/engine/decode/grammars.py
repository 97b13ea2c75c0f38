"""What binds the answers to requests: grammars, compiled for their models, and thinking budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import GrammarUnavailable, InvalidRequest
from ...grammar.compiler import GrammarCompiler, is_installed, vocabulary_size
from ...grammar.forms import Calls, answer_form
from ...params import SamplingParams
from ..output.thinking import thinking
from ..prompt.tokenizer_cache import cached_per_tokenizer
from .constraint import Constraint, Thinking

if TYPE_CHECKING:
    from ...models.spec import ModelFiles
    from ..prompt.prompt import Prompt


# White space as vocabularies spell it: byte-level, of SentencePiece, and as it is.
_BLANKS = "\u0120\u010a\u0109\u010d\u2581 \n\t\r"
_BLANK_BYTES = frozenset({"<0x09>", "<0x0A>", "<0x0D>", "<0x20>"})


class Grammars:
    """Makes constraints, with one cached compiler for each model. Used by one thread."""

    def __init__(self) -> None:
        self._compilers: dict[str, GrammarCompiler | GrammarUnavailable] = {}

    def forget(self, model: str) -> None:
        """Forget a model, whose tokenizer may have changed by the next time. From any thread."""
        self._compilers.pop(model, None)

    def constraint(
        self, files: ModelFiles, tokenizer: Any, prompt: Prompt, params: SamplingParams
    ) -> Constraint | None:
        """The constraint for the answer to a prompt, or None if nothing binds it.

        A thinking budget has no effect on a model whose thinking does not end with a token of its
        own, as a template may not know the switch `thinking`.

        Raises:
            InvalidGrammar: no grammar can hold what was asked for.
            GrammarUnavailable: a grammar is needed, and llguidance is missing or cannot
                read the tokenizer.
            InvalidRequest: the request asks for a call and for a form of text.
        """
        if prompt.calls_are_forced and params.has_form:
            raise InvalidRequest(
                "tool_choice asks for a call, and schema, regex or grammar for a text.",
                hint="Leave one of them out, or use tool_choice='auto'.",
            )
        budget = None if prompt.raw else params.thinking_budget
        must = params.has_form or prompt.calls_are_forced
        calls = _calls(prompt)
        compiler = None
        if must or (calls is not None and is_installed()):
            try:
                compiler = self._compiler(files, tokenizer)
            except GrammarUnavailable:
                if must:
                    raise
        if compiler is None:
            if budget is None or (bounded := _thinking(tokenizer, prompt, budget=budget)) is None:
                return None
            size = vocabulary_size(tokenizer, least=logits_width(files.config))
            return Constraint(None, vocabulary=size, thinking=bounded)
        _check_model(tokenizer)
        form = answer_form(compiler, params, calls)
        assert form is not None, "without a form and calls there was nothing to do"
        return Constraint(
            compiler.matcher(form),
            vocabulary=compiler.vocabulary,
            thinking=_thinking(tokenizer, prompt, binding=form.binding, budget=budget),
        )

    def _compiler(self, files: ModelFiles, tokenizer: Any) -> GrammarCompiler:
        compiler = self._compilers.get(files.spec.name)
        if compiler is None:
            try:
                compiler = GrammarCompiler(tokenizer, vocabulary=logits_width(files.config))
            except GrammarUnavailable as error:  # finding out takes a while, so this is kept
                compiler = error
            self._compilers[files.spec.name] = compiler
        if isinstance(compiler, GrammarUnavailable):
            raise compiler
        return compiler


def logits_width(config: Any) -> int:
    """How many tokens a model has logits for, by its config; 0 if unknown."""
    text = config.get("text_config")
    size = config.get("vocab_size") or (text or {}).get("vocab_size") or 0
    return int(size)


def _calls(prompt: Prompt) -> Calls | None:
    """The tool calls of the grammar; None if there are none, or they are not JSON."""
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


def _thinking(
    tokenizer: Any, prompt: Prompt, *, binding: bool = False, budget: int | None = None
) -> Thinking | None:
    marks = thinking(tokenizer)
    if marks is None or not marks.are_tokens or tokenizer.response_initial_state:
        return None
    opened = prompt.initial_state == "reasoning"
    # A model that is not to think may do it all the same, unless a form keeps it from that. The
    # first of several tokens may begin something else.
    may_open = (prompt.may_think or (budget is not None and not binding)) and (
        len(marks.start_tokens) == 1
    )
    if not (opened or may_open):
        return None
    return Thinking(
        opened=opened,
        start=marks.start_tokens[0],
        end=marks.end_tokens,
        barred=frozenset(tokenizer.eos_token_ids) if binding else frozenset(),
        blank=frozenset() if binding else _blank(tokenizer),
        budget=budget,
    )


@cached_per_tokenizer
def _blank(tokenizer: Any) -> frozenset[int]:
    """Tokens of white space, which a model may write before it thinks."""
    return frozenset(
        token
        for text, token in tokenizer.get_vocab().items()
        if text in _BLANK_BYTES or (text and not text.strip(_BLANKS))
    )
