"""mlx-lm's continuous batch, with our sampling: the only module that knows its insides.

`BatchGenerator` changes between releases, so what is used of it is checked at import
(`_check`) and everything else of the engine sees the `Decoder` protocol only.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import (
    BatchGenerator,
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
)
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

from .arrays import lists
from .decoder import Job, Prefilled, Token, Update
from .prefix import PrefixCache
from .sampling import Picked, Row, Rows

# While somebody waits for the next token, a prefill chunk is this part of a full one: their
# answers halt that much shorter, and the prompt takes little longer.
_BESIDE = 4
_LEAST = 32  # tokens of a chunk


class _Ends(StopSequences):
    """The tokens that end an answer."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = frozenset(tokens)
        super().__init__([(token,) for token in self.tokens])


class _Loner:
    """A batch whose row, while it is the only one, has caches of one sequence.

    They need no padding mask and no offsets on the device, which is what makes a batch of
    one slower than no batch.
    """

    uids: Any
    prompt_cache: Any
    _alone = False

    def _part(self, fresh: Callable[[], list[Any]] | None = None) -> None:
        """Take such caches, if there is one row.

        Args:
            fresh: makes them, for a row that has nothing in its caches yet.
        """
        if len(self.uids) == 1 and not self._alone:
            if fresh is not None and all(cache.empty() for cache in self.prompt_cache):
                self.prompt_cache = fresh()
            else:
                self.prompt_cache = [cache.extract(0) for cache in self.prompt_cache]
            self._alone = True

    def _meet(self) -> None:
        """Take caches of a batch: other rows are about to join."""
        if self._alone:
            self.prompt_cache = [cache.merge([cache]) for cache in self.prompt_cache]
            self._alone = False


class _Generation(_Loner, GenerationBatch):
    """A generation batch that samples all its rows in one call.

    mlx-lm keeps one "sampler" for each row and hands them along as rows join and
    leave; here that slot holds the row's `Row`, so the line-up is always right.

    While a row has a grammar, the forward pass of the next step is begun at the end of
    this one (`_ahead`). A grammar needs the last token before it can say what may follow,
    so the device would stand still while this thread reads the token, hands it on, and
    builds the graph of the next pass. With a pass begun, all that happens beside it.
    """

    _rows: Rows | None = None
    # Logits of `_next_tokens`, begun early: the caches hold these tokens already.
    _ahead: mx.array | None = None
    # What mlx-lm keeps in these slots is another thing here; see above and `_step`.
    samplers: Any
    stop_sequences: Any
    _current_tokens: Any
    _current_logprobs: Any
    _next_tokens: Any
    _next_logprobs: Any

    def _step(self) -> tuple[list[int], list[Any]]:
        """Compute the next token of each row; return the ones computed before.

        With each token goes (`Picked`, row) where mlx-lm has log probabilities.
        """
        rows = self._line_up()
        inputs = self._current_tokens = self._next_tokens
        current: list[tuple[Picked, int]] = self._next_logprobs
        self._current_logprobs = current
        logits = self._forward(inputs) if self._ahead is None else self._ahead
        self._ahead = None
        if rows.constrained:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            logits = rows.constrain(logits, lists(inputs))
        picked = rows.pick(logits)
        self._next_tokens = picked.tokens
        self._next_logprobs = [(picked, i) for i in range(len(self.uids))]
        mx.async_eval(picked.arrays())  # type: ignore[no-untyped-call]
        mx.eval(inputs, [p.arrays() for p in {id(p): p for p, _ in current}.values()])
        tokens: list[int] = lists(inputs)
        for history, token in zip(self.tokens, tokens, strict=True):
            history.append(token)
        if rows.constrained and self._all_go_on(tokens):
            self._begin()
        return tokens, current

    def _line_up(self) -> Rows:
        """What is to be known of the rows that are here now."""
        if self._rows is None or self._rows.rows != self.samplers:
            self._rows = Rows(list(self.samplers))
        return self._rows

    def _forward(self, inputs: mx.array) -> mx.array:
        """Logits that follow on these tokens, with penalties."""
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        return self._line_up().penalise(logits, self.tokens, inputs)

    def _begin(self) -> None:
        """Begin the forward pass of the next step."""
        self._ahead = self._forward(self._next_tokens)
        mx.async_eval(self._ahead)  # type: ignore[no-untyped-call]

    def _all_go_on(self, tokens: list[int]) -> bool:
        """Whether no row ends with these: the caches of one that does are kept as they are."""
        return all(
            token not in ends.tokens and done + 1 < most
            for token, ends, done, most in zip(
                tokens, self.stop_sequences, self._num_tokens, self.max_tokens, strict=True
            )
        )

    def next(self) -> list[GenerationBatch.Response]:
        """One token of each row."""
        self._part()
        return super().next()

    def extend(self, batch: _Generation) -> None:
        """Let the rows of another batch join."""
        alone = batch._alone and not self.uids
        if not alone:
            self._meet()
            batch._meet()
        if self.uids and (self._ahead is None) != (batch._ahead is None):
            (self if self._ahead is None else batch)._begin()
        if self._ahead is not None and batch._ahead is not None:
            self._ahead = mx.concatenate([self._ahead, batch._ahead])
        elif batch._ahead is not None:
            self._ahead = batch._ahead
        super().extend(batch)  # type: ignore[no-untyped-call]
        self._alone = alone

    def filter(self, keep: list[int]) -> None:
        """Keep only these rows."""
        if self._alone and keep:
            return
        if self._ahead is not None:
            self._ahead = self._ahead[mx.array(keep)] if keep else None
        super().filter(keep)
        self._alone = False

    # Whether the caches of a finished row go to the prefix cache.
    keeps = True

    def extract_cache(self, idx: int) -> list[Any]:
        """The caches of a row that leaves."""
        if not self.keeps:
            return []
        return list(self.prompt_cache) if self._alone else super().extract_cache(idx)


