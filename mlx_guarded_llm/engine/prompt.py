"""From a request to the tokens that are fed to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ContextOverflow, InvalidRequest, ModelInvalid, NoChatTemplate

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
        tools: the tools that were offered.
    """

    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    initial_state: str = "normal"
    raw: bool = False
    continues_text: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()

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
        InvalidRequest: the template refuses the messages, the model cannot call the
            tools, or nothing is left of the prompt.
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
    template = _Template(tokenizer, request)
    text = template.render()
    _check_tools(tokenizer, request, template, text)
    ids = _encode(tokenizer, text, special=False)
    return Prompt(
        ids,
        _segments(tokenizer, template, ids),
        _initial_state(tokenizer, template, text),
        continues_text=request.continues_message,
        tools=request.offered_tools,
    )


class _Template:
    """The chat template of one tokenizer, filled in for one request."""

    def __init__(self, tokenizer: TokenizerWrapper, request: PromptRequest) -> None:
        self._tokenizer = tokenizer
        self.messages = _messages(tokenizer, request)
        self._continues = request.continues_message
        self._options = dict(request.template_kwargs)
        self._options.pop("continue_final_message", None)
        self._options["tools"] = list(request.offered_tools) or None
        if request.offered_tools and request.tool_choice is not None:
            self._options["tool_choice"] = request.tool_choice
        if request.thinking is not None:
            self._options["enable_thinking"] = request.thinking

    def render(self, **changes: Any) -> str:
        """The whole prompt as text."""
        if self._continues:
            changes["continue_final_message"] = True
        return self._apply(self.messages, add_generation_prompt=not self._continues, **changes)

    def render_system(self) -> str:
        """What every conversation with these system messages and tools begins with."""
        count = next((i for i, m in enumerate(self.messages) if m["role"] != "system"), None)
        return self._try([*self.messages[:count], {"role": "user", "content": ""}]) if count else ""

    def render_history(self) -> str:
        """The prompt without the beginning of the assistant's turn."""
        return self._try(self.messages[:-1] if self._continues else self.messages)

    def _try(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._apply(messages, add_generation_prompt=False) if messages else ""
        except InvalidRequest:
            return ""  # some templates want what they render to end like a prompt

    def _apply(self, messages: list[dict[str, Any]], **options: Any) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, **{**self._options, **options}
            )
        except TemplateSyntaxError as error:
            raise ModelInvalid(
                f"The model's chat template is broken: {error}.",
                hint="Fetch the model again, or pass raw=True and do without its template.",
            ) from error
        except TemplateError as error:  # raise_exception() in a template
            raise InvalidRequest(
                f"The model's chat template refuses the request: {error}"
            ) from error
        except Exception as error:  # templates run arbitrary expressions
            raise InvalidRequest(
                f"The model's chat template fails on the request: {type(error).__name__}: {error}"
            ) from error
        return str(text)


def _messages(tokenizer: TokenizerWrapper, request: PromptRequest) -> list[dict[str, Any]]:
    """The request's messages in the dialect of the model's template."""
    messages = [dict(message) for message in request.messages]
    if "developer" not in str(tokenizer.chat_template):
        for message in messages:
            if message["role"] == "developer":
                message["role"] = "system"
    if tokenizer.init_kwargs.get("tool_parser_type") == "mistral":
        for message in messages:
            _shorten_ids(message)
    return messages


def _shorten_ids(message: dict[str, Any]) -> None:
    """Mistral's templates take ids of exactly nine letters or digits."""
    if "tool_call_id" in message:
        message["tool_call_id"] = _nine(message["tool_call_id"])
    if "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "id": _nine(str(call.get("id")))} for call in message["tool_calls"]
        ]


def _nine(name: str) -> str:
    if len(name) == 9 and name.isalnum():
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]


def _check_tools(
    tokenizer: TokenizerWrapper, request: PromptRequest, template: _Template, text: str
) -> None:
    """An answer given without the tools that were offered would be a wrong one."""
    if not request.offered_tools:
        return
    if not tokenizer.has_tool_calling:
        problem = "mlx-lm cannot read tool calls of this model"
    elif text == template.render(tools=None):
        problem = "its chat template does not show them to the model"
    else:
        return
    raise InvalidRequest(
        f"Tools were given, but {problem}.",
        hint="Use a model that can call tools, or pass no tools.",
    )


def _encode(tokenizer: TokenizerWrapper, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=special))


def _initial_state(tokenizer: TokenizerWrapper, template: _Template, text: str) -> str:
    if own := tokenizer.response_initial_state:
        return str(own)
    if not tokenizer.has_thinking:
        return "normal"
    # Only what the template adds to the messages counts: a message may mention a
    # marker. A template that adds nothing is read as a whole.
    history = template.render_history()
    tail = text[_shared(text, history) :] or text
    opened = tail.rfind(tokenizer.think_start) > tail.rfind(tokenizer.think_end)
    return "reasoning" if opened else "normal"


def _segments(
    tokenizer: TokenizerWrapper, template: _Template, ids: Sequence[int]
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
