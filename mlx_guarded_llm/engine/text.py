"""From generated tokens to answer text, thinking and tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..results import FinishReason, InvalidToolCall, ToolCall
from .detokenizer import make_detokenizer
from .stops import StopFinder
from .tool_calls import CallReader
from .tool_format import OURS

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
        stopped: the answer has reached a stop string or its last call; feed no more tokens.
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
      would end every answer of a thinking model before it began. So are those after a
      call, which stand between calls.
    - When no tools were offered the markup of a call is ordinary text; after a raw
      prompt everything is.
    - Without parallel calls the first call ends the answer.

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
            markup = make_text_state_machine(_Markup(tokenizer, prompt))
            self._markup = markup.make_state(prompt.initial_state)
        self._state = prompt.initial_state
        self._after_markup = False
        self._calls = _reader(tokenizer, prompt)

    def feed(self, token: int) -> Piece | None:
        """Take the next token; one that ends the answer (EOS) is not fed.

        Returns:
            What it adds; None when that is nothing yet.
        """
        text = self._detokenizer.add(token)
        if not text or self._over:
            return None
        answer, reasoning = self._sort(self._split(text))
        if answer or reasoning or self._calls.ready or self._over:
            return self._piece(answer, reasoning)
        return None

    def finish(self, reason: FinishReason) -> Piece:
        """The last piece, with all that was held back and the final reason.

        Args:
            reason: why no more tokens come. "stop" becomes "tool_calls" when the
                model made any, and "length" gives way to a stop string.
        """
        answer = reasoning = ""
        if not self._over:
            answer, reasoning = self._sort(self._rest())
        answer += self._stops.finish()
        if self._state == TOOL:
            self._calls.end_without_marker(reason)
        if self._over and reason == "length":
            reason = "stop"
        if self._calls.count and reason == "stop":
            reason = "tool_calls"
        return self._piece(answer, reasoning, reason)

    @property
    def _over(self) -> bool:
        """A stop string has come, or the last call that may be made."""
        return self._stops.found or self._calls.full

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
            if self._over:
                break
            if state == ANSWER:
                new = text.lstrip("\n") if self._after_markup else text
                self._after_markup = self._after_markup and not new
                answer += self._stops.add(new)
            elif state == REASONING:
                reasoning += text
            elif state == TOOL:
                self._calls.add(text)
        return answer, reasoning

    def _change_to(self, state: str) -> None:
        if self._state == TOOL:
            self._calls.end()
        self._after_markup = self._state in (REASONING, TOOL)
        self._state = state

    def _piece(
        self, answer: str, reasoning: str, finish_reason: FinishReason | None = None
    ) -> Piece:
        calls, invalid = self._calls.take() if self._calls.ready else ((), ())
        return Piece(answer, reasoning, calls, invalid, self._over, finish_reason)


def _reader(tokenizer: TokenizerWrapper, prompt: Prompt) -> CallReader:
    form = prompt.tool_format or OURS  # without tools no state leads to it
    return CallReader(
        form.parser(tokenizer),
        prompt.tools,
        has_end_marker=bool(form.end),
        at_most=None if prompt.several_calls else 1,
    )


class _Markup:
    """A model's response format as `make_text_state_machine` asks for it.

    With the model's own format of calls it is the tokenizer's. Otherwise calls are ours
    or text, and none begins inside of the thinking.
    """

    def __init__(self, tokenizer: TokenizerWrapper, prompt: Prompt) -> None:
        form = prompt.tool_format
        native = form is not None and form.native and not prompt.calls_are_forced
        self.has_tool_calling = form is not None
        self.tool_call_start = form.start if form else None
        self.tool_call_end = form.end if form else None
        self.has_thinking = tokenizer.has_thinking and native
        self.think_start = tokenizer.think_start
        self.think_end = tokenizer.think_end
        self.structural_markers = tokenizer.structural_markers
        edges = {
            state: [(marker, to) for marker, to in edges if native or to != TOOL]
            for state, edges in tokenizer.response_transitions.items()
        }
        if tokenizer.has_thinking and not native:
            edges.setdefault(ANSWER, []).append((tokenizer.think_start, REASONING))
            edges.setdefault(REASONING, []).append((tokenizer.think_end, ANSWER))
        self.response_transitions = edges
