"""The chat template of a model, filled in for one request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, ModelInvalid
from .tool_format import ToolFormat
from .tool_prompt import as_text, describe, with_instructions

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..request import PromptRequest


class Template:
    """The chat template of one tokenizer, filled in for one request.

    Args:
        tokenizer: of the model.
        request: what to fill it with.
        native: how the template writes tool calls; None when it does not.
        tools_in: the role of the message that describes the tools instead.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        request: PromptRequest,
        native: ToolFormat | None,
        tools_in: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        self.messages = _messages(tokenizer, request)
        if native is None:
            self.messages = as_text(self.messages)
        if tools_in is not None:
            text = describe(request.offered_tools)
            self.messages = with_instructions(self.messages, text, role=tools_in)
        self._continues = request.continues_message
        self._options = dict(request.template_kwargs)
        self._options.pop("continue_final_message", None)
        shown = list(request.offered_tools) if native is not None else []
        self._options["tools"] = shown or None
        if shown and request.tool_choice is not None:
            self._options["tool_choice"] = request.tool_choice
        if request.thinking is not None:
            self._options["enable_thinking"] = request.thinking

    def render(self) -> str:
        """The whole prompt as text."""
        if self._continues:
            return self._apply(
                self.messages, add_generation_prompt=False, continue_final_message=True
            )
        return self._apply(self.messages, add_generation_prompt=True)

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
