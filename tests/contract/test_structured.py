"""Answers as objects."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import DegradedAnswer, InvalidGrammar
from tests.conftest import MakeModel

from ._each import each_face
from ._faces import Face


class Light(BaseModel):
    colour: Literal["red", "green"]
    level: int = Field(ge=0, le=9)
    on: bool


class Essay(BaseModel):
    text: str = Field(min_length=400)


class Numbers(BaseModel):
    numbers: list[int] = Field(json_schema_extra={"uniqueItems": True})


@each_face
async def test_an_object_fits_its_class_whatever_the_model_knows(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    for seed in range(3):
        llm = face.make(backend, tiny(), temperature=1.0, seed=seed)
        light = await face.make_object(llm, Light, "A light, please.")
        assert isinstance(light, Light)


@each_face
async def test_an_object_that_is_cut_off_is_an_error(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(), max_tokens=24)
    with pytest.raises(DegradedAnswer):
        await face.make_object(llm, Essay, "An essay, please.")


@each_face
async def test_what_no_grammar_can_hold_is_refused_by_name(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny())
    with pytest.raises(InvalidGrammar, match="uniqueItems"):
        await face.make_object(llm, Numbers, "Some numbers.")
