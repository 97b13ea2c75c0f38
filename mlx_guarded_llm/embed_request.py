"""Texts to embed, checked before anything starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .errors import InvalidRequest
from .json_values import plain_list, plain_text, shown, token_ids

MAX_TEXTS = 10_000  # in one request
MAX_CHARACTERS = 64 * 1024**2  # in one request, and of all requests that wait or run
_CHARACTERS = MAX_CHARACTERS // 4  # in each part of a split, to leave room for other requests


def split_requests(
    texts: Sequence[str], timeout: float | None
) -> Iterator[tuple[list[str], float | None]]:
    """Split any number of texts into requests of the allowed size, with the time left for each.

    Args:
        texts: in their order.
        timeout: seconds for all of them; None for no limit.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    left = timeout
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == MAX_TEXTS or characters + len(text) > _CHARACTERS):
            yield part, left
            left = None if ends is None else max(ends - time.monotonic(), 0.0)
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part, left


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Texts and how they are to be embedded. Plain values only, so it pickles.

    Attributes:
        texts: one vector is made of each. An empty one is allowed: it is embedded as
            the model's special tokens alone. One may be given as the ids of its tokens; then
            no special tokens are put around it.
        truncate: cut what is longer than the model's window; otherwise it is an error.
        characters: how many all texts have together; an id counts as one.

    Raises:
        InvalidRequest: something is wrong with the above; the message says where.
    """

    texts: Sequence[str | Sequence[int]]  # tuples, once it is made
    truncate: bool = False
    characters: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _checked(self.texts))
        object.__setattr__(self, "characters", sum(map(len, self.texts)))
        if not isinstance(self.truncate, bool):
            raise InvalidRequest(f"truncate is {shown(self.truncate)}; it must be True or False.")
        if self.characters > MAX_CHARACTERS:
            raise InvalidRequest(
                f"texts have {self.characters} characters in all; {MAX_CHARACTERS} are taken.",
                hint="Send them in several requests.",
            )


def _checked(texts: object) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(texts, str):
        raise InvalidRequest("texts is a string; it must be a list.", hint="Pass [text].")
    if not isinstance(texts, (list, tuple)):
        raise InvalidRequest(f"texts is a {type(texts).__name__}; it must be a list of strings.")
    texts = plain_list(texts, "texts")
    if not texts:
        raise InvalidRequest("texts is an empty list.")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequest(
            f"texts has {len(texts)} items; one request takes {MAX_TEXTS}.",
            hint="Send them in several requests.",
        )
    return tuple(_text(text, f"texts[{i}]") for i, text in enumerate(texts))


def _text(text: object, where: str) -> str | tuple[int, ...]:
    if isinstance(text, (list, tuple)):
        return token_ids(text, where)
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} is a {type(text).__name__}; it must be a string.")
    return plain_text(text, where)
