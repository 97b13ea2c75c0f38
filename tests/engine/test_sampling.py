"""How tokens are picked, with MLX and without a model."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.params import SamplingParams

ROWS, VOCABULARY = 7, 60
PENALTIES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "penalty_window": 3},
    {"frequency_penalty": 0.4, "penalty_window": 100},
    {"repetition_penalty": 0.5, "presence_penalty": -1.0, "frequency_penalty": 0.2},
    {"logit_bias": {3: 5.0, 59: -100.0}},
    {"logit_bias": {0: 2.0}, "presence_penalty": 1.5, "penalty_window": 1},
]
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3},
    {"temperature": 0.8, "min_p": 0.2},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 2.0, "top_k": 60},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.1, "top_p": 0.7, "top_k": 9, "min_p": 0.05},
]


@pytest.fixture(scope="module")
def engine() -> Any:
    with Backend(isolation="thread") as backend:
        yield backend


def histories(dice: random.Random) -> list[list[int]]:
    """Tokens of each row, some of them several times; one row has but the latest."""
    lengths = [0, 1, 5, 12, 12, 40, 3]
    return [[dice.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def penalised(seed: int, steps: int) -> list[tuple[Any, Any]]:
    """For each token: logits as our arrays change them, and as mlx-lm's chains do."""
    import mlx.core as mx
    from mlx_lm.sample_utils import make_logits_processors

    from mlx_guarded_llm.engine.decode.penalties import Penalties

    dice = random.Random(seed)
    mx.random.seed(seed)
    past = histories(dice)
    params = [SamplingParams(**options) for options in PENALTIES]
    penalties = Penalties(params)
    both: list[tuple[Any, Any]] = []
    for _ in range(steps):
        logits = mx.random.normal((ROWS, VOCABULARY)) * 3
        latest = [dice.randrange(VOCABULARY) for _ in range(ROWS)]
        ours = penalties.apply(logits, past, mx.array(latest, dtype=mx.uint32))
        theirs = []
        for i, p in enumerate(params):
            past[i].append(latest[i])
            row = mx.array(logits[i : i + 1])
            window = p.penalty_window
            chain = make_logits_processors(
                dict(p.logit_bias) or None,
                p.repetition_penalty,
                window,
                p.presence_penalty or None,
                window,
                p.frequency_penalty or None,
                window,
            )
            for processor in chain:
                row = processor(mx.array(past[i]), row)
            theirs.append(row)
        both.append((ours.tolist(), mx.concatenate(theirs).tolist()))
    return both


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("window", [8, 10_000])
def test_penalties_of_all_rows_at_once_are_those_of_mlx_lm(
    engine: Backend, monkeypatch: pytest.MonkeyPatch, seed: int, window: int
) -> None:
    # So few, that the windows are laid out anew now and then.
    engine.run(lambda: None)  # MLX is imported there
    monkeypatch.setattr("mlx_guarded_llm.engine.decode.penalties._AHEAD", 5)
    monkeypatch.setitem(PENALTIES[1], "penalty_window", window)
    for ours, theirs in engine.run(lambda: penalised(seed, 23)):
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, abs=1e-4)


def test_random_numbers_are_those_of_splitmix64(engine: Backend) -> None:
    def numbers() -> Any:
        from mlx_guarded_llm.engine.decode.sampling import Row, randomness, uniforms

        rows = [
            Row(SamplingParams(), seed, index) for seed in (0, 7, 2**64 - 1) for index in (0, 5)
        ]
        return uniforms(randomness(rows)).tolist()

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    expected = [
        ((mix((mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 41) + 0.5) / 2**23
        for seed in (0, 7, 2**64 - 1)
        for index in (0, 5)
    ]
    assert engine.run(numbers) == expected


def picked(options: list[dict[str, Any]], seeds: list[int], draws: int) -> list[list[int]]:
    """Tokens of rows with these parameters, one list for each draw, of the same logits."""
    import mlx.core as mx

    from mlx_guarded_llm.engine.decode.sampling import Row, Rows

    mx.random.seed(7)
    logits = mx.random.normal((1, VOCABULARY)) * 2
    rows = [Row(SamplingParams(**o), seed) for o, seed in zip(options, seeds, strict=True)]
    line_up = Rows(rows)
    logits = mx.broadcast_to(logits, (len(rows), VOCABULARY))
    draw: Any = line_up.pick
    return [draw(logits).tokens.tolist() for _ in range(draws)]


def test_a_row_picks_alike_whoever_its_neighbours_are(engine: Backend) -> None:
    together = engine.run(lambda: picked(WAYS, list(range(7)), 40))
    for i, options in enumerate(WAYS):
        alone = engine.run(lambda o=options, i=i: picked([o], [i], 40))  # type: ignore[misc]
        assert [row[i] for row in together] == [row[0] for row in alone], options


def test_rows_of_every_order_keep_their_places(engine: Backend) -> None:
    order = [4, 0, 6, 2, 5, 1, 3]
    straight = engine.run(lambda: picked(WAYS, list(range(7)), 10))
    mixed = engine.run(lambda: picked([WAYS[i] for i in order], order, 10))
    for a, b in zip(straight, mixed, strict=True):
        assert [a[i] for i in order] == b


def allowed(options: dict[str, Any]) -> tuple[set[int], list[float]]:
    """The tokens that mlx-lm's filters leave, and the probability of each token."""
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    mx.random.seed(7)
    logits = mx.random.normal((1, VOCABULARY)) * 2
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    left = [logprobs]
    if "top_p" in options:
        left.append(apply_top_p(logprobs, options["top_p"]))
    if "top_k" in options and options["top_k"] < VOCABULARY:
        left.append(apply_top_k(logprobs, options["top_k"]))
    if "min_p" in options:
        left.append(apply_min_p(logprobs, options["min_p"]))
    keep = mx.stack(left).min(axis=0)[0]
    weights: Any = mx.exp(keep / options["temperature"])
    return {i for i, w in enumerate(weights.tolist()) if w > 0}, (weights / weights.sum()).tolist()


@pytest.mark.parametrize("options", WAYS[1:], ids=str)
def test_tokens_come_as_often_as_their_probabilities_say(
    engine: Backend, options: dict[str, Any]
) -> None:
    tokens, probabilities = engine.run(lambda: allowed(options))
    draws = engine.run(lambda: picked([options] * 40, list(range(40)), 50))
    counts = Counter(token for draw in draws for token in draw)
    total = sum(counts.values())
    assert set(counts) <= tokens
    # Four standard deviations of a binomial, for the likely ones; draws are fixed by seeds.
    for token, p in enumerate(probabilities):
        if p * total > 20:
            assert abs(counts[token] - p * total) < 4 * (total * p * (1 - p)) ** 0.5, token
