from __future__ import annotations

import enum
import pickle

import pytest

from mlx_guarded_llm.embed_request import MAX_TEXTS, EmbedRequest
from mlx_guarded_llm.errors import InvalidRequest


class Colour(str, enum.Enum):  # noqa: UP042  # a str that is not plain is the point
    RED = "red"


def test_texts_are_copied_and_plain() -> None:
    texts = ["a", Colour.RED, ""]
    request = EmbedRequest(texts=texts)
    texts.append("b")
    assert request.texts == ("a", "red", "")
    assert type(request.texts[1]) is str
    assert request.characters == 4
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_text_may_be_given_as_its_tokens() -> None:
    ids = [5, 2**31 - 1]
    request = EmbedRequest(texts=["ab", ids, (0,)])
    ids.append(7)
    assert request.texts == ("ab", (5, 2**31 - 1), (0,))
    assert request.characters == 5
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("text", "is a string"),
        ([], "empty"),
        (None, "NoneType"),
        ([[1, "x"]], r"texts\[0\] has 'x'"),
        ([[True]], r"texts\[0\] has True"),
        (["x", [-1]], r"texts\[1\] has -1"),
        ([[2**31]], "ids of tokens"),
        ([b"x"], r"texts\[0\] is a bytes"),
        (["x", "\udfff"], r"texts\[1\] is not valid Unicode"),
        (["x"] * (MAX_TEXTS + 1), "one request takes"),
    ],
)
def test_what_is_wrong_is_named(texts: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        EmbedRequest(texts=texts)  # type: ignore[arg-type]
