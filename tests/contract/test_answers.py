"""What an answer tells, and what may be asked of one call."""

from __future__ import annotations

import pytest

from mlx_guarded_llm import Backend, taint
from tests.conftest import MakeModel

from ._each import each_face, each_library, each_stream
from ._faces import WAYS, Face

PARIS = "The capital is Paris."


@each_face
async def test_an_answer_says_how_it_ended_what_it_cost_and_whose_it_is(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(PARIS)
    answer = await face.ask(face.make(backend, model), "What is the capital of France?")
    assert answer.text == PARIS
    assert answer.finish_reason == "stop"
    asked = len(backend.tokens(model, "What is the capital of France?"))
    assert answer.usage == (asked, len(PARIS) // 3 + 1)  # pieces of three letters, and the end
    assert answer.model == answer.guard.served_model == answer.guard.requested_model == model
    assert answer.guard.as_asked and answer.guard.fingerprint
    assert [attempt.outcome for attempt in answer.guard.attempts] == ["ok"]
    assert answer.guard.request_id in backend.explain(answer.guard.request_id)


@each_stream
async def test_a_stream_adds_up_and_tells_of_itself_once_at_its_end(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    answer = await face.ask(face.make(backend, scripted(PARIS)), "Where?")
    assert "".join(answer.pieces) == PARIS
    assert len(answer.pieces) > 3
    assert answer.ends == (len(answer.pieces) - 1,)


@each_library
async def test_all_ways_give_the_same_answer(face: Face, backend: Backend, tiny: MakeModel) -> None:
    llm = face.make(backend, tiny(), temperature=0.9, seed=5, max_tokens=16)
    ways = [face.by(way) for way in WAYS]
    answers = [await way.ask(llm, "Where?") for way in ways]
    assert len({answer.text for answer in answers}) == 1
    assert len({answer.usage for answer in answers}) == 1


@each_face
async def test_reasoning_is_apart_from_the_text(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(f"<think>France, so</think>{PARIS}", thinking=True)
    answer = await face.ask(face.make(backend, model), "Where?")
    assert (answer.reasoning, answer.text) == ("France, so", PARIS)


@each_face
async def test_stop_strings_of_a_call_end_it(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted(PARIS), stop=["never said"])
    answer = await face.ask(llm, "Where?", stop=["Paris"])
    assert answer.text == "The capital is "
    assert answer.finish_reason == "stop" and answer.guard.as_asked
    assert (await face.ask(llm, "Where?")).text == PARIS


@each_face
async def test_max_tokens_of_a_call_cuts_it_and_that_is_told(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted(PARIS), max_tokens=500)
    answer = await face.ask(llm, "Where?", max_tokens=3)
    assert PARIS.startswith(answer.text) and answer.text != PARIS
    assert answer.usage and answer.usage[1] == 3
    assert answer.finish_reason == "length"
    assert answer.guard.as_asked and answer.guard.capped
    assert not any(taint([answer.whole]))
    assert len(answer.guard.attempts) == 1


@each_face
async def test_a_seed_gives_the_same_answer_again(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(), max_tokens=12)
    answers = [await face.ask(llm, "Hi", temperature=1.0, seed=seed) for seed in (7, 7, 8)]
    assert answers[0].text == answers[1].text != answers[2].text
    assert [answer.guard.seed for answer in answers] == [7, 7, 8]


@each_face
async def test_an_answer_tells_the_seed_that_gives_it_again(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(), max_tokens=12, temperature=1.0)
    first = await face.ask(llm, "Hi")
    assert first.guard.seed is not None
    again = await face.ask(llm, "Hi", seed=first.guard.seed)
    assert again.text == first.text


@each_library
@pytest.mark.parametrize("text", ["Grüße, 東京! 👩‍🚀", "a\n\nb\tc", "{\"not\": 'json'"])
async def test_any_text_arrives_whole_through_streams_too(
    face: Face, backend: Backend, scripted: MakeModel, text: str
) -> None:
    llm = face.make(backend, scripted(text, piece_bytes=2))
    for way in WAYS:
        answer = await face.by(way).ask(llm, "Say it.")
        assert answer.text == "".join(answer.pieces) == text
