"""The process of raw mlx-lm: reads commands as JSON lines, answers each with one line.

A script of its own, started by `benchmarks.raw`. All times are `time.monotonic()`, which
the processes of a machine share. They are taken at each token and sent when an answer is
over, so that nothing but mlx-lm works meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlx_guarded_llm.engine.residency.folding import fold_rows

PENALTY_WINDOW = 64  # recent tokens that count, as with us


class Worker:
    """Models by name, and what is asked of them. Each method is a command."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[Any, Any]] = {}
        self._prefixes: LRUPromptCache | None = None
        self._folded = False

    def hello(self, *, prefix_cache: bool, folded: bool) -> dict[str, Any]:
        """Begin. With `prefix_cache`, the KV caches of single answers are kept."""
        self._folded = folded
        self._prefixes = LRUPromptCache() if prefix_cache else None
        return {"device": str(mx.device_info().get("device_name"))}

    def load(self, *, model: str, folder: str) -> dict[str, Any]:
        """Load a model; at the end nothing of it is in flight any more."""
        began = time.monotonic()
        loaded = load(folder)
        if self._folded:
            fold_rows(loaded[0])
        self._models[model] = (loaded[0], loaded[1])
        mx.eval(loaded[0])
        mx.synchronize()
        return {"seconds": time.monotonic() - began}

    def unload(self, *, model: str) -> dict[str, Any]:
        """Drop a model, and give its memory back."""
        del self._models[model]
        if self._prefixes is not None:
            self._prefixes = LRUPromptCache()
        mx.clear_cache()
        return {}

    def ask(self, *, ask: Mapping[str, Any]) -> dict[str, Any]:
        """One answer of `stream_generate`."""
        model, tokenizer = self._models[ask["model"]]
        prompt = _encode(tokenizer, ask["messages"])
        cache, rest = self._prefix(ask["model"], model, prompt)
        tokens: list[int] = []
        texts: list[str] = []
        pieces: list[float] = []
        _seed(ask)
        for response in stream_generate(
            model,
            tokenizer,
            rest,
            max_tokens=ask["max_tokens"],
            prompt_cache=cache,
            sampler=_sampler(ask),
            logits_processors=_processors(ask),
        ):
            if response.text:
                pieces.append(time.monotonic())
                texts.append(response.text)
            tokens.append(response.token)
        ended = time.monotonic()
        if self._prefixes is not None:
            held = (prompt + tokens)[: cache[0].offset]
            self._prefixes.insert_cache(ask["model"], held, cache)
        return {"pieces": pieces, "ended": ended, "tokens": len(tokens), "text": "".join(texts)}

    def batch(self, *, asks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All answers of one `BatchGenerator`; a row is inserted `after` that many seconds."""
        model, tokenizer = self._models[asks[0]["model"]]
        prompts = [_encode(tokenizer, ask["messages"]) for ask in asks]
        samplers = _shared_samplers(asks)
        tokens: list[list[int]] = [[] for _ in asks]
        pieces: list[list[float]] = [[] for _ in asks]
        ends = [[token] for token in tokenizer.eos_token_ids]
        batch = BatchGenerator(model, stop_tokens=ends, completion_batch_size=len(asks))
        waiting = sorted(range(len(asks)), key=lambda i: asks[i]["after"])
        places: dict[int, int] = {}
        running = 0
        _seed(asks[0])
        start = time.monotonic()
        while waiting or running:
            if waiting and not running:
                time.sleep(max(0.0, start + asks[waiting[0]]["after"] - time.monotonic()))
            now = time.monotonic()
            due = [i for i in waiting if start + asks[i]["after"] <= now]
            if due:
                waiting = waiting[len(due) :]
                running += len(due)
                uids = batch.insert(
                    [prompts[i] for i in due],
                    max_tokens=[asks[i]["max_tokens"] for i in due],
                    samplers=[samplers[i] for i in due],
                    logits_processors=[_processors(asks[i]) for i in due],
                )
                places.update(zip(uids, due, strict=True))
            responses = batch.next()[1]
            now = time.monotonic()
            for response in responses:
                tokens[places[response.uid]].append(response.token)
                pieces[places[response.uid]].append(now)
                running -= response.finish_reason is not None
        batch.close()
        answers = [
            {
                "began": start + asks[i]["after"],
                "pieces": pieces[i],
                "ended": pieces[i][-1],
                "tokens": len(tokens[i]),
                "text": tokenizer.decode(tokens[i]),
            }
            for i in range(len(asks))
        ]
        return {"answers": answers}

    def _prefix(self, name: str, model: Any, prompt: list[int]) -> tuple[Any, list[int]]:
        """A KV cache that holds the beginning of a prompt, and the rest of the prompt."""
        if self._prefixes is None:
            return None, prompt
        cache, rest = self._prefixes.fetch_nearest_cache(name, prompt)
        if cache is None or not rest:
            return make_prompt_cache(model), prompt
        return cache, rest


def _encode(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    prompt: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    return prompt


def _seed(ask: Mapping[str, Any]) -> None:
    """A batch has one random state; mlx-lm knows no seed for each row."""
    if ask["options"].get("seed") is not None:
        mx.random.seed(ask["options"]["seed"])


def _sampler(ask: Mapping[str, Any]) -> Any:
    options = ask["options"]
    if not options.get("temperature"):
        return None  # mlx-lm's own greedy one
    return make_sampler(
        temp=options["temperature"],
        top_p=options.get("top_p", 0.0),
        min_p=options.get("min_p", 0.0),
        top_k=options.get("top_k", 0),
    )


def _shared_samplers(asks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """One for each row; rows of the same options share it, which samples them in one call."""
    made: dict[str, Any] = {}
    keys = [
        repr([ask["options"].get(name) for name in ("temperature", "top_p", "min_p", "top_k")])
        for ask in asks
    ]
    for key, ask in zip(keys, asks, strict=True):
        if key not in made:
            made[key] = _sampler(ask)
    return [made[key] for key in keys]


def _processors(ask: Mapping[str, Any]) -> list[Any]:
    options = ask["options"]
    return list(
        make_logits_processors(
            repetition_penalty=options.get("repetition_penalty"),
            repetition_context_size=PENALTY_WINDOW,
            presence_penalty=options.get("presence_penalty"),
            presence_context_size=PENALTY_WINDOW,
            frequency_penalty=options.get("frequency_penalty"),
            frequency_context_size=PENALTY_WINDOW,
        )
    )


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