class _Prompts(_Loner, PromptProcessingBatch):
    """A prompt batch whose rows go on in a `_Generation`."""

    samplers: Any

    def prompt(self, tokens: list[list[int]]) -> None:
        """Compute so many tokens of each prompt."""
        self._part(lambda: make_prompt_cache(self.model))
        super().prompt(tokens)

    def extend(self, batch: PromptProcessingBatch) -> None:
        """Let other prompts join."""
        self._meet()
        super().extend(batch)  # type: ignore[no-untyped-call]

    def filter(self, keep: list[int]) -> None:
        """Keep only these prompts."""
        if not (self._alone and keep):
            super().filter(keep)
            self._alone = False

    def extract_cache(self, idx: int) -> list[Any]:
        """Copies of the caches of a prompt, which goes on."""
        if self._alone:
            return [cache.merge([cache]).extract(0) for cache in self.prompt_cache]
        return super().extract_cache(idx)

    def split(self, indices: list[int]) -> PromptProcessingBatch:
        """Take rows out. mlx-lm copies every cache to do so; all rows need no copy."""
        if len(indices) < len(self.uids):
            rest: PromptProcessingBatch = super().split(indices)
            return rest
        rows = copy.copy(self)
        self._empty()
        return rows

    def generate(self, tokens: list[list[int]]) -> _Generation:
        if any(len(t) > 1 for t in tokens):
            self.prompt([t[:-1] for t in tokens])
        generation = _Generation(
            self.model,
            self.uids,
            mx.array([t[-1] for t in tokens]),
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
        )
        generation._alone = self._alone
        self._empty()
        return generation

    def _empty(self) -> None:
        self._alone = False
        self.uids, self.prompt_cache, self.tokens, self.samplers = [], [], [], []
        self.logits_processors, self.max_tokens, self.stop_sequences = [], [], []


