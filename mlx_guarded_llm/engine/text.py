"""From generated tokens to answer text, thinking and tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..results import FinishReason, InvalidToolCall, ToolCall
from .detokenizer import make_detokenizer
from .stops import StopFinder
from .tool_calls import CallReader

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..params import SamplingParams
    from .prompt import Prompt

# The states of mlx-lm's text state machine that mean something here. Text in any
# other, such as the header of a message, is markup.
ANSWER, REASONING, TOOL = "normal", "reasoning", "tool"


class Piece(NamedTuple):
    """What one token, or the end, adds to an answer.

    A tuple and no dataclass: one is made per token on the MLX thread.

    Attributes:
        text: new answer text; whole characters only.
        reasoning: new thinking text.
        tool_calls: calls completed here.
        invalid_tool_calls: what stood between tool markers and could not be read.
        stopped: the answer has reached a stop string; feed no more tokens.
        finish_reason: of the last piece only.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    stopped: bool = False
    finish_reason: FinishReason | None = None


class TextPipeline:
    """Makes text of the tokens of one answer.

    Tokens become characters, the markers of the model's format sort these into
    answer, thinking and tool calls, and the answer ends before the first stop string
    in it.

    - Stop strings are not looked for in thinking and in tool calls.
    - Newlines between thinking and answer are markup: else a stop of two newlines
      would end every answer of a thinking model before it began.
    - When no tools were offered the markup of a call is ordinary text; after a raw
      prompt everything is.

    Its state follows from the tokens alone: a new pipeline that was fed the same
    tokens goes on where this one is. Make it on any thread; then only one uses it.

    Args:
        tokenizer: of the model.
        prompt: what the tokens answer.
        params: of the request; only `stop` is used.
    """

    def __init__(self, tokenizer: TokenizerWrapper, prompt: Prompt, params: SamplingParams) -> None:
        # Late, because this imports mlx.
        from mlx_lm.generate import TextStateMachine, make_text_state_machine

        self._detokenizer = make_detokenizer(tokenizer, continues_text=prompt.continues_text)
        self._stops = StopFinder(params.stop)
        self._machine = TextStateMachine
        self._markup: Any = None  # the machine's state; None when there is no markup
        if not prompt.raw:
            form = tokenizer if prompt.tools else _WithoutTools(tokenizer)
            self._markup = make_text_state_machine(form).make_state(prompt.initial_state)
        self._state = prompt.initial_state
        self._after_thinking = False
        self._calls = CallReader(
            tokenizer.tool_parser, prompt.tools, has_end_marker=bool(tokenizer.tool_call_end)
        )

    def feed(self, token: int) -> Piece | None:
        """Take the next token; one that ends the answer (EOS) is not fed.

        Returns:
            What it adds; None when that is nothing yet.
        """
        text = self._detokenizer.add(token)
        if not text or self._stops.found:
            return None
        answer, reasoning = self._sort(self._split(text))
        if answer or reasoning or self._calls.ready or self._stops.found:
            return self._piece(answer, reasoning)
        return None

    def finish(self, reason: FinishReason) -> Piece:
        """The last piece, with all that was held back and the final reason.

        Args:
            reason: why no more tokens come. "stop" becomes "tool_calls" when the
                model made any, and "length" gives way to a stop string.
        """
        answer = reasoning = ""
        if not self._stops.found:
            answer, reasoning = self._sort(self._rest())
            answer += self._stops.finish()
        if self._state == TOOL:
            self._calls.end_without_marker(reason)
        if self._stops.found and reason == "length":
            reason = "stop"
        if self._calls.called and reason == "stop":
            reason = "tool_calls"
        return self._piece(answer, reasoning, reason)

    def _split(self, text: str) -> list[tuple[str, str]]:
        """The text cut at the markers, without them, as (state, text)."""
        if self._markup is None:
            return [(ANSWER, text)]
        segments: list[tuple[str, str]]
        self._markup, segments = self._machine.split(self._markup, text)
        return segments

    def _rest(self) -> list[tuple[str, str]]:
        """As `_split`, of all that was held back."""
        segments = self._split(self._detokenizer.finish())
        if self._markup is not None:
            self._markup, held, state = self._machine.flush(self._markup)
            segments.append((state, held))
        return segments

    def _sort(self, segments: list[tuple[str, str]]) -> tuple[str, str]:
        """The (answer, thinking) in these segments; calls go to `_calls`."""
        answer = reasoning = ""
        for state, text in segments:
            if state != self._state:
                self._change_to(state)
            if state == ANSWER:
                new = text.lstrip("\n") if self._after_thinking else text
                self._after_thinking = self._after_thinking and not new
                answer += self._stops.add(new)
                if self._stops.found:
                    break
            elif state == REASONING:
                reasoning += text
            elif state == TOOL:
                self._calls.add(text)
        return answer, reasoning

    def _change_to(self, state: str) -> None:
        if self._state == TOOL:
            self._calls.end()
        self._after_thinking = self._state == REASONING
        self._state = state

    def _piece(
        self, answer: str, reasoning: str, finish_reason: FinishReason | None = None
    ) -> Piece:
        calls, invalid = self._calls.take() if self._calls.ready else ((), ())
        return Piece(answer, reasoning, calls, invalid, self._stops.found, finish_reason)


class _WithoutTools:
    """A tokenizer's response format as `make_text_state_machine` asks for it, less tools."""

    has_tool_calling = False

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self.has_thinking = tokenizer.has_thinking
        self.think_start = tokenizer.think_start
        self.think_end = tokenizer.think_end
        self.structural_markers = tokenizer.structural_markers
        self.response_transitions = {
            state: [(marker, to) for marker, to in edges if to != TOOL]
            for state, edges in tokenizer.response_transitions.items()
        }
