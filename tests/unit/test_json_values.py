"""Values of callers: copied plain, bounded, and shown, whatever their classes do."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mlx_guarded_llm.backend.options import sort_options
from mlx_guarded_llm.embed_request import EmbedRequest
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.json_values import MAX_VALUES, json_copy, plain_list, plain_number, shown
from mlx_guarded_llm.models.naming import model_name
from mlx_guarded_llm.params import SamplingParams
from mlx_guarded_llm.request import PromptRequest


def _raise(*_: object, **__: object) -> Any:
    raise RuntimeError("no")


class Words(str):
    __slots__ = ()
    __len__ = __eq__ = __hash__ = __str__ = __repr__ = strip = encode = __iter__ = _raise


class Number(int):
    __le__ = __lt__ = __ge__ = __gt__ = __int__ = __index__ = __repr__ = __bool__ = _raise


class Items(list[Any]):
    __iter__ = __len__ = __bool__ = __repr__ = _raise


class Table(dict[str, Any]):
    items = keys = __iter__ = __len__ = __bool__ = __repr__ = _raise


class Endless(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        count = 0
        while True:
            yield str(count := count + 1)


def doubled(levels: int = 100) -> list[Any]:
    """A small list that has 2**levels items for whoever walks through it."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def test_what_has_no_end_is_refused() -> None:
    own: list[Any] = []
    own += [own, own]
    for endless in (doubled(), own, Endless()):
        with pytest.raises(InvalidRequest, match=r"^messages.* (more than \d+ values|too deeply)"):
            json_copy(endless, "messages")


def test_many_values_are_taken() -> None:
    assert len(json_copy([0] * (MAX_VALUES - 1), "values")) == MAX_VALUES - 1


def test_any_value_is_shown() -> None:
    for value, text in (
        (doubled(), "[[[[...], "),
        (Words("a"), "a Words"),
        (Table(a=1), "a Table"),
        ("x" * 300, "'xxx"),
        (10**10_000, "a int"),
        ({"b": 1, "a": [1, 2]}, "{'a': [1, 2], 'b': 1}"),
    ):
        assert shown(value).startswith(text)
        assert len(shown(value)) <= 201


def test_what_only_says_that_it_is_a_number_is_left_as_it_is() -> None:
    class Claims:
        __int__ = __float__ = __index__ = _raise

    numbers.Integral.register(Claims)
    value = Claims()
    assert plain_number(value) is value


def test_classes_of_callers_become_plain() -> None:
    params = SamplingParams(
        max_tokens=Number(7), stop=(Words("."),), logit_bias={Number(1): 2}, regex=Words("a+")
    )
    assert (params.max_tokens, params.stop, params.logit_bias) == (7, (".",), {1: 2})
    assert type(params.max_tokens) is int
    assert type(params.stop[0]) is type(params.regex) is str
    prompt = PromptRequest([{"role": Words("user"), "content": Words("Hi")}])
    assert prompt.messages == ({"role": "user", "content": "Hi"},)
    assert model_name(Words("phi3-mini")) == "phi3-mini"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("stop", lambda: SamplingParams(stop=Items(["a"]))),  # type: ignore[arg-type]
        ("logit_bias", lambda: SamplingParams(logit_bias=Table(a=1))),  # type: ignore[arg-type]
        ("logit_bias", lambda: SamplingParams(logit_bias=Endless())),  # type: ignore[arg-type]
        ("schema", lambda: SamplingParams(schema=Table(a=1))),
        ("schema", lambda: sort_options({"schema": Table(a=1)})),
        ("tools", lambda: sort_options({"tools": Items([1])})),
        ("messages", lambda: PromptRequest(Items([1]))),
        (r"messages\[0\]", lambda: PromptRequest([Table(role="user")])),
        ("tools", lambda: PromptRequest("x", tools=Items([1]))),
        ("template_kwargs", lambda: PromptRequest("x", template_kwargs=Table(a=1))),
        ("texts", lambda: EmbedRequest(texts=Items(["a"]))),
        ("top_k", lambda: SamplingParams(top_k=doubled())),  # type: ignore[arg-type]
    ],
)
def test_what_a_class_of_the_callers_raises_is_told(name: str, call: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        call()


def test_a_list_is_asked_for_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match=r"stop is \{'a'\}; it must be a list of strings"):
        plain_list({"a"}, "stop", "strings")
