"""llguidance for one model: its vocabulary, and the grammars compiled for it."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..errors import GrammarUnavailable, InvalidGrammar
from ..logs import get_logger

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from .forms import Form, Part

logger = get_logger("grammar")

_KEPT = 32  # compiled grammars per model
# The reasons for which a matcher stops without having failed.
_FINE = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})


def is_installed() -> bool:
    """Whether llguidance can be imported."""
    try:
        import llguidance  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


def failure(matcher: LLMatcher) -> str:
    """Why a matcher cannot continue, or ""."""
    if matcher.is_error():
        return matcher.get_error().replace("<non-verbose/>", "").strip() or "unknown"
    reason = matcher.stop_reason()
    return "" if reason in _FINE else reason


def vocabulary_size(tokenizer: Any, *, least: int) -> int:
    """How many tokens there are: those of the tokenizer, or as many as the model has logits for."""
    added = tokenizer.get_added_vocab().values()
    known: int = max([len(tokenizer), *(token + 1 for token in added)])
    return max(known, least)


class GrammarCompiler:
    """Compiles grammars for one tokenizer. One thread uses it, and another its matchers.

    Args:
        tokenizer: mlx-lm's wrapper around a fast Hugging Face tokenizer.
        vocabulary: how many tokens the model has logits for, if that is more than the tokenizer
            has.

    Raises:
        GrammarUnavailable: llguidance is missing, or cannot read the tokenizer.

    Attributes:
        vocabulary: how many tokens its matchers know.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int = 0) -> None:
        try:
            import llguidance
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise GrammarUnavailable(
                "Answers can follow a grammar only with llguidance, which is not installed.",
                hint='pip install "mlx-guarded-llm[grammar]"',
            ) from error
        self._library = llguidance
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        added = tokenizer.get_added_vocab()
        self.vocabulary = vocabulary_size(tokenizer, least=vocabulary)
        try:
            self._tokenizer = from_tokenizer(
                tokenizer._tokenizer,
                n_vocab=self.vocabulary,
                eos_token=sorted(tokenizer.eos_token_ids),
            )
        except Exception as error:  # llguidance raises various types
            raise GrammarUnavailable(
                f"llguidance cannot read the model's tokenizer ({error}).",
                hint="Answers of this model cannot be held to a grammar.",
            ) from error
        self._special = {
            text: token for text, token in added.items() if self._tokenizer.is_special_token(token)
        }

    def marker(self, text: str) -> str:
        """A marker such as `<tool_call>` in Lark: its token, if there is one, or its text."""
        token = self._special.get(text)
        return f"<[{token}]>" if token is not None else json.dumps(text)

    def is_token(self, text: str) -> bool:
        """Whether the text is a special token, which ordinary text cannot spell."""
        return text in self._special

    def regex(self, pattern: str) -> str:
        """A regular expression in Lark. As for `re.fullmatch`, it needs no anchors."""
        pattern = pattern.removeprefix("^")
        if pattern.endswith("$") and not pattern.endswith(r"\$"):
            pattern = pattern[:-1]
        return f"/{self._library.regex_to_lark(pattern)}/"

    def matcher(self, form: Form) -> LLMatcher:
        """A new matcher, at the beginning of a form.

        Raises:
            InvalidGrammar: it cannot be compiled, or no text follows it.
        """
        grammar = form.grammar
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = self._compile(form)
        self._compiled.move_to_end(grammar)
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return compiled.deep_copy()

    def _compile(self, form: Form) -> LLMatcher:
        """Compile a form. Optional tools whose schema cannot be held take any object."""
        try:
            return self._compile_whole(form)
        except InvalidGrammar:
            if form.binding:
                raise
        tools = [part for part in form.parts if part.is_tool]
        wrong = [part.name for part in tools if not self._holds(part)]
        wrong = wrong or [part.name for part in tools]  # each can be held, but not all together
        logger.warning("%s cannot be held to: any object is taken.", " and ".join(wrong))
        return self._compile_whole(form.loosened(wrong))

    def _compile_whole(self, form: Form) -> LLMatcher:
        grammar = form.grammar
        if problem := self._problem(grammar):
            for part in form.parts:  # the message should name the part that is wrong
                if own := self._problem(part.grammar):
                    raise InvalidGrammar(_refusal(part.name, own), hint=part.hint)
            raise InvalidGrammar(_refusal("the grammar", problem))
        matcher = self._begin(grammar)
        if problem := failure(matcher):
            problem = f"no answer follows it, or none can be found ({problem})"
            raise InvalidGrammar(_refusal(" and ".join(p.name for p in form.parts), problem))
        return matcher

    def _begin(self, grammar: str) -> LLMatcher:
        matcher = self._library.LLMatcher(
            self._tokenizer, grammar, log_level=0, limits=self._limits
        )
        matcher.compute_bitmask()  # the first one is the slowest, and fails if nothing can follow
        return matcher

    def _holds(self, part: Part) -> bool:
        return not (self._problem(part.grammar) or failure(self._begin(part.grammar)))

    def _problem(self, grammar: str) -> str:
        """The errors and warnings of llguidance for a grammar, or ""."""
        _, problems = self._library.LLMatcher.validate_grammar_with_warnings(
            grammar, self._tokenizer, limits=self._limits
        )
        return "; ".join(problems)


def _refusal(where: str, words: str) -> str:
    words = " ".join(words.split())
    if "oneOf constraints are not supported" in words:
        words = "oneOf whose branches may overlap is not supported; anyOf is"
    if len(words) > 500:
        words = f"{words[:500]} ..."
    return f"{where} cannot be held to: {words}."
