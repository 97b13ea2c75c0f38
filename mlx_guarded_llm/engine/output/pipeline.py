"""From generated tokens to answer text, thinking and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...results import FinishReason, InvalidToolCall, ToolCall
from .calls.offered import Offered
from .detokenizer import make_detokenizer
from .markup import markup
from .stops import StopFinder
from .structure import ANSWER, REASONING, Part, Structure
from .thinking import thinking

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...params import SamplingParams
    from ..prompt.prompt import Prompt


class Piece(NamedTuple):
    """What one token, or the end, adds to an answer.

    It is a tuple because the MLX thread makes one for each token.

    Attributes:
        text: new text of the answer, in whole characters.
        reasoning: new text of the thinking.
        tool_calls: calls completed here.
        invalid_tool_calls: what was meant as a call but is not a valid one.
        stopped: the answer has reached a stop string or its last call. Feed no more tokens.
        finish_reason: of the last piece only.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    stopped: bool = False
    finish_reason: FinishReason | None = None


class TextPipeline:
    """Turns the tokens of one answer into text.

    Tokens become characters; a `Structure` sorts these into answer, thinking and tool calls; the
    answer ends before the first stop string in it.

    - Stop strings do not count in thinking and in tool calls. Newlines between thinking and answer
      do not belong to the answer: a stop string of two newlines would otherwise end every answer
      of a thinking model before it began.
    - If no tools were offered, the markup of a call is ordinary text. After a raw prompt,
      everything is.
    - Without parallel calls, the first call ends the answer.

    Its state depends only on the tokens: a new pipeline that is fed the same tokens continues where
    this one is. It may be made on any thread, and is then used by one.

    Args:
        tokenizer: of the model.
        prompt: what the tokens answer.
        params: of the request; `stop` is used, and whether it asks for a form.

    Attributes:
        reasoning_tokens: how many of the tokens so far are thinking; see `Usage`.
    """

    def __init__(self, tokenizer: TokenizerWrapper, prompt: Prompt, params: SamplingParams) -> None:
        self._detokenizer = make_detokenizer(tokenizer, continues_text=prompt.continues_text)
        self._stops = StopFinder(params.stop)
        offered = Offered(prompt.tools)
        edges = {} if prompt.raw else markup(tokenizer, prompt, held=params.has_form)
        self._structure = Structure(edges, _first_state(tokenizer, prompt, params), offered)
        self._at_most = None if prompt.several_calls else 1
        self._calls = 0
        self._undecided = 0  # tokens of which it is not known yet whether they are thinking
        self._thinks = False  # some of them stand in the thinking, or begin or end it
        self.reasoning_tokens = 0

    def feed(self, token: int) -> Piece | None:
        """Take the next token. Do not feed the one that ends the answer (EOS).

        Returns:
            What it adds; None if that is nothing yet.
        """
        text = self._detokenizer.add(token)
        if self._over:
            return None
        self._undecided += 1
        if not text:
            return None
        before = self._structure.state
        piece = self._piece(self._structure.feed(text))
        self._count(before)
        return piece if any(piece) else None

    def finish(self, reason: FinishReason) -> Piece:
        """The last piece, with everything that was held back and the final reason.

        Args:
            reason: why there are no more tokens. "stop" becomes "tool_calls" if there are any, and
                "length" becomes "stop" if there was a stop string.
        """
        parts: list[Part] = []
        before = self._structure.state
        if not self._over:
            parts = self._structure.feed(self._detokenizer.finish(cut=reason != "stop"))
            parts += self._structure.finish(reason)
        piece = self._piece(parts)
        if not piece.tool_calls:  # calls in the thinking that are made are none of it
            self._count(before, finished=True)
        text = piece.text + self._stops.finish()
        if self._over and reason == "length":
            reason = "stop"
        if self._calls and reason == "stop":
            reason = "tool_calls"
        return piece._replace(text=text, stopped=self._over, finish_reason=reason)

    @property
    def stop_string(self) -> str:
        """The stop string that ended the answer, or ""."""
        return self._stops.found

    @property
    def _over(self) -> bool:
        """There was a stop string, or the last call that may be made."""
        return bool(self._stops.found) or self._calls == self._at_most

    def _count(self, before: str, *, finished: bool = False) -> None:
        """Count the tokens up to here as thinking or not, if that is known.

        Args:
            before: the state of the structure before the last token.
            finished: there are no more, so it is.
        """
        state, structure = self._structure.state, self._structure
        self._thinks = self._thinks or REASONING in (before, state)
        moved = state != before and not structure.considers_calls
        if finished or moved or not structure.undecided:
            self.reasoning_tokens += self._undecided if self._thinks else 0
            self._undecided, self._thinks = 0, False

    def _piece(self, parts: Sequence[Part]) -> Piece:
        """The piece that these parts make, up to the end of the answer."""
        answer = reasoning = ""
        calls: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        for part in parts:
            if self._over:
                break
            if part.invalid is not None:
                invalid.append(part.invalid)
            elif part.calls:
                left = None if self._at_most is None else self._at_most - self._calls
                calls += part.calls[:left]
                self._calls += len(part.calls[:left])
            elif part.state == REASONING:
                reasoning += part.text
            else:
                answer += self._stops.add(part.text)
        return Piece(answer, reasoning, tuple(calls), tuple(invalid), self._over)


def _first_state(tokenizer: TokenizerWrapper, prompt: Prompt, params: SamplingParams) -> str:
    """The state in which the answer begins.

    A grammar leaves no place for thinking whose end it cannot see, even if the prompt opens it.
    """
    if prompt.initial_state == REASONING and (params.has_form or prompt.calls_are_forced):
        think = thinking(tokenizer)
        if think is not None and not think.are_tokens:
            return ANSWER
    return prompt.initial_state
