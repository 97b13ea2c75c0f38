"""Drafted tokens change how long an answer takes, and never the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from mlx_guarded_llm.engine.decode import drafts, speculation
from mlx_guarded_llm.engine.decode.batch import ContinuousBatch, _Ends
from mlx_guarded_llm.engine.decode.conversion import lists
from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
from mlx_guarded_llm.engine.decode.drafts import Draft, DraftModel, PromptLookup
from mlx_guarded_llm.engine.decode.sampling import Row
from mlx_guarded_llm.engine.decode.speculation import LENGTHS, Pace, Speculation
from mlx_guarded_llm.engine.residency.keepable import trimmable_tokens
from mlx_guarded_llm.engine.residency.prefix import UNBOUNDED, PrefixCaches
from mlx_guarded_llm.params import SamplingParams
from tests.conftest import MakeModel

PROMPT = [5 + (i * 7) % 50 for i in range(40)]
TOKENS = 40
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "top_p": {"temperature": 1.2, "top_p": 0.8, "min_p": 0.01},
    "top_k": {"temperature": 1.0, "top_k": 12},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "sampled with penalties": {"temperature": 0.8, "repetition_penalty": 1.2, "penalty_window": 9},
    "biased": {"logit_bias": {7: 4.0, 9: -4.0}, "temperature": 0.7},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
}


class Known:
    """Knows the answer, and is wrong at each third token that it proposes."""

    def __init__(self, answer: list[int], prompt: list[int] = PROMPT) -> None:
        self._answer = [*prompt, *answer]
        self._wrong = cycle([False, False, True])
        self.history: list[int] = []

    def begin(self, history: list[int]) -> None:
        self.history = history

    def ready(self, chunk: int) -> bool:
        return True

    def propose(self, pending: mx.array, row: Row, most: int) -> mx.array | None:
        start = len(self.history) + 1
        tokens = self._answer[start : start + most]
        return mx.array([t + next(self._wrong) for t in tokens]) if tokens else None

    def settle(self, accepted: int) -> None: ...

    def end(self) -> None: ...


class InOrder(Pace):
    """Drafts of several lengths in turn, whatever they cost."""

    def __init__(self) -> None:
        super().__init__()
        self._order = cycle([4, 0, 1, 16, 2, 8])

    def length(self) -> int:
        return next(self._order)

    def took(self, length: int, seconds: float) -> None: ...

    def judged(self, length: int, accepted: int) -> None: ...


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "Pace", InOrder)


@pytest.fixture
def loaded(tiny: MakeModel) -> tuple[Any, Any]:
    model, tokenizer, *_ = mlx_lm.load(tiny())
    return model, tokenizer


@pytest.fixture
def another(tiny: MakeModel) -> Any:
    return mlx_lm.load(tiny(seed=3))[0]


def batch(
    loaded: tuple[Any, Any],
    draft: Draft | None = None,
    *,
    limit: int = UNBOUNDED,
    prefixes: PrefixCaches | None = None,
    ends: tuple[int, ...] = (),
) -> ContinuousBatch:
    model, tokenizer = loaded
    made = ContinuousBatch(
        model,
        tokenizer,
        (prefixes or PrefixCaches(0)).open("m"),
        max_active=8,
        prefill_step_size=16,
        speculation=Speculation(draft, limit=limit, chunk=16) if draft else None,
    )
    made._stops = _Ends(ends)
    return made


def sequence(name: str = "r", *, tokens: int = TOKENS, **sampling: Any) -> TokenSequence:
    return TokenSequence(name, list(PROMPT), SamplingParams(**sampling), 5, tokens)


def decode(made: ContinuousBatch, *sequences: TokenSequence) -> list[Token]:
    """All tokens, in the order in which they come."""
    for each in sequences:
        made.insert(each)
    return list(rest(made))


def rest(made: ContinuousBatch) -> Iterator[Token]:
    while len(made):
        yield from (update for update in made.step() if isinstance(update, Token))


def ids(tokens: list[Token], name: str = "r") -> list[int]:
    return [token.token for token in tokens if token.request_id == name]


def drafting_model(model: Any) -> DraftModel:
    return DraftModel(model, PrefixCaches(2**20).open("d"), 0)


@pytest.mark.usefixtures("lengths")
class TestTheSameTokens:
    @pytest.mark.parametrize(
        ("draft", "sampling"),
        [
            *(("known", sampling) for sampling in SAMPLINGS),
            *(("itself", sampling) for sampling in ("greedy", "sampled", "top_p", "top_k")),
            *(("another", sampling) for sampling in ("greedy", "sampled with penalties")),
            *(("prompt", sampling) for sampling in ("greedy", "biased")),
        ],
    )
    def test_as_without_a_draft(
        self,
        loaded: tuple[Any, Any],
        another: Any,
        monkeypatch: pytest.MonkeyPatch,
        sampling: str,
        draft: str,
    ) -> None:
        monkeypatch.setattr(drafts, "_NGRAM", 1)
        alone = decode(batch(loaded), sequence(**SAMPLINGS[sampling]))
        made: dict[str, Callable[[], Draft]] = {
            "known": lambda: Known(ids(alone)),
            "itself": lambda: drafting_model(loaded[0]),
            "another": lambda: drafting_model(another),
            "prompt": PromptLookup,
        }
        drafted = sequence(**SAMPLINGS[sampling])
        assert decode(batch(loaded, made[draft]()), drafted) == alone
        assert drafted.drafted > 0
        if draft == "known":
            assert 0 < drafted.accepted < drafted.drafted
        if draft == "itself":
            assert drafted.accepted == drafted.drafted

    def test_another_joins_and_leaves(self, loaded: tuple[Any, Any]) -> None:
        alone = ids(decode(batch(loaded), sequence(temperature=0.9)))
        guest = ids(decode(batch(loaded), sequence(temperature=0.5, tokens=9)))
        made = batch(loaded, drafting_model(loaded[0]))
        first = sequence(temperature=0.9)
        made.insert(first)
        tokens = []
        counts = []
        for n, token in enumerate(rest(made)):
            tokens.append(token)
            if n == 15:
                counts.append(first.drafted)
                made.insert(sequence("guest", temperature=0.5, tokens=9))
            if token.request_id == "guest":
                counts.append(first.drafted)
        assert ids(tokens) == alone and ids(tokens, "guest") == guest
        assert 0 < counts[0] == counts[-2], "nothing was drafted while there were two"
        assert first.drafted > counts[-1], "it goes on when the guest has left"

    def test_the_first_leaves_before_the_other(self, loaded: tuple[Any, Any]) -> None:
        other = sequence("other", temperature=0.5)
        made = batch(loaded, drafting_model(loaded[0]))
        tokens = decode(made, sequence(tokens=12), other)
        alone = ids(decode(batch(loaded), sequence(temperature=0.5)))
        assert ids(tokens, "other") == alone
        assert other.accepted == other.drafted > 0

    @pytest.mark.parametrize("tokens", [1, 2, 3, 17])
    def test_no_more_than_it_may_have(self, loaded: tuple[Any, Any], tokens: int) -> None:
        got = decode(batch(loaded, drafting_model(loaded[0])), sequence(tokens=tokens))
        assert ids(got) == ids(decode(batch(loaded), sequence()))[:tokens]
        assert [token.finish_reason for token in got] == [None] * (tokens - 1) + ["length"]

    def test_an_end_in_the_middle_of_a_draft(self, loaded: tuple[Any, Any]) -> None:
        whole = ids(decode(batch(loaded), sequence()))
        prefixes = PrefixCaches(2**22)
        for end in range(3, 24):
            if whole.index(whole[end]) != end:
                continue
            draft = drafting_model(loaded[0])
            made = batch(loaded, draft, prefixes=prefixes, ends=(whole[end],))
            got = decode(made, sequence())
            assert ids(got) == whole[: end + 1]
            assert got[-1].finish_reason == "stop"
            # The cache that is kept of it holds the tokens that it is kept for.
            prompt = [*PROMPT, *whole[: end + 1], 3]
            again, fresh = (TokenSequence("r", prompt, SamplingParams(), 5, 4) for _ in range(2))
            assert made.insert(again) == len(prompt) - 1
            assert list(rest(made)) == decode(batch(loaded, ends=(whole[end],)), fresh)

    def test_cancelled_and_asked_again(self, loaded: tuple[Any, Any]) -> None:
        alone = ids(decode(batch(loaded), sequence(temperature=0.9)))
        made = batch(loaded, drafting_model(loaded[0]), prefixes=PrefixCaches(2**22))
        made.insert(sequence(temperature=0.9))
        tokens: list[Token] = []
        while len(tokens) < 20:
            tokens += [u for u in made.step() if isinstance(u, Token)]
        made.remove("r")
        emitted = ids(tokens)
        assert emitted == alone[: len(emitted)]
        emitted.pop()
        resumed = sequence(temperature=0.9, tokens=TOKENS - len(emitted))
        resumed.prompt += emitted
        resumed.emitted = len(emitted)
        assert emitted + ids(decode(made, resumed)) == alone
        assert resumed.cached == len(PROMPT) + len(emitted) - 1
        assert resumed.accepted == resumed.drafted > 0

    def test_a_window_ends_it(self, tiny: MakeModel) -> None:
        loaded = mlx_lm.load(tiny(architecture="gemma3_text"))[:2]
        window = trimmable_tokens(loaded[0])
        assert 0 < window < UNBOUNDED
        short = PROMPT[:4]
        tokens = window + 40
        alone = ids(decode(batch(loaded), TokenSequence("r", short, SamplingParams(), 5, tokens)))
        drafted = TokenSequence("r", short, SamplingParams(), 5, tokens)
        draft = Known(alone, short)
        made = batch(loaded, draft, limit=window)
        made.insert(drafted)
        got, counts = [], []
        for token in rest(made):
            got.append(token)
            counts.append(drafted.drafted)
        assert ids(got) == alone
        assert 0 < counts[window // 2] <= counts[-30] == counts[-1]

    def test_tokens_that_one_of_them_lacks(self, loaded: tuple[Any, Any], another: Any) -> None:
        alone = decode(batch(loaded), sequence(temperature=1.5))
        draft = DraftModel(another, PrefixCaches(0).open("d"), 30)
        assert decode(batch(loaded, draft), sequence(temperature=1.5)) == alone


@pytest.mark.usefixtures("lengths")
class TestCachesOfADraft:
    def test_the_next_answer_goes_on_from_the_last(self, loaded: tuple[Any, Any]) -> None:
        prefixes = PrefixCaches(2**22)
        draft = DraftModel(loaded[0], prefixes.open("d"), 0)
        made = batch(loaded, draft)
        tokens = ids(decode(made, sequence()))
        assert prefixes.nbytes > 0
        computed: list[int] = []

        def watched(inputs: mx.array, cache: Any) -> Any:
            computed.append(inputs.shape[1])
            return loaded[0](inputs, cache=cache)

        draft._model = watched
        decode(made, TokenSequence("r", [*PROMPT, *tokens, 3, 4], SamplingParams(), 5, 20))
        assert computed and max(computed) < 16, "its prompt was computed before"

    def test_a_long_prompt_is_read_in_chunks(self, loaded: tuple[Any, Any]) -> None:
        draft = drafting_model(loaded[0])
        draft.begin([*PROMPT, *PROMPT])
        assert [draft.ready(16) for _ in range(6)] == [False] * 4 + [True] * 2


class TestPromptLookup:
    ROW = Row(SamplingParams(), 0)

    def propose(self, draft: PromptLookup, pending: int, most: int = 4) -> list[int] | None:
        drafted = draft.propose(mx.array([pending]), self.ROW, most)
        return None if drafted is None else lists(drafted)

    def test_what_followed_the_last_time(self) -> None:
        draft = PromptLookup()
        history = [1, 2, 3, 4, 9, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
        draft.begin(history)
        assert draft.ready(16)
        assert self.propose(draft, 4) == [5, 6, 7, 1]
        assert self.propose(draft, 4, most=2) == [5, 6]
        assert self.propose(draft, 8) is None

    def test_new_tokens_are_never_ready(self) -> None:
        draft = PromptLookup()
        history: list[int] = []
        draft.begin(history)
        for token in range(20):
            assert not draft.ready(16)
            history.append(token)

    def test_it_learns_from_the_answer(self) -> None:
        draft = PromptLookup()
        history = [1, 2, 3]
        draft.begin(history)
        assert not draft.ready(16)
        history += [4, 5, 1, 2, 3]
        assert draft.ready(16) and self.propose(draft, 4) == [5, 1, 2, 3]


class TestPace:
    """Costs in units of a plain step."""

    @staticmethod
    def run(
        pace: Pace, steps: int, seconds: Callable[[int], float], right: Callable[[], bool]
    ) -> tuple[list[int], float]:
        """The lengths that it chose, and how many tokens a unit of time gave."""
        chosen, tokens, spent = [], 0, 0.0
        for _ in range(steps):
            length = pace.length()
            accepted = 0
            while accepted < length and right():
                accepted += 1
            if length:
                pace.judged(length, accepted)
            pace.took(length, seconds(length))
            chosen.append(length)
            tokens += accepted + 1
            spent += seconds(length)
        return chosen, tokens / spent

    def test_it_measures_plain_steps_first(self) -> None:
        chosen, _ = self.run(Pace(), 4, lambda n: 1.0, lambda: True)
        assert chosen == [0, 0, 0, 1]

    def test_a_draft_that_is_right_gets_long(self) -> None:
        chosen, speed = self.run(Pace(), 400, lambda n: 1 + 0.05 * n, lambda: True)
        assert chosen[-200:].count(LENGTHS[-1]) > 180
        assert speed > 7

    def test_a_draft_that_is_wrong_costs_little(self) -> None:
        chosen, speed = self.run(Pace(), 2000, lambda n: 1 + 0.3 * n, lambda: False)
        assert speed > 0.98
        assert any(chosen[-300:]), "it is tried now and then"

    def test_nothing_is_drafted_where_it_costs_as_much_as_it_gives(self) -> None:
        chosen, speed = self.run(Pace(), 2000, lambda n: 1 + 1.2 * n, lambda: True)
        assert sum(map(bool, chosen)) < 40 and speed > 0.98

    @pytest.mark.parametrize("every", [2, 4])
    def test_what_is_right_in_part(self, every: int) -> None:
        order = cycle([True] * (every - 1) + [False])
        _, speed = self.run(Pace(), 1000, lambda n: 1.1 + 0.1 * n, lambda: next(order))
        best = max(
            sum((1 - 1 / every) ** i for i in range(n + 1)) / (1.1 + 0.1 * n) for n in LENGTHS
        )
        assert speed > 0.9 * best

    def test_it_comes_back_when_the_draft_gets_right(self) -> None:
        pace = Pace()
        self.run(pace, 600, lambda n: 1 + 0.3 * n, lambda: False)
        chosen, _ = self.run(pace, 600, lambda n: 1 + 0.1 * n, lambda: True)
        assert sum(map(bool, chosen[-200:])) > 150

    def test_a_draft_that_must_read_much_waits_until_it_is_paid_for(self) -> None:
        pace = Pace()
        self.run(pace, 40, lambda n: 1 + 0.3 * n, lambda: False)
        while not (length := pace.length()):
            pace.took(0, 1.0)
        pace.read(20.0)
        pace.judged(length, 0)
        pace.took(length, 1.3)
        pace.begin()
        assert [pace.length() for _ in range(400)] == [0] * 400
        assert pace.length() > 0 or any(pace.length() for _ in range(10))

    def test_another_answer_begins_with_a_trial(self) -> None:
        pace = Pace()
        self.run(pace, 200, lambda n: 1 + 0.3 * n, lambda: False)
        pace.begin()
        assert pace.length() > 0
