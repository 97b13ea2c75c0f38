"""Answers as objects."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlx_guarded_llm import Backend, RetryPolicy
from mlx_guarded_llm.errors import DegradedAnswer, FallbackRefused, GuardedLLMError
from mlx_guarded_llm.grammar.validation import mismatch
from tests.conftest import MakeModel

from ._each import each_adapter, each_face
from ._faces import Face, Heard


class Light(BaseModel):
    colour: Literal["red", "green"]
    level: int = Field(ge=0, le=9)
    on: bool


class Essay(BaseModel):
    text: str = Field(min_length=400)


class Numbers(BaseModel):
    numbers: list[int] = Field(json_schema_extra={"uniqueItems": True})


class Anything(BaseModel):
    thing: int = Field(json_schema_extra={"type": "any"})


@each_face
async def test_an_object_fits_its_class_whatever_the_model_knows(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    for seed in range(3):
        llm = face.make(backend, tiny(), temperature=1.0, seed=seed)
        light = await face.make_object(llm, Light, "A light, please.")
        assert isinstance(light, Light)


class Day(BaseModel):
    """JSON has no dates, sets and tuples; a strict class takes what stands for them there."""

    model_config = ConfigDict(strict=True)
    day: datetime.date
    colours: set[Literal["red", "green"]]
    size: tuple[int, str]


@each_face
async def test_an_object_may_be_of_a_strict_class(face: Face) -> None:
    text = '{"day": "2026-11-29", "colours": ["red"], "size": [3, "cm"]}'
    llm = face.make(Heard(answers={"big": text}), "big")
    day = await face.make_object(llm, Day, "A day, please.")
    assert day == Day(day=datetime.date(2026, 11, 29), colours={"red"}, size=(3, "cm"))


@each_face
async def test_an_object_that_is_cut_off_is_an_error(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(), max_tokens=24)
    with pytest.raises(DegradedAnswer):
        await face.make_object(llm, Essay, "An essay, please.")


@each_face
async def test_what_no_grammar_can_hold_is_checked_afterwards(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted('{"numbers": [1, 2]}'))
    assert (await face.make_object(llm, Numbers, "Numbers.")).numbers == [1, 2]
    twice = face.make(backend, scripted('{"numbers": [1, 1]}'), retry=RetryPolicy(attempts=1))
    with pytest.raises(DegradedAnswer) as caught:
        await face.make_object(twice, Numbers, "Numbers.")
    assert caught.value.reasons == ("schema",)


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _is_even(cls, number: int) -> int:
        if number % 2:
            raise ValueError(f"{number} is odd, say an even one")
        return number


@each_adapter
async def test_what_a_validator_says_reaches_the_model(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    if face.library == "llama_index" and face.streams:
        pytest.skip("the object is passed on while it grows, so it is not asked for again")
    heard = Heard(backend)
    llm = face.make(heard, scripted('{"number": 3}'), fallbacks=[scripted('{"number": 4}')])
    with pytest.raises(GuardedLLMError) as caught:
        await face.make_object(llm, Even, "A number.")
    assert isinstance(caught.value, FallbackRefused)
    attempts = caught.value.answer.guard.attempts
    assert [attempt.reasons for attempt in attempts] == [("refused",)] * 3 + [()]
    assert "3 is odd" in attempts[1].changed["feedback"]
    first, second, third, other = heard.prompts
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[0]["content"] == "A number." and second[1]["content"] == '{"number": 3}'
    assert "3 is odd, say an even one" in second[2]["content"]
    assert len(third) == 3 and len(first) == len(other) == 1


class Tree(BaseModel):
    on: bool
    below: list[Tree]


@each_adapter
@pytest.mark.parametrize("options", [{}, {"method": "function_calling"}], ids=["", "by-a-call"])
async def test_what_a_class_says_of_itself_holds_below_it_too(
    face: Face, options: dict[str, Any]
) -> None:
    if options and face.library != "langchain":
        pytest.skip("it has one way to make objects")
    heard = Heard(answers={"m": '{"on": true, "below": []}'})
    llm = face.make(heard, "m", retry=RetryPolicy(attempts=1))
    with contextlib.suppress(DegradedAnswer):  # where a call is wanted, that is none
        assert (await face.make_object(llm, Tree, "A tree.", **options)).on
    ((_, asked),) = heard.calls
    schema = asked.get("schema") or asked["tools"][0]["function"]["parameters"]
    assert mismatch({"on": True, "below": [{"on": False, "below": []}]}, schema) == ""
    assert mismatch({"on": True, "below": [{"on": 3, "below": []}]}, schema)


@each_face
async def test_what_is_no_schema_is_refused_by_name(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny())
    with pytest.raises(GuardedLLMError, match="thing is of type 'any'"):
        await face.make_object(llm, Anything, "Some thing.")
