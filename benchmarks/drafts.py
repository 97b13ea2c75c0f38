"""Tokens per second with a draft against without, for one greedy answer at a time.

    python -m benchmarks.drafts --shape mini [--tokens 160] [--rounds 5] [--cpu-seconds]
    python -m benchmarks.drafts                 SmolLM2 in bfloat16

With a shape: the gain as a function of the share of tokens that a draft gets right. The draft costs
nothing, knows the answer, and is wrong at random. What is not quantised is in float32: random
weights in bfloat16 make several tokens equally likely, and which one a pass chooses then depends on
how many tokens it computes, so the answer would not be the one that the draft knows.

With SmolLM2: prompt lookup for a passage that is to be repeated, and for a story; and SmolLM2 in 4
bits as the draft.

Both sides take turns for several rounds, in this process. What is reported is the ratio of their
paces: tokens after the first, by the seconds they took. `--cpu-seconds` counts those of this
process, for a CPU that others use as well.
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

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.params import SamplingParams

from .shapes import SHAPES, chosen, device_name

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
PASSAGE = (
    "The lighthouse at Lindau stands at the end of the western pier and is thirty-three metres "
    "high. It was built in the year 1856 together with the new harbour, and it is one of the few "
    "lighthouses in the world that have a clock in their front."
)
QUOTE = f'Repeat this text word for word:\n\n"{PASSAGE}"'
STORY = "Tell me a long story about a fisherman and his daughter."
MODEL, SMALLER = "smollm2-135m-bf16", "smollm2-135m"


@dataclass(frozen=True)
class Run:
    """An answer, its tokens per second, and how many were drafted and accepted."""

    answer: list[int]
    speed: float
    drafted: int
    accepted: int


class PartlyRight:
    """A draft that knows the answer, costs nothing, and gets this share of the tokens right."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], share: float) -> None:
        self._all = [*prompt, *answer]
        self._share = share
        self._random = random.Random(0)
        self._history: list[int] = []

    def begin(self, history: list[int]) -> None:
        self._history = history

    def ready(self, chunk: int) -> bool:
        return True

    def propose(self, pending: Any, row: Any, most: int) -> Any:
        import mlx.core as mx

        start = len(self._history) + 1
        tokens = self._all[start : start + most]
        right = [t if self._random.random() < self._share else t ^ 1 for t in tokens]
        return mx.array(right) if right else None

    def settle(self, accepted: int) -> None: ...

    def end(self) -> None: ...


class Decoding:
    """A model in this process. Everything on the thread that makes it.

    Args:
        folder: of the model.
        tokens: of an answer.
        clock: seconds.
    """

    def __init__(self, folder: str, tokens: int, clock: Callable[[], float]) -> None:
        import mlx_lm

        self._model, self.tokenizer, *_ = mlx_lm.load(folder)
        self._tokens = tokens
        self._clock = clock

    def speculation(self, draft: Any) -> Any:
        from mlx_guarded_llm.engine.decode.speculation import Speculation

        return Speculation(draft, limit=2**31, chunk=512, clock=self._clock)

    def run(self, prompt: list[int], speculation: Any) -> Run:
        """A greedy answer, as long as it may be."""
        from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
        from mlx_guarded_llm.engine.decode.decoder import Token, TokenSequence
        from mlx_guarded_llm.engine.residency.prefix import PrefixCaches

        batch = ContinuousBatch(
            self._model,
            self.tokenizer,
            PrefixCaches(0).open("m"),
            max_active=8,
            prefill_step_size=512,
            speculation=speculation,
        )
        batch._stops = type(batch._stops)(())
        sequence = TokenSequence("r", list(prompt), SamplingParams(), 0, self._tokens)
        batch.insert(sequence)
        answer: list[int] = []
        began = 0.0
        while len(batch):
            answer += [u.token for u in batch.step() if isinstance(u, Token)]
            began = began or (self._clock() if answer else 0.0)
        speed = (len(answer) - 1) / (self._clock() - began)
        return Run(answer, speed, sequence.drafted, sequence.accepted)

    def compare(self, name: str, prompt: list[int], draft: Any, rounds: int) -> dict[str, Any]:
        """Both sides in turn, and a line that tells of it."""
        speculation = self.speculation(draft)
        self.run(prompt, speculation)  # what it takes the first time does not count
        alone: list[Run] = []
        drafted: list[Run] = []
        for round_ in range(rounds):
            for drafts in (False, True) if round_ % 2 == 0 else (True, False):
                side = drafted if drafts else alone
                side.append(self.run(prompt, speculation if drafts else None))
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
        return {"case": name, "alone": paces[0], "drafted": paces[1], "ratios": ratios}


def shares(decoding: Decoding, rounds: int) -> list[dict[str, Any]]:
    """The gain as a function of the share of tokens that are right."""
    prompt = [5 + (i * 7) % 200 for i in range(64)]
    answer = decoding.run(prompt, None).answer
    return [
        decoding.compare(f"{share:.0%} right", prompt, PartlyRight(prompt, answer, share), rounds)
        for share in SHARES
    ]


def real(decoding: Decoding, catalog: Catalog, rounds: int) -> list[dict[str, Any]]:
    """Prompt lookup, and the same model in 4 bits."""
    import mlx_lm

    from mlx_guarded_llm.engine.decode.drafts import DraftModel, PromptLookup
    from mlx_guarded_llm.engine.residency.prefix import PrefixCaches

    quote, story = (
        decoding.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        for text in (QUOTE, STORY)
    )
    smaller = mlx_lm.load(str(catalog.ensure(catalog.resolve(SMALLER)).path))[0]
    draft = DraftModel(smaller, PrefixCaches(0).open("d"), 0)
    return [
        decoding.compare("prompt lookup, passage", quote, PromptLookup(), rounds),
        decoding.compare("prompt lookup, story", story, PromptLookup(), rounds),
        decoding.compare("4 bits for bf16, story", story, draft, rounds),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-seconds", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    with chosen(args.shape, MODEL, dtype="float32") as (model, folder, catalog):
        print(f"{args.shape or model} on {device_name()}, answers of {args.tokens} tokens")
        print(f"{'draft':24} {'alone':>9} {'drafted':>9} {'ratio':>7}  spread")
        decoding = Decoding(folder, args.tokens, clock)
        rounds = args.rounds
        rows = shares(decoding, rounds) if args.shape else real(decoding, catalog, rounds)
    if args.json:
        args.json.write_text(json.dumps({"device": device_name(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
