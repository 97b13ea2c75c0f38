from __future__ import annotations

import enum
import pickle

import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.texts import MAX_TEXTS, TextsRequest


class Colour(str, enum.Enum):  # noqa: UP042  # a str that is not plain is the point
    RED = "red"


def test_texts_are_copied_and_plain() -> None:
    texts = ["a", Colour.RED, ""]
    request = TextsRequest(texts=texts)
    texts.append("b")
    assert request.texts == ("a", "red", "")
    assert type(request.texts[1]) is str
    assert request.characters == 4
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("text", "is a string"),
        ([], "empty"),
        (None, "NoneType"),
        ([b"x"], r"texts\[0\] is a bytes"),
        (["x", "\udfff"], r"texts\[1\] is not valid Unicode"),
        (["x"] * (MAX_TEXTS + 1), "one request takes"),
    ],
)
def test_what_is_wrong_is_named(texts: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        TextsRequest(texts=texts)  # type: ignore[arg-type]
