"""Objects out of answers: held by a grammar, checked by their class, never half of one."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.mlx_guarded import MLXGuarded
from pydantic import AliasChoices, BaseModel, Field, field_validator

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.errors import DegradedAnswer, FallbackRefused, InvalidRequest
from mlx_guarded_llm.testing.faulty import Says
from tests.conftest import MakeModel
from tests.llama_index._helpers import Fake, big, old_parts, user

PROMPT = PromptTemplate("Tell me about {topic}.")


class Track(BaseModel):
    """A track of an album."""

    title: str = Field(max_length=6)
    seconds: int = Field(ge=1, le=9)


class Album(BaseModel):
    """An album with its tracks."""

    kind: Literal["studio", "live"]
    tracks: list[Track] = Field(min_length=1, max_length=2)
    best: Track | None


@pytest.fixture
def llm(backend: Backend, tiny: MakeModel) -> MLXGuarded:
    """A model that talks noise, but for its grammar."""
    return MLXGuarded(model=tiny(), backend=backend)


# ---- on a real backend -----------------------------------------------------------------


def test_an_object_with_objects_inside(llm: MLXGuarded) -> None:
    for seed in range(3):
        options = {"temperature": 1.0, "seed": seed}
        album = llm.structured_predict(Album, PROMPT, options, topic="music")
        assert isinstance(album, Album) and album.tracks


async def test_an_awaited_object(llm: MLXGuarded) -> None:
    assert isinstance(await llm.astructured_predict(Album, PROMPT, topic="music"), Album)


def test_a_streamed_object_grows_and_is_whole_at_last(llm: MLXGuarded) -> None:
    seen: list[Any] = list(llm.stream_structured_predict(Album, PROMPT, topic="music"))
    assert len(seen) > 3
    assert isinstance(seen[-1], Album)
    assert not isinstance(seen[0], Album) and seen[0].tracks is None, "it began empty"


class City(BaseModel):
    city_name: str = Field(alias="cityName", max_length=4)
    people: int = Field(validation_alias=AliasChoices("inhabitants", "people"), ge=1, le=9)


async def test_a_growing_object_has_its_fields_by_their_names(llm: MLXGuarded) -> None:
    prompt = PromptTemplate("A city.")
    ways: list[list[Any]] = [
        list(llm.stream_structured_predict(City, prompt)),
        [found async for found in await llm.astream_structured_predict(City, prompt)],
    ]
    for *growing, last in ways:
        assert isinstance(last, City)
        assert any(one.city_name == last.city_name for one in growing)
        assert growing[-1].people == last.people
        assert not hasattr(growing[-1], "cityName") and not hasattr(growing[-1], "inhabitants")


async def test_an_awaited_streamed_object(llm: MLXGuarded) -> None:
    stream = await llm.astream_structured_predict(Album, PROMPT, topic="music")
    seen: list[Any] = [found async for found in stream]
    assert len(seen) > 3 and isinstance(seen[-1], Album)


@old_parts
def test_a_structured_llm(llm: MLXGuarded) -> None:
    structured = llm.as_structured_llm(Album)
    response = structured.chat(user())
    assert isinstance(response.raw, Album)
    assert Album.model_validate_json(str(response.message.content)) == response.raw
    assert isinstance(structured.complete("Tell me.").raw, Album)
    assert isinstance([*structured.stream_chat(user())][-1].raw, Album)


@old_parts
async def test_an_awaited_structured_llm(llm: MLXGuarded) -> None:
    structured = llm.as_structured_llm(Album)
    assert isinstance((await structured.achat(user())).raw, Album)
    stream = await structured.astream_chat(user())
    assert isinstance([response async for response in stream][-1].raw, Album)


def test_a_schema_may_be_given_to_a_chat(llm: MLXGuarded) -> None:
    response = llm.chat(user(), schema=Album.model_json_schema())
    assert Album.model_validate_json(str(response.message.content)).tracks


def test_a_model_that_was_cut_off_gives_no_object(llm: MLXGuarded) -> None:
    with pytest.raises(DegradedAnswer):
        llm.structured_predict(Album, PROMPT, {"max_tokens": 5}, topic="music")


def test_a_schema_that_is_none_is_refused(llm: MLXGuarded) -> None:
    with pytest.raises(InvalidRequest, match="type 'set'"):
        llm.chat(user(), schema={"type": "set"})


def test_objects_by_tool_calls_when_that_is_chosen(backend: Backend, tiny: MakeModel) -> None:
    llm = MLXGuarded(
        model=tiny(),
        backend=backend,
        pydantic_program_mode=PydanticProgramMode.FUNCTION,
    )
    assert isinstance(llm.structured_predict(Album, PROMPT, topic="music"), Album)


# ---- what is asked, and what is accepted -------------------------------------------------

GOOD = '{"title": "One", "seconds": 3}'


class Noting(Fake):
    """Also notes the prompts."""

    def __init__(self, **faults: Any) -> None:
        super().__init__(**faults)
        self.prompts: list[Any] = []

    def generate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        self.prompts.append(prompt)
        return super().generate(model, prompt, **arguments)


def test_the_schema_is_the_classs_and_the_prompt_the_templates() -> None:
    backend = Noting(big=[Says(GOOD)])
    llm = big(backend, system_prompt="Be brief.")
    llm.structured_predict(Track, PROMPT, {"seed": 3}, topic="music")
    ((_, arguments),) = backend.calls
    assert arguments["schema"] == Track.model_json_schema() and arguments["seed"] == 3
    assert backend.prompts[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me about music."},
    ]


def test_a_template_of_messages() -> None:
    backend = Noting(big=[Says(GOOD)])
    template = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("user", "{q}")])
    big(backend).structured_predict(Track, template, how="brief", q="Which?")  # type: ignore[arg-type] # LlamaIndex takes it
    assert [message["content"] for message in backend.prompts[0]] == ["Be brief.", "Which?"]


class Even(BaseModel):
    """What no grammar knows."""

    number: int

    @field_validator("number")
    @classmethod
    def _is_even(cls, number: int) -> int:
        assert number % 2 == 0
        return number


ODD, EVEN = Says('{"number": 3}'), Says('{"number": 4}')


def test_what_the_classs_validators_refuse_is_asked_for_again() -> None:
    backend = Fake(big=[ODD, ODD, EVEN])
    assert big(backend).structured_predict(Even, PROMPT, topic="numbers") == Even(number=4)
    assert len(backend.calls) == 3


@pytest.mark.parametrize("on_degraded", ["raise", "mark"])
def test_an_object_that_cannot_be_is_an_error_however_answers_are_marked(on_degraded: Any) -> None:
    with pytest.raises(DegradedAnswer) as caught:
        big(Fake(big=[ODD] * 3), on_degraded=on_degraded).structured_predict(Even, PROMPT, topic="")
    assert caught.value.reasons == ("refused",)


async def test_the_other_ways_to_an_object_refuse_it_too() -> None:
    def llm() -> MLXGuarded:
        return big(Fake(big=[ODD] * 3), hold_back=float("inf"))

    with pytest.raises(DegradedAnswer):
        await llm().astructured_predict(Even, PROMPT, topic="numbers")
    with pytest.raises(DegradedAnswer):
        list(llm().stream_structured_predict(Even, PROMPT, topic="numbers"))
    stream = await llm().astream_structured_predict(Even, PROMPT, topic="numbers")
    with pytest.raises(DegradedAnswer):
        await anext(stream)


def test_checks_of_the_callers_own_are_asked_too() -> None:
    asked: list[str] = []

    def of_llm(result: Result) -> bool:
        asked.append(f"llm {result.text}")
        return result.text != EVEN.text

    def of_call(result: Result) -> bool:
        asked.append(f"call {result.text}")
        return True

    with pytest.raises(DegradedAnswer):
        big(Fake(big=[ODD, EVEN, EVEN]), accept=of_llm).structured_predict(Even, PROMPT, topic="")
    assert asked == [f"llm {EVEN.text}"] * 2
    llm = big(Fake(big=[EVEN]), accept=of_llm)
    assert llm.structured_predict(Even, PROMPT, {"accept": of_call}, topic="") == Even(number=4)
    assert asked[-1] == f"call {EVEN.text}"


def test_the_options_of_the_caller_are_not_changed() -> None:
    options = {"seed": 1, "accept": lambda result: True}
    before = dict(options)
    big(Fake(big=[Says(GOOD)])).structured_predict(Track, PROMPT, options, topic="")
    assert options == before


def test_a_fallbacks_object_is_refused() -> None:
    llm = big(Fake(big=[Says("no")] * 3, small=[Says(GOOD)]), fallbacks=["small"])
    with pytest.raises(FallbackRefused) as caught:
        llm.structured_predict(Track, PROMPT, topic="music")
    assert caught.value.answer.text == GOOD


def test_text_before_an_object_is_no_object() -> None:
    partial = big(Fake(big=[Says(f"Sure: {GOOD}")] * 3), on_degraded="mark")
    with pytest.raises(DegradedAnswer):
        list(partial.stream_structured_predict(Track, PROMPT, topic="music"))
