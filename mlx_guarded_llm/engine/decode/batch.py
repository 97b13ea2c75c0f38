"""mlx-lm's continuous batch, with our sampling. The only module that knows its internals.

`BatchGenerator` changes between releases. So the parts that are used are checked at import
(`_check`), and the rest of the engine sees only the `Decoder` protocol.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import (
    BatchGenerator,
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
)
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ..residency.device_memory import clear_cache, wired_limit_kept
from ..residency.keepable import kept_kinds
from ..residency.prefix import PrefixCache
from .conversion import lists
from .decoder import BESIDE, Prefilled, Token, TokenSequence, Update
from .sampling import Picked, Row, Rows
from .speculation import Speculation

_LEAST = 32  # tokens, the smallest chunk
_CLEARED = 512  # passes after which MLX's unused buffers are freed, as mlx-lm does


class _Ends(StopSequences):
    """The tokens that end an answer."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = frozenset(tokens)
        super().__init__([(token,) for token in self.tokens])


class _SingleRow:
    """A batch that uses the caches of a single sequence while it has only one row.

    Those need no padding mask and no offsets on the device, which make a batch of one row slower
    than plain decoding.
    """

    uids: Any
    prompt_cache: Any
    _single = False

    def _unbatch(self, fresh: Callable[[], list[Any]] | None = None) -> None:
        """Switch to the caches of a single sequence, if there is one row.

        Args:
            fresh: makes such caches, for a row whose caches are still empty.
        """
        if len(self.uids) == 1 and not self._single:
            if fresh is not None and all(cache.empty() for cache in self.prompt_cache):
                self.prompt_cache = fresh()
            else:
                self.prompt_cache = [cache.extract(0) for cache in self.prompt_cache]
            self._single = True

    def _rebatch(self) -> None:
        """Switch to the caches of a batch, since other rows are about to join."""
        if self._single:
            self.prompt_cache = [cache.merge([cache]) for cache in self.prompt_cache]
            self._single = False


