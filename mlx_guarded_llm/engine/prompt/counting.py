"""Counting the tokens of a prompt without asking the model to answer it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ...errors import InvalidRequest
from ...request import PromptRequest
from .prompt import encode_prompt
from .tool_prompt import as_text, describe

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


def count_prompt(
    tokenizer: TokenizerWrapper, request: PromptRequest, *, embeds: bool = False
) -> tuple[int, ...]:
    """The tokens of a prompt of any length, for counting.

    Frameworks count slices of a history, which may begin with an answer or end with a result. If
    the template refuses a slice, each of its messages is counted on its own, as if the user had
    written it. That is a little more than they take as part of the whole.

    Args:
        tokenizer: of the model.
        request: what to count; it is not changed.
        embeds: it is an embedding model, so plain text is counted as such a model gets it.

    Raises:
        GuardedLLMError: as `encode_prompt` does, except for the order of the messages.
    """
    plain = request.raw or not tokenizer.has_chat_template
    if embeds and plain and isinstance(request.prompt, str):
        return tuple(tokenizer.encode(request.prompt, add_special_tokens=True))
    try:
        return encode_prompt(tokenizer, request, context_window=sys.maxsize).token_ids
    except InvalidRequest:
        if isinstance(request.prompt, str) or not tokenizer.has_chat_template:
            raise
    texts = [str(m["content"]) for m in as_text([dict(m) for m in request.messages])]
    if request.offered_tools:
        texts.insert(0, describe(request.offered_tools))
    return tuple(token for text in texts if text for token in _alone(tokenizer, text))


def _alone(tokenizer: TokenizerWrapper, text: str) -> tuple[int, ...]:
    try:
        return encode_prompt(tokenizer, PromptRequest(text), context_window=sys.maxsize).token_ids
    except InvalidRequest:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
