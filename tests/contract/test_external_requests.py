"""What other packages' models are asked, and when they are asked again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import AttemptsExhausted, DegradedAnswer, ModelNotFound
from tests.conftest import MakeModel

from ._each import each_adapter
from ._external import Says, external
from ._faces import Face, Heard
from .test_external_answers import NUMBERS, TOOLS

CUT = Says(text="Of the", metadata={"finish_reason": "length"}, raw={"finish_reason": "length"})


def big(face: Face, fallback: Any, **settings: Any) -> Any:
    gone = Heard(faults={"big": [ModelNotFound("gone.")] * 9})
    return face.make(gone, "big", fallbacks=[fallback], on_fallback="mark", **settings)


def sent(fallback: Any) -> dict[str, Any]:
    """All that reached it in its first request."""
    return {name: value for asked in fallback.asked for name, value in asked.items()}


def last(fallback: Any) -> str:
    return str(sent(fallback)["messages"][-1].content)


@each_adapter
async def test_one_stop_string_is_one(face: Face) -> None:
    other = external(face.library, Says(text="It is seven.\nObservation: no"))
    answer = await face.ask(big(face, other), "Why?", stop="\nObservation")
    assert answer.text == "It is seven."
    if face.library == "langchain":
        assert sent(other)["stop"] == ["\nObservation"]


@each_adapter
@pytest.mark.parametrize("schema", [True, NUMBERS, {"type": "array"}, {"type": "object"}])
async def test_tools_and_a_form_reach_it_together(face: Face, schema: Any) -> None:
    other = external(face.library, Says(calls=(("add", {"a": 1}),)))
    prompt: Any = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "Hm."},
    ]
    answer = await face.ask(big(face, other), prompt, tools=TOOLS, schema=schema)
    assert answer.calls == (("add", {"a": 1}),) and not answer.guard.degraded
    assert [tool["function"]["name"] for tool in sent(other)["tools"]] == ["add"]
    assert ("JSON" in last(other) and "no tool" in last(other)) or schema is True
    assert len(sent(other)["messages"]) == 3


@each_adapter
@pytest.mark.parametrize("schema", [True, {"type": "array"}, {"type": "object"}])
async def test_a_form_that_is_no_tools_is_told_in_words(face: Face, schema: Any) -> None:
    text = "[]" if schema == {"type": "array"} else "{}"
    other = external(face.library, Says(text=text))
    answer = await face.ask(big(face, other), "Some JSON.", schema=schema)
    assert answer.text == text and not answer.guard.degraded
    assert last(other).startswith("Some JSON.\n\nAnswer with JSON")


@each_adapter
async def test_settings_that_it_has_and_that_are_open_reach_it(face: Face) -> None:
    asked = {"max_tokens": 7, "temperature": 0.5, "seed": 3, "top_k": 5, "thinking": False}
    other = external(face.library, Says(text="Yes."), settings=True)
    await face.ask(big(face, other), "Why?", **asked)
    found = sent(other)
    assert (found["max_tokens"], found["temperature"], found["seed"]) == (7, 0.5, 3)
    assert not {"top_k", "thinking", "min_p"} & found.keys()
    assert other.max_tokens is None, "its owner's own is left alone"
    plain = external(face.library, Says(text="Yes."))
    await face.ask(big(face, plain), "Why?", **asked)
    assert not {"temperature", "seed", "top_k", "thinking"} & sent(plain).keys()


@each_adapter
async def test_what_its_owner_set_stays(face: Face) -> None:
    own: dict[str, Any] = {"max_tokens": 9, "temperature": 0.1, "seed": 1}
    for asked, most in ((100, 9), (5, 5)):
        other = external(face.library, Says(text="Yes."), **own)
        await face.ask(big(face, other), "Why?", max_tokens=asked, temperature=0.9, seed=2)
        found = sent(other)
        assert (found["max_tokens"], found["temperature"], found["seed"]) == (most, 0.1, 1)


@each_adapter
@pytest.mark.parametrize(
    "says",
    [
        CUT,
        Says(text=" "),
        Says(text="No.", metadata={"finish_reason": "odd"}, raw={"finish_reason": "odd"}),
    ],
)
async def test_one_that_no_change_reaches_is_asked_once(face: Face, says: Says) -> None:
    set_up: dict[str, Any] = {"max_tokens": 9, "temperature": 0.1, "seed": 1}
    for own in ({}, set_up):
        other = external(face.library, says, **own)
        with pytest.raises(DegradedAnswer) as caught:
            await face.ask(big(face, other), "Why?")
        assert len(other.asked) == 1
        assert caught.value.guard and caught.value.guard.attempts[-1].changed == {}


@each_adapter
async def test_one_that_a_change_reaches_is_asked_with_it(face: Face) -> None:
    other = external(face.library, Says(text=" "), settings=True)
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(big(face, other), "Why?")
    assert len({str(asked) for asked in other.asked}) == len(other.asked) == 3
    assert caught.value.guard is not None
    changed = [dict(attempt.changed) for attempt in caught.value.guard.attempts[1:]]
    assert changed[0] == {}
    for asked, change in zip(other.asked[1:], changed[1:], strict=True):
        assert change.keys() == {"temperature", "seed"}
        assert {name: asked[name] for name in change} == change


@each_adapter
async def test_a_cut_answer_is_as_asked_only_by_a_limit_that_reached_the_model(face: Face) -> None:
    told = external(face.library, CUT, settings=True)
    answer = await face.ask(big(face, told), "Why?", max_tokens=2)
    assert answer.text == "Of the" and answer.guard.capped and not answer.guard.degraded
    for deaf in (external(face.library, CUT), external(face.library, CUT, max_tokens=1)):
        with pytest.raises(DegradedAnswer):
            await face.ask(big(face, deaf), "Why?", max_tokens=2)


@each_adapter
async def test_an_error_tells_why_no_fallback_answered(face: Face) -> None:
    other = external(face.library, Says(text="x"))
    with pytest.raises(AttemptsExhausted, match=r"of the fallbacks: .*cannot hold its answer"):
        await face.ask(big(face, other), "Why?", regex="[0-9]+")
    assert other.asked == []


class City(BaseModel):
    name: str


@each_adapter
async def test_an_object_without_its_mark_is_an_error(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(
        backend,
        scripted('{"name": "Rome"}'),
        on_degraded="mark",
        accept=lambda r: "Paris" in r.text,
    )
    with pytest.raises(DegradedAnswer) as caught:
        await face.make_object(llm, City, "The capital?")
    assert caught.value.reasons == ("refused",)


@each_adapter
async def test_odd_names_of_tools_are_plain_ones_to_it(face: Face) -> None:
    """Services refuse other letters in a name; none of the tools may become another."""
    names = ["git.hub/search", "git_hub_search", "uhr größe", "x" * 80]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    history: Any = [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": names[0], "arguments": '{"q": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Nothing."},
        {"role": "user", "content": "Again."},
    ]
    seen = ["git_hub_search_2", "git_hub_search", "uhr_gr__e", "x" * 64]
    other = external(face.library, Says(calls=tuple((name, {}) for name in seen)))
    answer = await face.ask(big(face, other), history, tools=tools)
    assert [name for name, _ in answer.calls] == names and not answer.guard.degraded
    asked = sent(other)
    assert [tool["function"]["name"] for tool in asked["tools"]] == seen
    called = asked["messages"][1]
    earlier = (
        [call["name"] for call in called.tool_calls]
        if face.library == "langchain"
        else [block.tool_name for block in called.blocks if hasattr(block, "tool_name")]
    )
    assert earlier == [seen[0]]


@each_adapter
async def test_what_a_service_refuses_is_left_out(face: Face) -> None:
    """A setting is not worth an answer. What is wrong otherwise is raised, and asked once."""

    class Refused(Exception):
        status_code = 400

    def picky(words: str) -> Any:
        made = external(face.library, Says(text="Yes.END no"), settings=True)
        kind = type(made)

        class Picky(kind):  # type: ignore[misc, valid-type]
            def _refuse(self) -> None:
                self.asked.append({"seed": self.seed, "temperature": self.temperature})
                if self.seed is not None:
                    raise Refused(words)

            def _generate(self, *args: Any, **kwargs: Any) -> Any:
                self._refuse()
                return super()._generate(*args, **kwargs)

            def chat(self, messages: Any, **kwargs: Any) -> Any:
                self._refuse()
                return super().chat(messages, **kwargs)

        return Picky(says=made.says, asked=[])

    llm = picky("Unsupported parameter: 'seed'")
    answer = await face.ask(big(face, llm), "Why?", seed=3, temperature=0.5, stop=["END"])
    assert answer.text == "Yes." and not answer.guard.degraded
    assert [asked["seed"] for asked in llm.asked] == [3, None, None]
    assert llm.asked[1]["temperature"] == 0.5
    other = picky("The prompt is too long.")
    with pytest.raises(AttemptsExhausted):
        await face.ask(big(face, other), "Why?", seed=3)
    assert {asked["seed"] for asked in other.asked} == {3}


@each_adapter
async def test_a_setting_that_its_constructor_fills_in_is_open(face: Face) -> None:
    """So are those that it keeps in a mapping, from which it sends them."""
    made = external(face.library, Says(text="Yes."), settings=True)
    kind = type(made)

    class Filled(kind):  # type: ignore[misc, valid-type]
        _config: Any = PrivateAttr()

        def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
            super().__init__(temperature=temperature, **kwargs)
            self._config = {"temperature": temperature, "max_output_tokens": None, "top_k": 1}

        def _note(self) -> None:
            self.asked.append(dict(self._config))

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            self._note()
            return super()._generate(*args, **kwargs)

        def chat(self, messages: Any, **kwargs: Any) -> Any:
            self._note()
            return super().chat(messages, **kwargs)

    for own, used in (({}, 0.5), ({"temperature": 0.9}, 0.9)):
        llm = Filled(says=made.says, asked=[], **own)
        await face.ask(big(face, llm), "Why?", temperature=0.5, max_tokens=7)
        assert llm.asked[0] == {"temperature": used, "max_output_tokens": 7, "top_k": 1}
        assert llm.asked[1]["temperature"] == used


@each_adapter
@pytest.mark.parametrize(("own", "used"), [(None, 7), (5, 5), (9, 7)])
async def test_a_limit_that_it_keeps_in_a_mapping_only_is_one(
    face: Face, own: int | None, used: int
) -> None:
    """As the LLM of Gemini does, which has no such field."""
    made = external(face.library, Says(text="Yes."))
    kind = type(made)

    class Keeping(kind):  # type: ignore[misc, valid-type]
        _config: Any = PrivateAttr()

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            self._config = {"max_output_tokens": own, "seed": None}

        def _note(self) -> None:
            self.asked.append(dict(self._config))

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            self._note()
            return super()._generate(*args, **kwargs)

        def chat(self, messages: Any, **kwargs: Any) -> Any:
            self._note()
            return super().chat(messages, **kwargs)

    llm = Keeping(says=made.says, asked=[])
    await face.ask(big(face, llm), "Why?", max_tokens=7, seed=3)
    assert llm.asked[0] == {"max_output_tokens": used, "seed": 3}
    assert llm._config == {"max_output_tokens": own, "seed": None}


class Status(Exception):
    """As clients of services raise it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.status_code = code


class Classified(Status):
    """It says itself whether it may pass."""

    is_retryable = True


@each_adapter
@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (Status(429), 3),
        (Status(503), 3),
        (ConnectionError("gone"), 3),
        (Status(400), 1),
        (Status(401), 1),
        (Status(404), 1),
        (Classified(404), 3),
        (NotImplementedError("no."), 1),
    ],
    ids=str,
)
async def test_an_error_that_may_pass_is_asked_again(
    face: Face, error: Exception, asked: int
) -> None:
    made = external(face.library, Says(text="Yes."))
    kind = type(made)

    class Failing(kind):  # type: ignore[misc, valid-type]
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return self.chat([])

        def chat(self, messages: Any, **kwargs: Any) -> Any:
            self.asked.append({})
            raise error

    llm = Failing(says=made.says, asked=[])
    with pytest.raises(AttemptsExhausted):
        await face.ask(big(face, llm), "Why?")
    assert len(llm.asked) == asked