class _Generation(_SingleRow, GenerationBatch):
    """A generation batch that samples all its rows in one call.

    mlx-lm keeps one "sampler" for each row, and moves it as rows join and leave. Here that slot
    holds the row's `Row`, so the rows are always in the right order.

    While a row has a grammar, the forward pass of the next step is started at the end of this one
    (`_ahead`). A grammar needs the last token before it can say what may follow, so the device
    would be idle while this thread reads the token, passes it on, and builds the graph of the next
    pass. With the pass already started, all of that happens in parallel.
    """

    _rows: Rows | None = None
    # Logits of `_next_tokens`, started early: the caches contain these tokens already.
    _ahead: mx.array | None = None
    # These slots hold other things here than in mlx-lm; see above and `_step`.
    samplers: Any
    stop_sequences: Any
    _current_tokens: Any
    _current_logprobs: Any
    _next_tokens: Any
    _next_logprobs: Any

    def _step(self) -> tuple[list[int], list[Any]]:
        """Compute the next token of each row; return those computed before.

        Where mlx-lm has log probabilities, each token comes with (`Picked`, row).
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
        """The parameters of the rows that are in the batch now."""
        if self._rows is None or self._rows.rows != self.samplers:
            self._rows = Rows(list(self.samplers))
        return self._rows

    def _forward(self, inputs: mx.array) -> mx.array:
        """The logits after these tokens, with penalties."""
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        return self._line_up().penalise(logits, self.tokens, inputs)

    def _begin(self) -> None:
        """Start the forward pass of the next step."""
        self._ahead = self._forward(self._next_tokens)
        mx.async_eval(self._ahead)  # type: ignore[no-untyped-call]

    def _all_go_on(self, tokens: list[int]) -> bool:
        """Whether no row ends with these tokens; the caches of one that does must not change."""
        return all(
            token not in ends.tokens and done + 1 < most
            for token, ends, done, most in zip(
                tokens, self.stop_sequences, self._num_tokens, self.max_tokens, strict=True
            )
        )

    def next(self) -> list[GenerationBatch.Response]:
        """One token of each row."""
        self._unbatch()
        return super().next()

    @property
    def drafts(self) -> bool:
        """Whether a draft may be verified: there is one row, and the first token is out."""
        return len(self.uids) == 1 and self._num_tokens[0] > 0 and self._ahead is None

    @property
    def history(self) -> list[int]:
        """The tokens of the only row which its caches hold."""
        tokens: list[int] = self.tokens[0]
        return tokens

    @property
    def row(self) -> Row:
        """The sampling state of the only row."""
        row: Row = self.samplers[0]
        return row

    def pending(self) -> mx.array | None:
        """(1,) the next token of the only row, once it is computed; None if the row ends there."""
        return self._next_tokens if self._all_go_on(lists(self._next_tokens)) else None

    @property
    def left(self) -> int:
        """How many more tokens the only row may have after the pending one."""
        return int(self.max_tokens[0] - self._num_tokens[0] - 1)

    def verify(self, drafted: mx.array) -> list[GenerationBatch.Response]:
        """The pending token of the only row, and the drafted ones that the model chooses too.

        One pass computes the logits after each of them. Every position gets the state that it
        would have alone, so the tokens are those of single steps.

        Args:
            drafted: (tokens,) what may follow the pending token.
        """
        self._unbatch()
        row, history, most = self.row, self.history, len(drafted)
        inputs = mx.concatenate([self._next_tokens, drafted.astype(self._next_tokens.dtype)])
        logits = self.model(inputs[None], cache=self.prompt_cache)[0]
        rows = Rows([replace(row, index=row.index + i) for i in range(most + 1)])
        if rows.penalised:
            fed = lists(inputs)
            logits = rows.penalise(logits, [history + fed[:i] for i in range(most + 1)], inputs)
        picked = rows.pick(logits)
        (before,) = self._next_logprobs
        mx.eval(inputs, picked.arrays(), before[0].arrays())
        fed, own = lists(inputs), lists(picked.tokens)
        chosen = [before, *((picked, i) for i in range(most))]
        responses = []
        for i, token in enumerate(fed):
            if i > 0 and token != own[i - 1]:
                break
            self._num_tokens[0] += 1
            ends = token in self.stop_sequences[0].tokens
            reason = "length" if self._num_tokens[0] >= self.max_tokens[0] else None
            reason = "stop" if ends else reason
            responses.append(self.Response(self.uids[0], token, chosen[i], reason, None, None))
            if reason is not None:
                break
        count = len(responses)
        trim_prompt_cache(self.prompt_cache, most + 1 - count)
        history.extend(fed[:count])
        row.index += count
        self._rows = None  # it was made for the index before
        self._next_tokens = picked.tokens[count - 1 : count]
        self._next_logprobs = [(picked, count - 1)]
        last = responses[-1]
        if last.finish_reason is not None:
            last.prompt_cache, last.all_tokens = self.extract_cache(0), history
            self.filter([])
        return responses

    def extend(self, batch: _Generation) -> None:
        """Add the rows of another batch."""
        single = batch._single and not self.uids
        if not single:
            self._rebatch()
            batch._rebatch()
        if self.uids and (self._ahead is None) != (batch._ahead is None):
            (self if self._ahead is None else batch)._begin()
        if self._ahead is not None and batch._ahead is not None:
            self._ahead = mx.concatenate([self._ahead, batch._ahead])
        elif batch._ahead is not None:
            self._ahead = batch._ahead
        super().extend(batch)  # type: ignore[no-untyped-call]
        self._single = single

    def filter(self, keep: list[int]) -> None:
        """Keep only these rows."""
        if self._single and keep:
            return
        if self._ahead is not None:
            self._ahead = self._ahead[mx.array(keep)] if keep else None
        super().filter(keep)
        self._single = False

    # Whether the caches of a finished row are kept in the prefix cache.
    keeps = True

    def extract_cache(self, idx: int) -> list[Any]:
        """The caches of a row that is leaving, if they are to be kept.

        With a pass started early they hold a token more than the row has, so they are of no use.
        """
        if not self.keeps or self._ahead is not None:
            return []
        return list(self.prompt_cache) if self._single else super().extract_cache(idx)


class _Prompts(_SingleRow, PromptProcessingBatch):
    """A batch of prompts whose rows continue in a `_Generation`."""

    samplers: Any

    def prompt(self, tokens: list[list[int]]) -> None:
        """Compute these tokens of each prompt."""
        self._unbatch(lambda: make_prompt_cache(self.model))
        super().prompt(tokens)

    def extend(self, batch: PromptProcessingBatch) -> None:
        """Add other prompts."""
        single = getattr(batch, "_single", False)
        if not single:
            self._rebatch()
        super().extend(batch)  # type: ignore[no-untyped-call]
        self._single = single

    def filter(self, keep: list[int]) -> None:
        """Keep only these prompts."""
        if not (self._single and keep):
            super().filter(keep)
            self._single = False

    def extract_cache(self, idx: int) -> list[Any]:
        """Copies of the caches of a prompt that is still being computed."""
        return copy.deepcopy(self.prompt_cache) if self._single else super().extract_cache(idx)

    def split(self, indices: list[int]) -> PromptProcessingBatch:
        """Take rows out. mlx-lm copies every cache for that, which is not needed for all rows."""
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
        generation._single = self._single
        self._empty()
        return generation

    def _empty(self) -> None:
        self._single = False
        self.uids, self.prompt_cache, self.tokens, self.samplers = [], [], [], []
        self.logits_processors, self.max_tokens, self.stop_sequences = [], [], []


class _Generator(BatchGenerator):
    """A batch generator that leaves the caches of a prompt that is alone as they are.

    mlx-lm makes caches of a batch from them, and each of these is a copy.
    """

    def _make_batch(self, n: int) -> PromptProcessingBatch:
        alone = n == 1 and not self._prompt_batch.uids
        waiting = self._unprocessed_sequences
        caches = waiting[0][3]
        if alone:
            waiting[0] = (*waiting[0][:3], [], *waiting[0][4:])
        batch: Any = super()._make_batch(n)
        if alone:
            batch.prompt_cache, batch._single = caches, True
        return cast(PromptProcessingBatch, batch)


class ContinuousBatch:
    """A `Decoder` in which requests join and leave between any two tokens.

    Args:
        model: an mlx-lm model whose caches can be merged.
        tokenizer: of the model, for the tokens that end an answer.
        prefix: keeps KV caches for prompts with a common beginning.
        max_active: the most rows.
        prefill_step_size: prompt tokens computed at once, over all prompts; a quarter of it
            between two decode steps.
        speculation: drafts tokens for a request that is alone; None for no drafts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prefix: PrefixCache,
        *,
        max_active: int,
        prefill_step_size: int,
        speculation: Speculation | None = None,
    ) -> None:
        self._prefix = prefix
        self._speculation = speculation
        self._verified = 0  # passes
        self._prefill_step_size = prefill_step_size
        self._kept_kinds = kept_kinds(model) if prefix.keeps else frozenset()
        self._stops = _Ends(tokenizer.eos_token_ids)
        self._sequences: dict[int, TokenSequence] = {}
        with wired_limit_kept():
            self._batch: Any = _Generator(
                model,
                completion_batch_size=max_active,
                prefill_batch_size=max_active,
                prefill_step_size=prefill_step_size,
                stream=mx.default_stream(mx.default_device()),
            )
        sampler = self._batch.sampler
        self._batch._prompt_batch = _Prompts.empty(model, sampler, prefill_step_size)
        self._batch._generation_batch = generation = _Generation.empty(model, sampler)
        generation.keeps = prefix.keeps

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def begins(self) -> bool:
        """See `Decoder.begins`. mlx-lm takes three steps from a prompt to its first token."""
        prompts = self._batch._currently_processing
        return 0 in self._batch._generation_batch._num_tokens or any(
            len(segments) == 1 and len(segments[0]) == 1 for segments, *_ in prompts
        )

    def insert(self, sequence: TokenSequence) -> int:
        """See `Decoder.insert`."""
        cache, rest = self._prefix.fetch(sequence.prompt)
        found = len(sequence.prompt) - len(rest)
        kinds = self._kept_kinds
        sequence.boundaries = {
            at: kind for at, kind in sequence.boundaries.items() if kind in kinds
        }
        (uid,) = self._batch.insert_segments(
            segments=[_split(rest, (end - found for end in sequence.boundaries))],
            max_tokens=[sequence.max_tokens],
            caches=[cache] if cache is not None else None,
            all_tokens=[sequence.prompt[:found]],
            samplers=cast(Any, [Row.of(sequence)]),
            stop_sequences=[self._stops],
        )
        sequence.cached = found
        self._sequences[uid] = sequence
        return found

    def remove(self, request_id: str) -> None:
        """See `Decoder.remove`."""
        uids = [
            uid for uid, sequence in self._sequences.items() if sequence.request_id == request_id
        ]
        for uid in uids:
            self._keep(uid)
            self._batch.remove([uid])
            self._forget(uid)

    def step(self, *, beside: bool = False) -> list[Update]:
        """Compute one prefill chunk, and one token for every row that has its prompt."""
        self._batch.prefill_step_size = self._chunk(beside)
        prompts, tokens = self._next(beside)
        self._keep_boundaries(prompts)
        updates: list[Update] = []
        for r in prompts:
            sequence = self._sequences[r.uid]
            done, total = r.progress
            updates.append(
                Prefilled(sequence.request_id, sequence.cached + done, sequence.cached + total)
            )
        for r in tokens:
            sequence = self._sequences[r.uid]
            picked, row = r.logprobs
            logprob, top = picked.read(row, sequence.params.top_logprobs)
            updates.append(Token(sequence.request_id, r.token, logprob, top, r.finish_reason))
            if r.finish_reason is not None:
                self._prefix.insert(r.all_tokens, r.prompt_cache, "assistant")
                self._forget(r.uid)
        return updates

    def _next(self, beside: bool) -> tuple[list[Any], list[Any]]:
        """What a step gives: progress of prompts, and tokens."""
        speculation = self._speculation
        generation = cast(_Generation, self._batch._generation_batch)
        if speculation is not None and len(self._sequences) == 1 and generation.drafts:
            (sequence,) = self._sequences.values()
            drafted = speculation.draft(generation, sequence, beside=beside)
            if drafted is not None:
                tokens = generation.verify(drafted)
                speculation.verified(len(tokens))
                self._verified += 1
                if self._verified % _CLEARED == 0:
                    clear_cache()
                return [], tokens
        elif speculation is not None:
            speculation.rest()
        prompts, tokens = self._batch.next()
        return prompts, tokens

    def _forget(self, uid: int) -> None:
        sequence = self._sequences.pop(uid)
        if self._speculation is not None:
            self._speculation.end(sequence)

    def _keep(self, uid: int) -> None:
        """Keep what was computed of a row that leaves early: whoever asks again goes on from it."""
        if not self._prefix.keeps:
            return
        cache, tokens = self._batch.extract_cache([uid])[uid]
        if cache and len(tokens) > self._sequences[uid].cached:
            self._prefix.insert(list(tokens), cache, "assistant")

    def _chunk(self, beside: bool) -> int:
        """The most tokens of each prompt to compute in the next step."""
        batch = self._batch
        prompts = len(batch._prompt_batch) + len(batch._unprocessed_sequences)
        size = self._prefill_step_size // max(1, min(prompts, batch.prefill_batch_size))
        if beside or len(batch._generation_batch):
            size //= BESIDE
        return max(int(size), min(_LEAST, self._prefill_step_size))

    def _keep_boundaries(self, prompts: list[Any]) -> None:
        """Keep the caches of prompts that have reached a boundary."""
        reached = {}
        for r in prompts:
            sequence = self._sequences[r.uid]
            kind = sequence.boundaries.get(sequence.cached + r.progress[0])
            if kind is not None and r.end_of_segment and not r.end_of_prompt:
                reached[r.uid] = kind
        for uid, (cache, tokens) in self._batch.extract_cache(list(reached)).items():
            self._prefix.insert(list(tokens), cache, reached[uid])


def _split(tokens: list[int], boundaries: Iterable[int]) -> list[list[int]]:
    """Split the tokens at the boundaries inside them."""
    cuts = [0, *sorted(b for b in boundaries if 0 < b < len(tokens)), len(tokens)]
    return [tokens[a:b] for a, b in pairwise(cuts)]


def _check() -> None:
    """Refuse an mlx-lm whose batch is not as this module expects it."""
    expected: dict[Any, set[str]] = {
        BatchGenerator.insert_segments: {"segments", "caches", "all_tokens", "stop_sequences"},
        BatchGenerator.remove: {"uids"},
        BatchGenerator._make_batch: {"n"},
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
