"""Passages and queries are embedded while a chat model answers."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mlx_guarded_llm import Catalog, GuardedLLMError
from mlx_guarded_llm.testing.tiny_embedder import make_tiny_embedder

from ..harness import Case, Figure, whole
from ..ours import Ours
from ..pace import Numbers, story, tokens_lasting
from ..side import Heard, Setup, Side

EMBEDDER = "all-minilm-l6-v2"
PASSAGES = {"gpu": 1000, "cpu": 40}
QUERIES = 20
WORDS = 24  # of a passage; about as many tokens
SEED = 3
WORD_LIST = (
    "the keeper of a lighthouse trims lamp and looks at sea fog ship horn rocks below boat "
    "late oil flour runs low wind storm harbour night morning log book line name hour coast"
)


def case(args: argparse.Namespace) -> Case:
    passages = args.passages or PASSAGES["gpu" if args.gpu else "cpu"]
    return _Rag(passages).case()


class _Rag:
    """An index is built and asked while an answer streams."""

    def __init__(self, passages: int) -> None:
        draw = random.Random(SEED)
        self._passages = [_text(draw, WORDS) for _ in range(passages)]
        self._queries = [_text(draw, WORDS // 2) for _ in range(QUERIES)]
        self._numbers = Numbers()
        self._tokens = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._embedder = ""

    def case(self) -> Case:
        return Case(
            name="rag",
            what=f"{len(self._passages)} passages are embedded in one call and {QUERIES} queries "
            "one after the other, while a chat model streams an answer that takes as long: the "
            "makespan by the sum of the two done alone.",
            unit="of the sum",
            better="lower",
            setup=lambda models: Setup(models={"large": models["large"]}),
            measure=self._measure,
            warm_up=self._warm_up,
            needs_raw=False,
            peers=False,
            aim="at most 1.1",
        )

    def _warm_up(self, side: Side) -> None:
        assert isinstance(side, Ours)
        self._embedder = self._find(side)
        self._embed(side)
        embedding, _ = self._embed(side)
        self._tokens = tokens_lasting(side, self._numbers, embedding)

    def _find(self, side: Ours) -> str:
        """MiniLM, or where it cannot be had a BERT of its size with random weights."""
        try:
            catalog = Catalog()
            catalog.ensure(catalog.resolve(EMBEDDER))
            return EMBEDDER
        except GuardedLLMError as error:
            side.notes.append(f"random weights in place of {EMBEDDER}: {error}")
            self._scratch = tempfile.TemporaryDirectory(prefix="embedder-")
            folder = Path(self._scratch.name) / "embedder"
            return str(make_tiny_embedder(folder, hidden_size=384, layers=6, context_window=512))

    def _measure(self, side: Side) -> Figure:
        assert isinstance(side, Ours)
        embedding, quiet = self._embed(side)
        chat = self._chat(side)
        heard: list[Heard] = []
        beside: list[float] = []
        together = _seconds(
            lambda: heard.append(self._chat(side)), lambda: beside.extend(self._embed(side))
        )
        return Figure(
            value=together / (embedding + chat.seconds),
            details={
                "together, s": together,
                "embedding alone, s": embedding,
                "chat alone, s": chat.seconds,
                "embedding beside the chat, s": beside[0],
                "chat beside the embedding, s": heard[0].seconds,
                "worst query alone, s": quiet,
                "worst query beside the chat, s": beside[1],
                "worst gap of the chat, s": heard[0].worst_gap,
            },
        )

    def _chat(self, side: Ours) -> Heard:
        return whole([side.ask(story(self._numbers.take(side), self._tokens))])[0]

    def _embed(self, side: Ours) -> tuple[float, float]:
        """Embed all. Returns the seconds of it, and of the query that waited longest."""
        waits: list[float] = []

        def embed(texts: list[str]) -> None:
            side.backend.embed(self._embedder, texts)

        def queries() -> None:
            waits.extend(_seconds(partial(embed, [query])) for query in self._queries)

        return _seconds(partial(embed, self._passages), queries), max(waits)


def _seconds(*calls: Callable[[], object]) -> float:
    """How long these take, all at once. Raises what one of them raised."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()
    return time.monotonic() - began


def _text(draw: random.Random, words: int) -> str:
    """Words at random, half as many to one and a half times as many."""
    return " ".join(draw.choices(WORD_LIST.split(), k=draw.randint(words // 2, words * 3 // 2)))
