"""What one step of a batch computes, and when the engine gives a model another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.decode.decoder import Kind
from mlx_guarded_llm.params import SamplingParams
from tests.conftest import MakeModel

STEP = 128  # prompt tokens computed at once


@pytest.fixture
def engine() -> Iterator[Backend]:
    with Backend(isolation="thread") as backend:
        yield backend


def with_batch(
    folder: str, prompts: Sequence[int], use: Callable[[Any], Any], **options: Any
) -> Any:
    """On the MLX thread: `use` a batch into which prompts of that many tokens were put."""
    import mlx_lm

    from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
    from mlx_guarded_llm.engine.residency.prefix import PrefixCaches

    model, tokenizer, *_ = mlx_lm.load(folder)
    prefix = PrefixCaches(options.get("prefix_cache", 0)).open("m")
    batch = ContinuousBatch(model, tokenizer, prefix, max_active=16, prefill_step_size=STEP)
    for i, tokens in enumerate(prompts):
        put(batch, f"r{i}", tokens, options.get("boundaries", {}))
    return use(batch)


def put(batch: Any, name: str, tokens: int, boundaries: Mapping[int, Kind] | None = None) -> None:
    from mlx_guarded_llm.engine.decode.decoder import TokenSequence

    prompt = [5 + (i * 7 + len(name)) % 50 for i in range(tokens)]
    batch.insert(TokenSequence(name, prompt, SamplingParams(), 0, 40, boundaries=boundaries or {}))


def prefilled(updates: Sequence[Any], seen: dict[str, int]) -> int:
    """Prompt tokens that a step has computed. `seen` is kept from step to step."""
    from mlx_guarded_llm.engine.decode.decoder import Prefilled

    computed = 0
    for update in updates:
        if isinstance(update, Prefilled):
            computed += update.done - seen.get(update.request_id, 0)
            seen[update.request_id] = update.done
    return computed


def answers(updates: Sequence[Any]) -> set[str]:
    from mlx_guarded_llm.engine.decode.decoder import Token

    return {update.request_id for update in updates if isinstance(update, Token)}


def chunks(batch: Any, *, beside: bool = False) -> list[int]:
    """Prompt tokens of each step, until all prompts are done."""
    seen: dict[str, int] = {}
    sizes = []
    for _ in range(400):
        updates = batch.step(beside=beside)
        if size := prefilled(updates, seen):
            sizes.append(size)
        if len(answers(updates)) == len(batch):
            return sizes
    raise AssertionError("the prompts were never done")


class TestPrefillChunks:
    def test_a_lone_prompt_takes_whole_ones(self, engine: Backend, tiny: MakeModel) -> None:
        model = tiny()
        sizes = engine.run(lambda: with_batch(model, [3 * STEP + 1], chunks))
        assert sizes[:3] == [STEP] * 3

    def test_prompts_share_one(self, engine: Backend, tiny: MakeModel) -> None:
        model = tiny()
        sizes = engine.run(lambda: with_batch(model, [200, 200, 200, 200], chunks))
        # What each has for itself at the end is its last token.
        assert all(size <= STEP for size in sizes) and sum(sizes) == 800

    def test_it_is_a_quarter_while_another_model_waits(
        self, engine: Backend, tiny: MakeModel
    ) -> None:
        model = tiny()
        sizes = engine.run(
            lambda: with_batch(model, [300], lambda batch: chunks(batch, beside=True))
        )
        assert max(sizes) == STEP // 4

    def test_it_is_a_quarter_beside_a_row_that_decodes(
        self, engine: Backend, tiny: MakeModel
    ) -> None:
        def join(batch: Any) -> list[int]:
            while not answers(batch.step()):
                pass
            put(batch, "late", 300)
            return chunks(batch)

        model = tiny()
        assert max(engine.run(lambda: with_batch(model, [8], join))) == STEP // 4


class TestBegins:
    def test_from_the_end_of_the_prompt_to_the_first_token(
        self, engine: Backend, tiny: MakeModel
    ) -> None:
        def follow(batch: Any) -> list[tuple[bool, bool]]:
            seen = []
            for _ in range(8):
                answered = bool(answers(batch.step()))
                seen.append((bool(batch.begins), answered))
            return seen

        model = tiny()
        seen = engine.run(lambda: with_batch(model, [2 * STEP + 1], follow))
        first = next(i for i, (_, answered) in enumerate(seen) if answered)
        assert [begins for begins, _ in seen[:first]][-2:] == [True, True]
        assert not any(begins for begins, _ in seen[first:])
        assert not seen[0][0]

    def test_an_empty_batch_does_not(self, engine: Backend, tiny: MakeModel) -> None:
        model = tiny()
        assert not engine.run(lambda: with_batch(model, [], lambda batch: bool(batch.begins)))


class TestWhoIsSteppedFirst:
    """A newcomer's prompt, and not one more token of a long answer of another model."""

    @pytest.fixture
    def engine(self) -> Iterator[Backend]:
        with Backend(isolation="thread", load_wait=0, on_load_deadline="pause") as backend:
            backend.run(lambda: None)  # MLX is imported by now
            yield backend

    @pytest.fixture
    def done(self, engine: Backend, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the engine does: "load", "start", and models as they are stepped."""
        from mlx_guarded_llm.engine.engine import Engine
        from mlx_guarded_llm.engine.residency.residents import Residency, Resident

        done: list[str] = []
        load, start, step = Residency.load, Engine._start, Resident.step

        def watched_load(self: Any, name: str, *args: Any, **options: Any) -> Any:
            done.append("load")
            return load(self, name, *args, **options)

        def watched_start(self: Any, request_id: str) -> None:
            done.append("start")
            start(self, request_id)

        def watched_step(self: Any, *, beside: bool) -> Any:
            done.append(self.name)
            return step(self, beside=beside)

        monkeypatch.setattr(Residency, "load", watched_load)
        monkeypatch.setattr(Engine, "_start", watched_start)
        monkeypatch.setattr(Resident, "step", watched_step)
        return done

    def test_one_whose_model_was_loaded_for_it(
        self,
        engine: Backend,
        done: list[str],
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        long = engine.stream(a, "Hello", max_tokens=3000)
        next(long)
        monkeypatch.setattr("mlx_guarded_llm.engine.engine._GATHER", 60.0)
        next(engine.stream(b, "Hello", max_tokens=4))
        long.close()
        loaded = len(done) - done[::-1].index("load")
        assert done[loaded : loaded + 3] == ["start", b, b]

    def test_one_whose_model_was_there(
        self, engine: Backend, done: list[str], tiny: MakeModel
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        engine.generate(a, "Hello", max_tokens=4)
        engine.generate(b, "Hello", max_tokens=4)
        for first, second in ((a, b), (b, a)):
            long = engine.stream(first, "Hello", max_tokens=3000)
            next(long)
            next(engine.stream(second, "Hello", max_tokens=4))
            long.close()
            started = len(done) - done[::-1].index("start")
            assert done[started : started + 2] == [second, second]
            engine.generate(first, "Hello", max_tokens=2)  # the long one has left


class TestBoundaries:
    @pytest.mark.parametrize(("prefix_cache", "expected"), [(0, [100, 1]), (2**24, [40, 60, 1])])
    def test_where_caches_can_be_cut_only_what_others_share_is_a_step(
        self, engine: Backend, tiny: MakeModel, prefix_cache: int, expected: list[int]
    ) -> None:
        model = tiny()
        sizes = engine.run(
            lambda: with_batch(
                model,
                [101],
                chunks,
                boundaries={40: "system", 80: "user"},
                prefix_cache=prefix_cache,
            )
        )
        assert sizes == expected

    def test_what_is_kept_of_a_lone_prompt_stays_as_it_was(
        self, engine: Backend, tiny: MakeModel
    ) -> None:
        """The prompt goes on, on caches of its own."""

        def follow(batch: Any) -> list[tuple[int, int]]:
            kept: list[tuple[list[int], Any]] = []
            insert = batch._prefix.insert

            def watched(tokens: list[int], cache: Any, kind: str) -> None:
                kept.append((tokens, cache))
                insert(tokens, cache, kind)

            batch._prefix.insert = watched
            while len(batch):
                batch.step()
            return [(len(tokens), layer.offset) for tokens, cache in kept for layer in cache]

        model = tiny()
        held = engine.run(
            lambda: with_batch(model, [101], follow, boundaries={40: "system"}, prefix_cache=2**24)
        )
        assert {tokens for tokens, _ in held} == {40, 101 + 40}
        assert all(tokens == offset for tokens, offset in held)


class TestALoneRow:
    """Alone it has caches of one sequence; those of a batch as soon as another joins."""

    def ids(self, batch: Any, joins: Mapping[int, int], steps: list[bool]) -> dict[str, list[int]]:
        """The tokens of each answer, when further prompts join at these steps."""
        from mlx_guarded_llm.engine.decode.decoder import Token

        found: dict[str, list[int]] = {}
        at = 0
        while len(batch) or at <= max(joins, default=0):
            if at in joins:
                put(batch, f"late{at}", joins[at])
            for update in batch.step():
                if isinstance(update, Token):
                    found.setdefault(update.request_id, []).append(update.token)
            steps.append(
                batch._batch._prompt_batch._single or batch._batch._generation_batch._single
            )
            at += 1
        return found

    @pytest.mark.parametrize(
        "joins",
        [{}, {1: 300}, {2: 20}, {3: 300}, {8: 20}, {1: 200, 2: 20}, {60: 20}],
        ids=str,
    )
    def test_the_tokens_are_those_it_has_alone(
        self, engine: Backend, tiny: MakeModel, joins: dict[int, int]
    ) -> None:
        model = tiny()
        steps: list[bool] = []
        alone = engine.run(lambda: with_batch(model, [300], lambda b: self.ids(b, {}, [])))
        both = engine.run(lambda: with_batch(model, [300], lambda b: self.ids(b, joins, steps)))
        assert both["r0"] == alone["r0"]
        assert len(both) == 1 + len(joins) and all(len(ids) == 40 for ids in both.values())
        assert steps[0], "alone from its first chunk"
        assert all(steps[:-1]) or joins, "and to its end"

    def test_it_may_leave_in_the_middle_of_its_prompt(
        self, engine: Backend, tiny: MakeModel
    ) -> None:
        def leave(batch: Any) -> list[str]:
            batch.step()
            put(batch, "late", 20)
            batch.step()
            batch.remove("r0")
            return list(self.ids(batch, {}, []))

        model = tiny()
        assert engine.run(lambda: with_batch(model, [600], leave)) == ["late"]
