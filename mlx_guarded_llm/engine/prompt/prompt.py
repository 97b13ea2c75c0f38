"""From a request to the tokens that are fed to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ...errors import ContextOverflow, InvalidRequest, NoChatTemplate
from ..output.thinking import thinking
from .template import Filled, fill
from .tool_format import OURS, ToolFormat, native_format
from .tool_prompt import has_calls

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...request import PromptRequest

# A thinking tail such as "<think>\n\n</think>\n\n" is this many tokens at most
# (the number is that of mlx_lm.server).
_THINKING_TAIL = 11


@dataclass(frozen=True)
class Segment:
    """A part of the prompt after which its KV cache is worth keeping.

    Attributes:
        kind: "system" for what many conversations share, "user" for what the next turn of this
            conversation begins with, "assistant" for the rest.
        end: index of the first token after it.
    """

    kind: Literal["system", "user", "assistant"]
    end: int


@dataclass(frozen=True)
class Prompt:
    """A templated and encoded request.

    Attributes:
        token_ids: all its tokens.
        segments: they cover `token_ids` in order, and none is empty.
        initial_state: what the first generated token belongs to: "normal" (the answer),
            "reasoning" if the template itself opens the thinking, or the first state of the model's
            own response format.
        raw: the generated text is not parsed.
        continues_text: the generated text continues the end of the prompt, so a leading space
            belongs to it.
        may_think: the model may think before it answers.
        tools: the tools that may be called.
        tool_format: how calls of them are written; None without tools.
        calls_are_forced: the answer must be one or more calls.
        several_calls: more than one call may be made.
    """

    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    initial_state: str = "normal"
    raw: bool = False
    continues_text: bool = False
    may_think: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_format: ToolFormat | None = None
    calls_are_forced: bool = False
    several_calls: bool = True

    def __len__(self) -> int:
        return len(self.token_ids)

    def split(self) -> list[list[int]]:
        """The tokens of each segment."""
        starts = (0, *(segment.end for segment in self.segments))
        return [
            list(self.token_ids[start : segment.end])
            for start, segment in zip(starts, self.segments, strict=False)
        ]


def encode_prompt(
    tokenizer: TokenizerWrapper, request: PromptRequest, *, context_window: int
) -> Prompt:
    """Template and encode a request.

    A string becomes one user message if the model has a chat template. Without one, or with `raw`,
    it is text to continue. Token ids are used as they are.

    Args:
        tokenizer: of the model.
        request: what to encode; it is not changed.
        context_window: how many tokens the model can attend to.

    Raises:
        NoChatTemplate: messages, but the model has no chat template.
        ContextOverflow: the prompt leaves no room for an answer.
        InvalidRequest: the template refuses the messages, there is no template to show tools in, or
            the prompt is empty.
        ModelInvalid: the template itself is broken.
    """
    if request.raw or (isinstance(request.prompt, str) and not tokenizer.has_chat_template):
        prompt = _encode_text(tokenizer, request)
    else:
        prompt = _encode_chat(tokenizer, request)
    if not prompt.token_ids:
        raise InvalidRequest("The prompt is empty: it has no tokens.")
    if len(prompt) >= context_window:
        raise ContextOverflow(
            f"The prompt has {len(prompt)} tokens; the context window of {context_window} "
            "must hold it and at least one token of the answer.",
            prompt_tokens=len(prompt),
            context_window=context_window,
            hint="Shorten the prompt or use a model with a longer context.",
        )
    return prompt


def fit_max_tokens(prompt_tokens: int, max_tokens: int, context_window: int) -> int:
    """`max_tokens`, or what the context window leaves for the answer, if that is less."""
    return min(max_tokens, context_window - prompt_tokens)


def _encode_text(tokenizer: TokenizerWrapper, request: PromptRequest) -> Prompt:
    if request.offered_tools:
        raise InvalidRequest(
            "Tools were given, but the model has no chat template to show them in.",
            hint="Use an instruction-tuned model that can call tools.",
        )
    ids = request.ids
    if isinstance(request.prompt, str):
        ids = encode_text(tokenizer, request.prompt)
    return Prompt(ids, (Segment("assistant", len(ids)),), raw=True, continues_text=True)


def encode_text(tokenizer: TokenizerWrapper, text: str) -> tuple[int, ...]:
    """Encode a text to continue, with the tokens that the tokenizer puts before it.

    Tokens that it puts at the end would end the text, and are left out.
    """
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos):
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    ids = tokenizer.encode(text, add_special_tokens=True)
    return tuple(ids[: len(ids) - _added_behind(tokenizer)])


def _added_behind(tokenizer: TokenizerWrapper) -> int:
    """How many tokens the tokenizer puts at the end of a text."""
    alone = tokenizer.encode("a", add_special_tokens=False)
    around = tokenizer.encode("a", add_special_tokens=True)
    more = len(around) - len(alone)
    return next((n for n in range(more + 1) if around[more - n : len(around) - n] == alone), 0)


def _encode_chat(tokenizer: TokenizerWrapper, request: PromptRequest) -> Prompt:
    if not tokenizer.has_chat_template:
        raise NoChatTemplate(
            "The model has no chat template, so it cannot take messages.",
            hint="Pass the prompt as one string, or use an instruction-tuned model.",
        )
    filled = fill(tokenizer, request, _native_format(tokenizer, request))
    native = filled.native
    ids = filled.encode(tokenizer, filled.text)
    state, may_think = _beginning(tokenizer, filled.tail)
    forced = request.forced_tools
    prompt = Prompt(
        ids,
        _segments(tokenizer, filled, ids),
        state,
        continues_text=request.continues_message,
        may_think=may_think and request.thinking is not False and not request.continues_message,
    )
    if not request.offered_tools:
        return prompt
    # Only a grammar can force a call, and it can only write JSON.
    use_ours = native is None or (forced and not native.is_json)
    return replace(
        prompt,
        tools=forced or request.offered_tools,
        tool_format=OURS if use_ours else native,
        calls_are_forced=bool(forced),
        # A request that names the function wants one call of it.
        several_calls=request.parallel_tool_calls and not isinstance(request.tool_choice, Mapping),
    )


def _native_format(tokenizer: TokenizerWrapper, request: PromptRequest) -> ToolFormat | None:
    """`native_format`, or None if the request has nothing to do with tools."""
    if request.offered_tools or has_calls(request.messages):
        return native_format(tokenizer)
    return None


def _beginning(tokenizer: TokenizerWrapper, tail: str) -> tuple[str, bool]:
    """What the first token of the answer belongs to, and whether it may open the thinking.

    Args:
        tail: the end of the prompt, as far as the template wrote it; messages may mention markers.
    """
    if own := tokenizer.response_initial_state:
        return str(own), False
    think = thinking(tokenizer)
    if think is None:
        return "normal", False
    opened, closed = tail.rfind(think.start), tail.rfind(think.end)
    if opened > closed:
        return "reasoning", False
    return "normal", closed < 0


def _segments(
    tokenizer: TokenizerWrapper, filled: Filled, ids: Sequence[int]
) -> tuple[Segment, ...]:
    """Cut after the system messages, and at the last token or before the thinking.

    The next turn of a conversation begins with what is before the last cut, whatever the template
    does with the answer: it drops the thinking, and text after the last token may join with it.
    """
    segments: list[Segment] = []
    system = filled.encode(tokenizer, filled.system) if filled.system else ()
    shared = _shared(ids, system)
    if 0 < shared < len(ids):
        segments.append(Segment("system", shared))
    think = thinking(tokenizer)
    opened = think.last_start(ids, len(ids) - _THINKING_TAIL) if think else -1
    turn = opened if opened > shared else len(ids) - 1
    if turn > shared:
        segments.append(Segment("user", turn))
    return (*segments, Segment("assistant", len(ids)))


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items the two have in common at their start."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])
