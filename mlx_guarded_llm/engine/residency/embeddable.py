"""Whether a model has an embedding for each token of a request.

A tokenizer may have more tokens than the model, if some were added to it and the embedding
matrix was not extended. MLX would read their embeddings from beyond the end of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...models.spec import ModelFiles
    from ...request import PromptRequest

_HINT = "Leave that token out, or use the tokenizer that the model was made with."


def check_tokens(ids: Sequence[int], files: ModelFiles) -> None:
    """Refuse tokens for which the model has no embedding.

    Raises:
        InvalidRequest: there is such a token.
    """
    rows = files.vocabulary
    if rows and ids and (largest := max(ids)) >= rows:
        raise InvalidRequest(
            f"the prompt has the token {largest}; {files.spec.name} has embeddings for the "
            f"tokens 0 to {rows - 1}.",
            hint=_HINT,
        )


def check_names(tokenizer: TokenizerWrapper, request: PromptRequest, files: ModelFiles) -> None:
    """Refuse texts that name such a token, since as plain letters it means something else.

    Raises:
        InvalidRequest: there is such a token.
    """
    rows = files.vocabulary or len(tokenizer)
    beyond = {name: i for name, i in tokenizer.get_added_vocab().items() if i >= rows}
    if not beyond:
        return
    for text in _strings(request.prompt):
        for name, i in beyond.items():
            if name in text:
                raise InvalidRequest(
                    f"the prompt names {name}, the token {i}; {files.spec.name} has embeddings "
                    f"for the tokens 0 to {rows - 1}.",
                    hint=_HINT,
                )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part)
