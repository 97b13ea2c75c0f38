"""Tokens per second with a draft against without, for one greedy answer at a time.

    python -m benchmarks.drafts [--shape llama-8b] [--tokens 160] [--rounds 5]

First, the gain as a function of the share of tokens that a draft gets right: a draft that costs
nothing knows the answer, and is wrong at random. Without `--shape` the model is SmolLM2 in
bfloat16, and there are real drafts through a backend as well: prompt lookup for a passage that is
to be repeated and for a story, and SmolLM2 in 4 bits. Both sides take turns for several rounds.
What is reported is the ratio of their paces: tokens after the first, by the seconds they took.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend
from mlx_guarded_llm.params import SamplingParams

from .shapes import SHAPES, chosen, device_name

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
PROMPT_TOKENS = 64
PASSAGE = (
    "The lighthouse at Lindau stands at the end of the western pier and is thirty-three metres "
    "high. It was built in the year 1856 together with the new harbour, and it is one of the few "
    "lighthouses in the world that have a clock in their front. Until 1991 a keeper lived there; "
    "today the light is lit by radio when a ship comes in. On the other pier sits a lion of stone, "
    "six metres high, which looks out over the lake."
)
STORY = "Tell me a long story about a fisherman and his daughter."
ALONE = "smollm2-135m-bf16"
REAL = {  # what drafts, and the prompt
    "prompt lookup, passage": ("prompt", f'Repeat this text word for word:\n\n"{PASSAGE}"'),
    "prompt lookup, story": ("prompt", STORY),
    "4-bit for bf16, story": ("smollm2-135m", STORY),
}


@dataclass(frozen=True)
class Run:
    """An answer, its tokens per second, and how many were drafted and accepted."""

    answer: object
    speed: float
    drafted: int
    accepted: int


Ask = Callable[[bool], Run]  # with a draft or without


class PartlyRight:
    """A draft that knows the answer, costs nothing, and gets this share of the tokens right."""

    def __init__(self, answer: Sequence[int], share: float) -> None:
        self._answer = answer
        self._share = share
        self._random = random.Random(0)
        self._history: list[int] = []

    def begin(self, history: list[int]) -> None:
        self._history = history

    def ready(self, chunk: int) -> bool:
        return True

    def propose(self, pending: Any, row: Any, most: int) -> Any:
        import mlx.core as mx

        start = len(self._history) + 1 - PROMPT_TOKENS
        tokens = self._answer[start : start + most]
        right = [t if self._random.random() < self._share else t ^ 1 for t in tokens]
        return mx.array(right) if right else None

    def settle(self, accepted: int) -> None: ...

    def end(self) -> None: ...


class Decoding:
    """A model in this process, and its batch. Everything on the thread that makes it."""

    def __init__(self, folder: str, tokens: int) -> None:
        import mlx_lm

        self._model, self._tokenizer, *_ = mlx_lm.load(folder)
        self._tokens = tokens
        self.answer, _ = self._decode(None)  # kernels are compiled as well

    def ask(self, share: float) -> Ask:
        """Answers with a draft that is so often right."""
        from mlx_guarded_llm.engine.decode.speculation import Speculation

        draft = PartlyRight(self.answer, share)
        speculation = Speculation(draft, limit=2**31, chunk=512)
        return lambda drafts: self._decode(speculation if drafts else None)[1]

    def _decode(self, speculation: Any) -> tuple[list[int], Run]:
        from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
        from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
        from mlx_guarded_llm.engine.residency.prefix import PrefixCaches

        batch = ContinuousBatch(
            self._model,
            self._tokenizer,
            PrefixCaches(0).open("m"),
            max_active=8,
            prefill_step_size=512,
            speculation=speculation,
        )
        batch._stops = type(batch._stops)(())  # random weights may end an answer at any token
        prompt = [5 + (i * 7) % 200 for i in range(PROMPT_TOKENS)]
        sequence = TokenSequence("r", prompt, SamplingParams(), 0, self._tokens)
        batch.insert(sequence)
        tokens: list[int] = []
        began = 0.0
        while len(batch):
            tokens += [u.token for u in batch.step() if isinstance(u, Token)]
            began = began or (time.perf_counter() if tokens else 0.0)
        seconds = time.perf_counter() - began
        speed = (len(tokens) - 1) / seconds
        return tokens, Run(tokens, speed, sequence.drafted, sequence.accepted)


def through(backend: Backend, model: str, draft: str, prompt: str, tokens: int) -> Ask:
    """Answers of a backend to a prompt."""

    def ask(drafts: bool) -> Run:
        name = f"{model}[draft={draft}]" if drafts else model
        result = backend.generate(name, prompt, max_tokens=tokens)
        usage = result.usage
        speed = (usage.completion_tokens - 1) / result.guard.decode
        return Run(result.text, speed, usage.drafted_tokens, usage.accepted_tokens)

    return ask


def measure(name: str, ask: Ask, rounds: int) -> dict[str, Any]:
    """Both sides in turn, and a line that tells of it."""
    ask(True)  # what it takes the first time does not count
    alone: list[Run] = []
    drafted: list[Run] = []
    for round_ in range(rounds):
        for drafts in (False, True) if round_ % 2 == 0 else (True, False):
            (drafted if drafts else alone).append(ask(drafts))
    ratios = [b.speed / a.speed for a, b in zip(alone, drafted, strict=True)]
    paces = [statistics.median(run.speed for run in side) for side in (alone, drafted)]
    accepted, proposed = sum(r.accepted for r in drafted), sum(r.drafted for r in drafted)
    same = all(run.answer == alone[0].answer for run in (*alone, *drafted))
    print(
        f"{name:24} {paces[0]:9.1f} {paces[1]:9.1f} {statistics.median(ratios):7.2f}  "
        f"{min(ratios):.2f} to {max(ratios):.2f}  {accepted} of {proposed} accepted, "
        f"{'the same' if same else 'ANOTHER'} text",
        flush=True,
    )
    return {"case": name, "alone": paces[0], "drafted": paces[1], "ratios": ratios, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with chosen(args.shape, ALONE) as (model, folder, catalog):
        print(f"{args.shape or model} on {device_name()}, answers of {args.tokens} tokens")
        print(f"{'draft':24} {'alone':>9} {'drafted':>9} {'ratio':>7}  spread")
        decoding = Decoding(folder, args.tokens)
        rows = [measure(f"{share:.0%} right", decoding.ask(share), args.rounds) for share in SHARES]
        del decoding
        if args.shape is None:
            with Backend(prefix_cache=0, catalog=catalog) as backend:
                for name, (draft, prompt) in REAL.items():
                    ask = through(backend, model, draft, prompt, args.tokens)
                    rows.append(measure(name, ask, args.rounds))
    if args.json:
        args.json.write_text(json.dumps({"device": device_name(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
