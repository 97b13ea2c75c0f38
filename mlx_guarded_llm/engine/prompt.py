"""From a request to the tokens that are fed to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ContextOverflow, InvalidRequest, NoChatTemplate
from .template import Template
from .tool_format import OURS, ToolFormat, native_format
from .tool_prompt import has_calls

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..request import PromptRequest

# A thinking tail such as "<think>\n\n</think>\n\n" is this many tokens at most
# (the number is that of mlx_lm.server).
_THINKING_TAIL = 11


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt after which its KV cache is worth keeping.

    Attributes:
        kind: "system" for what many conversations share, "user" for what the next
            turn of this one begins with, "assistant" for the rest.
        end: index of the first token after it.
    """

    kind: Literal["system", "user", "assistant"]
    end: int


@dataclass(frozen=True)
class Prompt:
    """A templated and encoded request.

    Attributes:
        token_ids: all its tokens.
        segments: cover `token_ids` in order; none is empty.
        initial_state: what the first generated token is part of: "normal" (the
            answer), "reasoning" when the template itself opens the thinking, or the
            first state of the model's own response format.
        raw: what is generated is text and is not parsed.
        continues_text: what is generated goes on where the prompt ends, so a leading
            space belongs to it.
        may_think: the model may open its thinking before it answers.
        tools: the tools that may be called.
        tool_format: how calls of them are written; None without tools.
        calls_are_forced: the answer is to be a call, or several.
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

    A string becomes one user message when the model has a chat template; without
    one, or with `raw`, it is text to continue.

    Args:
        tokenizer: of the model.
        request: what to encode; it is not changed.
        context_window: tokens the model can attend to.

    Raises:
        NoChatTemplate: messages, but the model has no chat template.
        ContextOverflow: the prompt leaves no room for an answer.
        InvalidRequest: the template refuses the messages, there is none to show tools
            in, or nothing is left of the prompt.
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
    """`max_tokens`, or what the context window leaves for the answer if that is less."""
    return min(max_tokens, context_window - prompt_tokens)


def _encode_text(tokenizer: TokenizerWrapper, request: PromptRequest) -> Prompt:
    assert isinstance(request.prompt, str)
    if request.offered_tools:
        raise InvalidRequest(
            "Tools were given, but the model has no chat template to show them in.",
            hint="Use an instruction-tuned model that can call tools.",
        )
    text = request.prompt
    bos = tokenizer.bos_token
    ids = _encode(tokenizer, text, special=bos is None or not text.startswith(bos))
    return Prompt(ids, (Segment("assistant", len(ids)),), raw=True, continues_text=True)


def _encode_chat(tokenizer: TokenizerWrapper, request: PromptRequest) -> Prompt:
    if not tokenizer.has_chat_template:
        raise NoChatTemplate(
            "The model has no chat template, so it cannot take messages.",
            hint="Pass the prompt as one string, or use an instruction-tuned model.",
        )
    native = _native_format(tokenizer, request)
    template, text = _fill(tokenizer, request, native)
    ids = _encode(tokenizer, text, special=False)
    state, may_think = _beginning(tokenizer, template, text)
    forced = request.forced_tools
    prompt = Prompt(
        ids,
        _segments(tokenizer, template, ids),
        state,
        continues_text=request.continues_message,
        may_think=may_think and request.thinking is not False and not request.continues_message,
    )
    if not request.offered_tools:
        return prompt
    # A call can be forced by a grammar only, and a grammar writes JSON only.
    foreign = native is None or (forced and not native.is_json)
    return replace(
        prompt,
        tools=forced or request.offered_tools,
        tool_format=OURS if foreign else native,
        calls_are_forced=bool(forced),
        # Who asks for one function by name wants one call of it.
        several_calls=request.parallel_tool_calls and not isinstance(request.tool_choice, Mapping),
    )


def _native_format(tokenizer: TokenizerWrapper, request: PromptRequest) -> ToolFormat | None:
    """As `native_format`; None as well when the request has nothing to do with tools."""
    if request.offered_tools or has_calls(request.messages):
        return native_format(tokenizer)
    return None


def _fill(
    tokenizer: TokenizerWrapper, request: PromptRequest, native: ToolFormat | None
) -> tuple[Template, str]:
    """The template and what it makes of the request."""
    described = bool(request.offered_tools) and native is None
    template = Template(tokenizer, request, native, "system" if described else None)
    try:
        return template, template.render()
    except InvalidRequest:
        if not described or request.messages[0]["role"] != "user":
            raise
    # Some templates (Gemma's) take no system message.
    template = Template(tokenizer, request, native, "user")
    return template, template.render()


def _encode(tokenizer: TokenizerWrapper, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=special))


def _beginning(tokenizer: TokenizerWrapper, template: Template, text: str) -> tuple[str, bool]:
    """What the first token of the answer is part of, and whether it may open a thinking."""
    if own := tokenizer.response_initial_state:
        return str(own), False
    if not tokenizer.has_thinking:
        return "normal", False
    # Only what the template adds to the messages counts: a message may mention a
    # marker. A template that adds nothing is read as a whole.
    history = template.render_history()
    tail = text[_shared(text, history) :] or text
    opened, closed = tail.rfind(tokenizer.think_start), tail.rfind(tokenizer.think_end)
    if opened > closed:
        return "reasoning", False
    return "normal", closed < 0


def _segments(
    tokenizer: TokenizerWrapper, template: Template, ids: Sequence[int]
) -> tuple[Segment, ...]:
    """Where mlx_lm.server cuts: after the system messages and before the thinking."""
    segments: list[Segment] = []
    system = _encode(tokenizer, template.render_system(), special=False)
    shared = _shared(ids, system)
    if 0 < shared < len(ids):
        segments.append(Segment("system", shared))
    if tokenizer.has_thinking:
        tail = tokenizer.rfind_think_start(ids, start=len(ids) - _THINKING_TAIL)
        if tail > shared:
            segments.append(Segment("user", tail))
    return (*segments, Segment("assistant", len(ids)))


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items the two have in common at their start."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])
