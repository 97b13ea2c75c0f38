"""llguidance for one model: its vocabulary, and grammars that were compiled for it."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..errors import GrammarUnavailable, InvalidGrammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from .forms import Form

_KEPT = 32  # compiled grammars a model
# How a matcher may stop without having failed.
_FINE = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})


def is_installed() -> bool:
    """Whether llguidance can be imported."""
    try:
        import llguidance  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


def failure(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, or ""."""
    if matcher.is_error():
        return matcher.get_error().replace("<non-verbose/>", "").strip() or "unknown"
    reason = matcher.stop_reason()
    return "" if reason in _FINE else reason


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Used by one thread; its matchers by another.

    Args:
        tokenizer: mlx-lm's wrapper around a fast Hugging Face tokenizer.
        vocabulary: token ids the model has logits for, where it is more than those of
            the tokenizer.

    Raises:
        GrammarUnavailable: llguidance is missing, or cannot read the tokenizer.

    Attributes:
        vocabulary: tokens that its matchers know.
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
        known = max([len(tokenizer), *(token + 1 for token in added.values())])
        self.vocabulary = max(vocabulary, known)
        try:
            self._tokenizer = from_tokenizer(
                tokenizer._tokenizer,
                n_vocab=self.vocabulary,
                eos_token=sorted(tokenizer.eos_token_ids),
            )
        except Exception as error:  # llguidance raises what it likes
            raise GrammarUnavailable(
                f"llguidance cannot read the model's tokenizer ({error}).",
                hint="Answers of this model cannot be held to a grammar.",
            ) from error
        self._special = {
            text: token for text, token in added.items() if self._tokenizer.is_special_token(token)
        }

    def marker(self, text: str) -> str:
        """A marker such as `<tool_call>` in Lark: its token, if it is one, or its text."""
        token = self._special.get(text)
        return f"<[{token}]>" if token is not None else json.dumps(text)

    def is_token(self, text: str) -> bool:
        """Whether the text is a token of its own that no text can spell."""
        return text in self._special

    def regex(self, pattern: str) -> str:
        """A regular expression in Lark; as for `re.fullmatch`, it needs no anchors."""
        pattern = pattern.removeprefix("^")
        if pattern.endswith("$") and not pattern.endswith(r"\$"):
            pattern = pattern[:-1]
        return f"/{self._library.regex_to_lark(pattern)}/"

    def matcher(self, form: Form) -> LLMatcher:
        """A new matcher at the beginning of a form.

        Raises:
            InvalidGrammar: it cannot be compiled, or nothing follows it.
        """
        compiled = self._compiled.get(form.grammar)
        if compiled is None:
            compiled = self._compiled[form.grammar] = self._compile(form)
        self._compiled.move_to_end(form.grammar)
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return compiled.deep_copy()

    def _compile(self, form: Form) -> LLMatcher:
        if problem := self._problem(form.grammar):
            for part in form.parts:  # the message should name the one that is wrong
                if own := self._problem(part.grammar):
                    raise InvalidGrammar(_refusal(part.name, own), hint=part.hint)
            raise InvalidGrammar(_refusal("the grammar", problem))
        matcher = self._library.LLMatcher(
            self._tokenizer, form.grammar, log_level=0, limits=self._limits
        )
        matcher.compute_bitmask()  # the first is the slowest, and finds the hopeless
        if problem := failure(matcher):
            problem = f"no answer follows it, or none can be found ({problem})"
            raise InvalidGrammar(_refusal(" and ".join(p.name for p in form.parts), problem))
        return matcher

    def _problem(self, grammar: str) -> str:
        """What llguidance has to say against a grammar, warnings included."""
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
