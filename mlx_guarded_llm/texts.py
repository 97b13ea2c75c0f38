"""Texts to embed, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import InvalidRequest
from .plain import plain_text

MAX_TEXTS = 10_000  # in one request
MAX_CHARACTERS = 64 * 1024**2  # in one request, and of all requests that wait or run


@dataclass(frozen=True, kw_only=True)
class TextsRequest:
    """Texts and how they are to be embedded. Plain values only, so it pickles.

    Attributes:
        texts: one vector is made of each. An empty one is allowed: it is embedded as
            the model's special tokens alone.
        truncate: cut what is longer than the model's window; otherwise it is an error.
        characters: of all texts together.

    Raises:
        InvalidRequest: something is wrong with the above; the message says where.
    """

    texts: Sequence[str]  # a tuple, once it is made
    truncate: bool = False
    characters: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _checked(self.texts))
        object.__setattr__(self, "characters", sum(map(len, self.texts)))
        if not isinstance(self.truncate, bool):
            raise InvalidRequest(f"truncate is {self.truncate!r}; it must be True or False.")
        if self.characters > MAX_CHARACTERS:
            raise InvalidRequest(
                f"texts have {self.characters} characters in all; {MAX_CHARACTERS} are taken.",
                hint="Send them in several requests.",
            )


def _checked(texts: object) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise InvalidRequest("texts is a string; it must be a list.", hint="Pass [text].")
    if not isinstance(texts, (list, tuple)):
        raise InvalidRequest(f"texts is a {type(texts).__name__}; it must be a list of strings.")
    if not texts:
        raise InvalidRequest("texts is an empty list.")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequest(
            f"texts has {len(texts)} items; one request takes {MAX_TEXTS}.",
            hint="Send them in several requests.",
        )
    return tuple(_text(text, f"texts[{i}]") for i, text in enumerate(texts))


def _text(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} is a {type(text).__name__}; it must be a string.")
    return plain_text(text, where)
