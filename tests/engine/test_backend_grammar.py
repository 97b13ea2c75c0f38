"""Answers that follow a grammar, alone and beside others."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import random
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlx_guarded_llm import Backend, SamplingParams
from mlx_guarded_llm.errors import (
    GrammarFailed,
    GrammarUnavailable,
    InvalidGrammar,
    InvalidRequest,
)
from mlx_guarded_llm.request import PromptRequest
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, tokens_of
from tests.engine._schemas import random_schema
from tests.engine.test_grammar_forms import TOO_WIDE

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["city", "size"],
}
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 10_000}
HOT: dict[str, Any] = {"temperature": 1.5, "max_tokens": 400}


def follows(text: str, schema: Any) -> bool:
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("isolation", ["process"])  # a grammar works beside MLX, in either
async def test_200_of_200_random_schemas(make_backend: MakeBackend, tiny: MakeModel) -> None:
    """See `_schemas` for their kind. 32 at a time, so the line-up of the batch changes often.

    Hot, because a number may have digits without end, and a cold random model repeats one.
    """
    backend, model = make_backend(), tiny(context_window=4096, tokenizer="bpe", vocab_size=512)
    places = asyncio.Semaphore(32)

    async def valid(seed: int) -> bool:
        schema = random_schema(seed)
        async with places:
            result = await backend.agenerate(
                model,
                f"Number {seed}",
                schema=schema,
                max_tokens=3000,
                temperature=random.Random(seed).choice((2.0, 4.0, 8.0)),
                seed=seed,
                timeout=500,
            )
        assert result.finish_reason == "stop", (seed, schema, result.text)
        return follows(result.text, schema)

    assert sum(await asyncio.gather(*map(valid, range(200)))) == 200


class TestWhatCanBeAsked:
    def test_a_schema(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(), "Hello", schema=CITY, seed=1, **HOT)
        assert follows(result.text, CITY)
        assert result.finish_reason == "stop"

    def test_a_schema_for_a_base_model(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(chat_template=None), "Hello", schema=CITY, seed=1, **HOT)
        assert follows(result.text, CITY)

    def test_a_regular_expression(self, backend: Backend, tiny: MakeModel) -> None:
        pattern = r"[A-F]{3,6}-[0-9]{2}( or [a-z]+){0,2}!"
        result = backend.generate(tiny(), "Hello", regex=pattern, seed=1, **HOT)
        assert re.fullmatch(pattern, result.text)

    def test_a_lark_grammar(self, backend: Backend, tiny: MakeModel) -> None:
        grammar = 'start: sum\nsum: term ("+" term){1,3}\nterm: /[1-9][0-9]?/ | "(" sum ")"'
        result = backend.generate(tiny(), "Hello", grammar=grammar, seed=5, **HOT)
        assert set(result.text) <= set("0123456789+()")
        assert eval(result.text) > 0

    def test_a_greedy_answer(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(), "Hello", regex="(yes|no)[.!]", max_tokens=40)
        assert re.fullmatch("(yes|no)[.!]", result.text)

    def test_with_penalties_and_bias(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(
            tiny(),
            "Hello",
            regex="[ab]{20}",
            frequency_penalty=1.5,
            logit_bias={ord("c"): 1e4, ord("b"): 2.0},
            **HOT,
        )
        assert re.fullmatch("[ab]{20}", result.text)

    def test_probabilities_are_those_of_what_may_come(
        self, backend: Backend, tiny: MakeModel
    ) -> None:
        result = backend.generate(
            tiny(), "Hello", regex="[ab]{8}", logprobs=True, top_logprobs=5, **HOT
        )
        *letters, _end = result.logprobs
        for one in letters:
            assert math.isfinite(one.logprob)
            assert {text for _, text, _ in one.top} <= {"a", "b"}
            assert sum(math.exp(p) for _, _, p in one.top) == pytest.approx(1, abs=1e-4)

    def test_cut_by_length(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(), "Hello", schema=CITY, max_tokens=9)
        assert result.finish_reason == "length"
        assert result.usage.completion_tokens == 9
        assert result.text.startswith('{"city": ')

    def test_a_stop_string_ends_it_all_the_same(self, backend: Backend, tiny: MakeModel) -> None:
        result = backend.generate(tiny(), "Hello", regex="abcdef", stop="d", max_tokens=20)
        assert (result.text, result.finish_reason) == ("abc", "stop")

    def test_a_model_whose_requests_share_no_batch(
        self, make_backend: MakeBackend, tiny: MakeModel, aliases: Callable[..., Path]
    ) -> None:
        packed = {"model": tiny(hidden_size=128), "kv_bits": 8, "kv_group_size": 32}
        backend = make_backend(aliases(alone=packed))
        first, second = (
            backend.generate("alone", "Hello", schema=CITY, seed=1, **HOT) for _ in range(2)
        )
        assert follows(first.text, CITY)
        assert first.text == second.text
        assert backend.generate("alone", "Hello", regex="ab+c", max_tokens=9).text[:2] == "ab"


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"schema": {"not": {"type": "null"}}}, "keyword 'not'"),
            ({"schema": {"not": {}}}, "no answer can follow"),
            (
                {"schema": {"type": "object", "properties": {"a": {"uniqueItems": True}}}},
                "schema.properties.a uses the keyword 'uniqueItems'",
            ),
            ({"schema": {"name": "a", "schema": {"type": "null"}}}, "is wrapped"),
            ({"schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "minimum"),
            ({"schema": False}, "no answer can follow"),
            ({"regex": "("}, "the regex"),
            ({"grammar": "nonsense"}, "the grammar"),
        ],
    )
    def test_what_cannot_be_held_to(
        self, backend: Backend, tiny: MakeModel, options: Any, words: str
    ) -> None:
        with pytest.raises(InvalidGrammar, match=words):
            backend.generate(tiny(), "Hello", **options)
        assert events(backend, "load.") == [], "known before a load"
        assert backend.generate(tiny(), "Hello", max_tokens=3).text

    def test_a_form_and_a_forced_call(self, backend: Backend, tiny: MakeModel) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        with pytest.raises(InvalidRequest, match="tool_choice asks for a call"):
            backend.generate(tiny(), "Hello", schema={}, tools=[tool], tool_choice="required")

    @pytest.mark.parametrize("isolation", ["thread"])  # what is missing is missing here
    def test_without_llguidance(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        tool = {"type": "function", "function": {"name": "f"}}
        for options in ({"regex": "a"}, {"tools": [tool], "tool_choice": "required"}):
            with pytest.raises(GrammarUnavailable, match="not installed") as caught:
                backend.generate(tiny(), "Hello", **options)
            assert "mlx-guarded-llm[grammar]" in caught.value.hint
        assert backend.generate(tiny(), "Hello", tools=[tool], max_tokens=5).text

    def test_a_grammar_that_fails_half_way_ends_its_own_request_only(
        self, backend: Backend, tiny: MakeModel
    ) -> None:
        alone = tokens_of(backend.generate(tiny(), "Hi", logprobs=True, max_tokens=120))
        with backend.stream(tiny(), "Hi", logprobs=True, max_tokens=120) as neighbour:
            chunks = [next(neighbour)]
            with pytest.raises(GrammarFailed, match="cannot go on") as caught:
                backend.generate(tiny(), "Hello", grammar=TOO_WIDE)
            assert not caught.value.retryable
            chunks += neighbour
        assert [p.token for c in chunks for p in c.logprobs] == alone
        assert len(alone) == 120


class TestNeighbours:
    """The tokens of a row are its own, whatever grammars hold the rows beside it."""

    def ask(self, backend: Backend, model: str, number: int, **options: Any) -> list[int]:
        options = {"temperature": 1.0, "max_tokens": 30 + 9 * number, **options}
        return tokens_of(
            backend.generate(model, f"Ask {number}", logprobs=True, seed=number, **options)
        )

    def test_free_and_bound_rows(self, backend: Backend, tiny: MakeModel) -> None:
        model = tiny()
        forms: list[dict[str, Any]] = [
            {},
            {"schema": CITY, "max_tokens": 300},
            {},
            {"regex": "[a-z ]{5,60}[.]", "max_tokens": 300},
            {"repetition_penalty": 1.2},
            {"schema": ENDLESS},
            {},
        ]
        alone = [self.ask(backend, model, i, **form) for i, form in enumerate(forms)]
        together: dict[int, list[int]] = {}

        def ask(i: int) -> None:
            together[i] = self.ask(backend, model, i, **forms[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(forms))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[i] for i in range(len(forms))] == alone

    def test_rows_that_come_and_go(self, backend: Backend, tiny: MakeModel) -> None:
        """Bound rows join free ones and leave them, by their end, by length, by a cancel."""
        model = tiny()
        alone = self.ask(backend, model, 1, max_tokens=200)
        bound = self.ask(backend, model, 2, schema=ENDLESS, max_tokens=150)
        options: dict[str, Any] = {"logprobs": True, "temperature": 1.0}
        with backend.stream(model, "Ask 1", seed=1, max_tokens=200, **options) as free:
            chunks = [next(free)]
            with backend.stream(
                model, "Ask 2", seed=2, schema=ENDLESS, max_tokens=150, **options
            ) as held:
                others = [next(held)]
                assert backend.generate(model, "x", regex="ab", max_tokens=9).text == "ab"
                assert len(self.ask(backend, model, 3, max_tokens=4, schema=ENDLESS)) == 4
                with backend.stream(model, "Ask 4", schema=ENDLESS, max_tokens=999) as dropped:
                    next(dropped)
                assert self.ask(backend, model, 5, max_tokens=3)
                others += held
            chunks += free
        assert [p.token for c in chunks for p in c.logprobs] == alone
        assert [p.token for c in others for p in c.logprobs] == bound

    def test_a_seed_gives_the_same_answer_again(self, backend: Backend, tiny: MakeModel) -> None:
        def answer(seed: int) -> str:
            return backend.generate(tiny(), "Hello", schema=CITY, seed=seed, **HOT).text

        assert answer(7) == answer(7)
        assert len({answer(seed) for seed in range(5)}) > 1

    def test_a_cancel_gives_the_place_back(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        backend = make_backend(max_active=1)
        with backend.stream(tiny(), "Hello", schema=ENDLESS, max_tokens=1500) as stream:
            next(stream)
        assert backend.generate(tiny(), "Hello", regex="ab", max_tokens=9).text == "ab"


class TestThinking:
    ANSWER = '{"city": "Rome", "size": 42}'

    @pytest.mark.parametrize("thinking", [True, "open"])
    def test_the_schema_begins_after_it(
        self, backend: Backend, scripted: MakeModel, thinking: Any
    ) -> None:
        begin = "" if thinking == "open" else "<think>"
        model = scripted(f"{begin}Is it Rome? Yes!</think>{self.ANSWER}", thinking=thinking)
        result = backend.generate(model, "Hello", schema=CITY, max_tokens=200)
        assert result.reasoning == "Is it Rome? Yes!"
        assert result.text == self.ANSWER
        assert result.finish_reason == "stop"

    def test_a_model_need_not_think(self, backend: Backend, scripted: MakeModel) -> None:
        model = scripted(self.ANSWER, thinking=True)
        for thinking in (None, False):
            result = backend.generate(model, "Hello", schema=CITY, thinking=thinking)
            assert (result.text, result.reasoning) == (self.ANSWER, "")

    def test_without_thinking_it_may_not_open_any(
        self, backend: Backend, scripted: MakeModel
    ) -> None:
        model = scripted(f"<think>No.</think>{self.ANSWER}", thinking=True)
        result = backend.generate(model, "Hello", schema=CITY, thinking=False, max_tokens=60)
        assert result.reasoning == ""
        assert result.text.startswith("{")

    def test_an_answer_cannot_end_inside_of_it(self, backend: Backend, scripted: MakeModel) -> None:
        model = scripted("Hm, hm, so it is.", thinking="open")
        free = backend.generate(model, "Hello", max_tokens=60)
        assert (free.finish_reason, free.text) == ("stop", "")
        held = backend.generate(model, "Hello", schema=CITY, max_tokens=60)
        assert (held.finish_reason, held.text) == ("length", "")

    def test_a_call_after_it(self, backend: Backend, scripted: MakeModel) -> None:
        call = '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'
        model = scripted(f"A call?</think>{call}", thinking="open", tools=True)
        tool = {"type": "function", "function": {"name": "go"}}
        for choice in ("auto", "required"):
            result = backend.generate(model, "Hello", tools=[tool], tool_choice=choice)
            assert [c.name for c in result.tool_calls] == ["go"]
            assert result.reasoning == "A call?"


def test_the_state_follows_from_the_tokens(backend: Backend, tiny: MakeModel) -> None:
    """A request that goes on from its first tokens ends as the uninterrupted one does."""
    model = tiny(thinking="open")

    def ways() -> list[list[int]]:
        whole = _decode(model, [])
        cuts = (1, 2, 5, len(whole) - 1)
        return [whole, *(whole[:cut] + _decode(model, whole[:cut]) for cut in cuts)]

    whole, *resumed = backend.run(ways)
    assert len(whole) > 10
    assert resumed == [whole] * 4


def _decode(folder: str, emitted: list[int]) -> list[int]:
    """On the MLX thread: the rest of a thinking, and an answer after it, in the batch."""
    import mlx_lm

    from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
    from mlx_guarded_llm.engine.decode.constraint import Constraint, Thinking
    from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
    from mlx_guarded_llm.engine.residency.prefix import PrefixCaches
    from mlx_guarded_llm.grammar.compiler import GrammarCompiler
    from mlx_guarded_llm.grammar.forms import answer_form

    model, tokenizer, *_ = mlx_lm.load(folder)
    params = SamplingParams(schema=CITY, temperature=1.0)
    compiler = GrammarCompiler(tokenizer)
    form = answer_form(compiler, params, None)
    assert form is not None
    # The letter "e" ends the thinking here: the end marker of a random model never comes.
    thinking = Thinking(opened=True, start=0, end=(ord("e"),))
    sequence = TokenSequence(
        request_id="r",
        prompt=[*tokenizer.encode("Hello"), *emitted],
        params=params,
        seed=3,
        max_tokens=400,
        emitted=len(emitted),
        constraint=Constraint(
            compiler.matcher(form), vocabulary=compiler.vocabulary, thinking=thinking
        ),
    )
    batch = ContinuousBatch(
        model, tokenizer, PrefixCaches(0).open("m"), max_active=4, prefill_step_size=64
    )
    batch.insert(sequence)
    tokens = []
    while len(batch):
        tokens += [update.token for update in batch.step() if isinstance(update, Token)]
    return tokens


def test_requests_pickle() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for params in (
        SamplingParams(schema=CITY),
        SamplingParams(schema=True),
        SamplingParams(regex="a+"),
        SamplingParams(grammar="start: /a/"),
    ):
        assert pickle.loads(pickle.dumps(params)) == params
    request = PromptRequest("Hi", tools=[tool], parallel_tool_calls=False)
    assert pickle.loads(pickle.dumps(request)) == request