class ContinuousBatch:
    """A `Decoder` in which requests join and leave between any two tokens.

    Args:
        model: an mlx-lm model whose caches can be merged.
        tokenizer: its tokenizer, for the tokens that end an answer.
        prefix: where KV caches are kept for prompts that begin alike.
        max_active: rows at most.
        prefill_step_size: prompt tokens computed at once, of all prompts together; a
            quarter of it between two decode steps.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prefix: PrefixCache,
        *,
        max_active: int,
        prefill_step_size: int,
    ) -> None:
        self._prefix = prefix
        self._prefill_step_size = prefill_step_size
        self._kept_kinds = _kept_kinds(model) if prefix.keeps else frozenset()
        self._stops = _Ends(tokenizer.eos_token_ids)
        self._jobs: dict[int, Job] = {}
        self._batch = BatchGenerator(
            model,
            completion_batch_size=max_active,
            prefill_batch_size=max_active,
            prefill_step_size=prefill_step_size,
            stream=mx.default_stream(mx.default_device()),
        )
        self._batch.close()  # it raised the wired limit, which is not its to set
        sampler = self._batch.sampler
        self._batch._prompt_batch = _Prompts.empty(model, sampler, prefill_step_size)
        self._batch._generation_batch = generation = _Generation.empty(model, sampler)
        generation.keeps = prefix.keeps

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def begins(self) -> bool:
        """See `Decoder.begins`. mlx-lm takes three steps from a prompt to its token."""
        prompts = self._batch._currently_processing
        return 0 in self._batch._generation_batch._num_tokens or any(
            len(segments) == 1 and len(segments[0]) == 1 for segments, *_ in prompts
        )

    def insert(self, job: Job) -> int:
        """Let a request join. Returns its prompt tokens found in the prefix cache."""
        cache, rest = self._prefix.fetch(job.prompt)
        found = len(job.prompt) - len(rest)
        kinds = self._kept_kinds
        job.boundaries = {at: kind for at, kind in job.boundaries.items() if kind in kinds}
        (uid,) = self._batch.insert_segments(
            segments=[_split(rest, (end - found for end in job.boundaries))],
            max_tokens=[job.max_tokens],
            caches=[cache] if cache is not None else None,
            all_tokens=[job.prompt[:found]],
            samplers=cast(Any, [Row.of(job)]),
            stop_sequences=[self._stops],
        )
        job.cached = found
        self._jobs[uid] = job
        return found

    def remove(self, request_id: str) -> None:
        """Let a request leave, finished or not. Unknown ones are ignored."""
        uids = [uid for uid, job in self._jobs.items() if job.request_id == request_id]
        if uids:
            self._batch.remove(uids)
            del self._jobs[uids[0]]

    def step(self, *, beside: bool = False) -> list[Update]:
        """One prefill chunk and one token for every row that is past its prompt."""
        self._batch.prefill_step_size = self._chunk(beside)
        prompts, tokens = self._batch.next()
        self._keep_boundaries(prompts)
        updates: list[Update] = []
        for r in prompts:
            job = self._jobs[r.uid]
            done, total = r.progress
            updates.append(Prefilled(job.request_id, job.cached + done, job.cached + total))
        for r in tokens:
            job = self._jobs[r.uid]
            picked, row = r.logprobs
            logprob, top = picked.read(row, job.params.top_logprobs)
            updates.append(Token(job.request_id, r.token, logprob, top, r.finish_reason))
            if r.finish_reason is not None:
                self._prefix.insert(r.all_tokens, r.prompt_cache, "assistant")
                del self._jobs[r.uid]
        return updates

    def _chunk(self, beside: bool) -> int:
        """Tokens of each prompt to compute in the next step, at most."""
        batch = self._batch
        prompts = len(batch._prompt_batch) + len(batch._unprocessed_sequences)
        size = self._prefill_step_size // max(1, min(prompts, batch.prefill_batch_size))
        if beside or len(batch._generation_batch):
            size //= _BESIDE
        return max(size, min(_LEAST, self._prefill_step_size))

    def _keep_boundaries(self, prompts: list[Any]) -> None:
        """Keep the caches of prompts that reached a place worth coming back to."""
        reached = {}
        for r in prompts:
            job = self._jobs[r.uid]
            kind = job.boundaries.get(job.cached + r.progress[0])
            if kind is not None and r.end_of_segment and not r.end_of_prompt:
                reached[r.uid] = kind
        for uid, (cache, tokens) in self._batch.extract_cache(list(reached)).items():
            self._prefix.insert(list(tokens), cache, reached[uid])


def _kept_kinds(model: Any) -> frozenset[str]:
    """The boundaries at which caches of this model are kept. Each costs a step of its own.

    Where caches can be cut, the next turn of a chat takes what is kept when the answer
    ends; only what others may share meanwhile is worth keeping before.
    """
    cuttable = can_trim_prompt_cache(make_prompt_cache(model))
    return frozenset({"system"} if cuttable else {"system", "user"})


def _split(tokens: list[int], boundaries: Iterable[int]) -> list[list[int]]:
    """Cut at the boundaries that lie inside."""
    cuts = [0, *sorted(b for b in boundaries if 0 < b < len(tokens)), len(tokens)]
    return [tokens[a:b] for a, b in pairwise(cuts)]


def _check() -> None:
    """Refuse an mlx-lm whose batch is not the one this module was written for."""
    expected: dict[Any, set[str]] = {
        BatchGenerator.insert_segments: {"segments", "caches", "all_tokens", "stop_sequences"},
        BatchGenerator.remove: {"uids"},
        PromptProcessingBatch.empty: {"model", "fallback_sampler", "prefill_step_size"},
        GenerationBatch.__init__: {"inputs", "prompt_cache", "tokens", "samplers", "max_tokens"},
    }
    for function, names in expected.items():
        missing = names - set(inspect.signature(function).parameters)
        if missing:
            raise ImportError(
                f"mlx-lm's {function.__qualname__} has no {', '.join(sorted(missing))}; "
                "install the mlx-lm that mlx-guarded-llm asks for."
            )


_check()
