"""The memory ledger: which model and request has reserved how much, before a byte is read.

Pure book-keeping in bytes; the guard asks it (`guard.MemoryLedger`) and nothing waits here.

    used = weights of every model that is resident or loading
         + KV caches of every running request, padded as its batch pads them
         + the prefix cache's bound
         + the largest prefill peak, once, because one thread steps one batch at a time

It must stay within the budget, less what other programs hold. Of models that are spread, what one
rank takes must stay within the limit of the tightest rank elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from ..errors import MemoryRefused
from ..holder import Holder, listed

if TYPE_CHECKING:
    from .footprint import Footprint
    from .rank_limit import RankLimit

GIB = 1024**3


class _Account:
    """The account of one model.

    Args:
        footprint: how large it is.
        chunk: how many tokens a prefill chunk has.

    Attributes:
        wanted: tokens of each request that waits for the model.
        running: tokens of each request that has a KV cache.
        held: bytes of the weights and of these KV caches.
        step: the most bytes that a step takes in addition.
    """

    def __init__(self, footprint: Footprint, chunk: int) -> None:
        self.wanted: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self._chunk = chunk
        self._longest_wanted: int | None = 0  # None: to be looked for
        self.measure(footprint)

    def measure(self, footprint: Footprint) -> None:
        """Set or correct the footprint of the model."""
        self.footprint = footprint
        self._prefill = footprint.prefill_bytes(self._chunk)
        self.count()

    def copy(self) -> _Account:
        """Another one with the same entries."""
        other = copy.copy(self)
        other.wanted, other.running = dict(self.wanted), dict(self.running)
        return other

    def want(self, request_id: str, tokens: int) -> None:
        """A request waits."""
        self.unwant(request_id)
        self.wanted[request_id] = tokens
        if self._longest_wanted is not None:
            self._longest_wanted = max(self._longest_wanted, tokens)

    def unwant(self, request_id: str) -> int:
        """A request waits no longer. Returns its tokens."""
        tokens = self.wanted.pop(request_id, 0)
        if tokens == self._longest_wanted:
            self._longest_wanted = None
        return tokens

    def count(self) -> None:
        """Recompute what the running requests take."""
        self._longest = max(self.running.values()) if self.running else 0
        self.held, self.step = self._bytes(len(self.running), self._longest)

    def beside(self, tokens: int) -> tuple[int, int]:
        """`held` and `step` with one more request."""
        return self._bytes(len(self.running) + 1, max(self._longest, tokens))

    def with_wanted(self, most: int) -> tuple[int, int]:
        """`held` and `step` with the requests that wait, `most` in all unless more run."""
        if self._longest_wanted is None:
            self._longest_wanted = max(self.wanted.values(), default=0)
        longest, running = max(self._longest, self._longest_wanted), len(self.running)
        return self._bytes(max(running, min(running + len(self.wanted), most)), longest)

    def _bytes(self, requests: int, longest: int) -> tuple[int, int]:
        """`held` and `step` with this many KV caches, padded to the longest."""
        footprint, held, step = self.footprint, self.footprint.weight_bytes, self._prefill
        if requests:
            held += requests * (footprint.kv_bytes(longest) + footprint.state_bytes)
        if footprint.whole_texts and longest > self._chunk:
            step = footprint.prefill_bytes(longest)
        return held, step


class Ledger:
    """Reserves memory for models and requests, within a budget.

    Args:
        budget_bytes: the total.
        prefix_cache_bytes: the limit of the prefix cache, reserved from the start.
        prefill_tokens: how many tokens a prefill chunk has.

    Attributes:
        elsewhere_bytes: of the budget that other programs hold.
        held_by: these programs, if they are to be named.
        rank_limit: of ranks elsewhere; None while there are none, or none have told.
    """

    def __init__(
        self, budget_bytes: int, *, prefix_cache_bytes: int = 0, prefill_tokens: int = 2048
    ) -> None:
        self.budget_bytes = budget_bytes
        self.prefix_cache_bytes = prefix_cache_bytes
        self.elsewhere_bytes = 0
        self.held_by: tuple[Holder, ...] = ()
        self.rank_limit: RankLimit | None = None
        self._prefill_tokens = prefill_tokens
        self._accounts: dict[str, _Account] = {}
        self._loaded: dict[str, _Account] = {}  # resident or loading
        self._running: dict[str, _Account] = {}  # by request

    def copy(self) -> Ledger:
        """See `guard.MemoryLedger.copy`."""
        copied = {id(account): account.copy() for account in self._accounts.values()}
        other = copy.copy(self)
        for name in ("_accounts", "_loaded", "_running"):
            entries = getattr(self, name).items()
            setattr(other, name, {key: copied[id(account)] for key, account in entries})
        return other

    # ---- called by the backend -----------------------------------------------

    def know_model(self, model: str, footprint: Footprint) -> None:
        """Set the footprint of a model, or correct it by what was measured."""
        account = self._accounts.get(model)
        if account is None:
            self._accounts[model] = _Account(footprint, self._prefill_tokens)
        else:
            account.measure(footprint)

    def know_request(self, request_id: str, model: str, tokens: int) -> None:
        """Set how many tokens (prompt and answer) a waiting request may need.

        For a request for vectors these are the tokens of its longest text.

        Raises:
            MemoryRefused: it would not fit even if every other model were evicted.
        """
        self._check_alone(model, tokens)
        self._accounts[model].want(request_id, tokens)

    def forget_request(self, request_id: str, model: str) -> None:
        """Forget a request that ended before it started."""
        account = self._accounts.get(model)
        if account is not None:
            account.unwant(request_id)

    def check_model(self, model: str) -> None:
        """Refuse a model that does not even fit alone.

        Raises:
            MemoryRefused: with the numbers.
        """
        self._check_alone(model, None)

    def needed_bytes(self, model: str, tokens: int | None = None) -> int:
        """The bytes needed for a model alone in memory, with one request or none.

        Args:
            tokens: of the prompt and answer of that request.
        """
        return self._used({}, self._alone(model), tokens)

    def share(self, elsewhere_bytes: int, held_by: Sequence[Holder] = ()) -> None:
        """Other programs hold some of the budget from now on.

        Args:
            elsewhere_bytes: how much.
            held_by: who they are, for refusals.
        """
        self.elsewhere_bytes, self.held_by = elsewhere_bytes, tuple(held_by)

    def wanted(self, models: Iterable[str], most: int) -> tuple[int, dict[str, int]]:
        """What all that is in memory or wanted takes side by side, as far as the budget goes.

        Args:
            models: that are resident or to be loaded; so are those that requests wait for.
            most: requests of one model that run at once.

        Returns:
            The bytes in all, and those of each model.
        """
        wanted = {name: self._accounts[name] for name in models if name in self._accounts}
        wanted |= {name: account for name, account in self._accounts.items() if account.wanted}
        sizes = {name: account.with_wanted(most) for name, account in wanted.items()}
        if not sizes:
            return 0, {}
        held = {name: size for name, (size, _) in sizes.items()}
        step = max(step for _, step in sizes.values())
        return min(self.prefix_cache_bytes + sum(held.values()) + step, self.budget_bytes), held

    @property
    def used_bytes(self) -> int:
        """Everything that is reserved now."""
        return self._used(self._loaded)

    def model_bytes(self, model: str) -> int:
        """What is reserved now for the weights and KV caches of one model."""
        account = self._loaded.get(model)
        return 0 if account is None else account.held

    # ---- what the guard asks (guard.MemoryLedger) ----------------------------------------

    def plan_load(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> tuple[str, ...] | None:
        """See `guard.MemoryLedger.plan_load`."""
        return self._plan(model, idle, self._tokens(model, request_id))

    def plan_start(
        self, request_id: str, model: str, idle: Sequence[str]
    ) -> tuple[str, ...] | None:
        """See `guard.MemoryLedger.plan_start`."""
        return self._plan(model, idle, self._tokens(model, request_id))

    def reserve_load(self, model: str) -> None:
        """See `guard.MemoryLedger.reserve_load`."""
        self._loaded[model] = self._accounts[model]

    def release_model(self, model: str) -> None:
        """See `guard.MemoryLedger.release_model`."""
        self._loaded.pop(model, None)

    def reserve_start(self, request_id: str, model: str) -> None:
        """See `guard.MemoryLedger.reserve_start`."""
        account = self._running[request_id] = self._accounts[model]
        account.running[request_id] = account.unwant(request_id)
        account.count()

    def release_start(self, request_id: str) -> None:
        """See `guard.MemoryLedger.release_start`."""
        account = self._running.pop(request_id, None)
        if account is not None:
            del account.running[request_id]
            account.count()

    def retract_start(self, request_id: str) -> None:
        """See `guard.MemoryLedger.retract_start`."""
        account = self._running.pop(request_id)
        account.want(request_id, account.running.pop(request_id))
        account.count()

    def refusal(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> MemoryRefused:
        """See `guard.MemoryLedger.refusal`."""
        others = self._others(model, idle)
        tokens = self._tokens(model, request_id)
        account = self._accounts[model]
        what = _described(model, tokens)
        if others:
            what += f" beside {', '.join(others)}"
        needed = self._used(others, account, tokens)
        if needed <= self._free_of_others and not self._rank_fits(others, account, tokens):
            return self._rank_refused(what, self._rank_used(others, account, tokens))
        return self._refused(what, needed)

    # ---- sums --------------------------------------------------------------------

    def _tokens(self, model: str, request_id: str | None) -> int | None:
        """The tokens that a waiting request needs; None without a request."""
        if request_id is None:
            return None
        return self._accounts[model].wanted.get(request_id, 0)

    def _others(self, model: str, evicted: Sequence[str]) -> dict[str, _Account]:
        """Every loaded model except this one and the evicted ones."""
        return {n: a for n, a in self._loaded.items() if n != model and n not in evicted}

    def _plan(self, model: str, idle: Sequence[str], tokens: int | None) -> tuple[str, ...] | None:
        """The least recently used of `idle`, as many as necessary and no more."""
        if self._fits(model, tokens, ()):
            return ()
        counts = range(1, len(idle) + 1)
        count = next((n for n in counts if self._fits(model, tokens, idle[:n])), None)
        if count is None:
            return None
        evict = list(idle[:count])
        for name in idle[:count]:
            rest = [other for other in evict if other != name]
            if self._fits(model, tokens, rest):
                evict = rest
        return tuple(evict)

    def _fits(self, model: str, tokens: int | None, evicted: Sequence[str]) -> bool:
        others, account = self._others(model, evicted), self._accounts[model]
        fits = self._used(others, account, tokens) <= self._free_of_others
        return fits and self._rank_fits(others, account, tokens)

    def _alone(self, model: str) -> _Account:
        return _Account(self._accounts[model].footprint, self._prefill_tokens)

    def _check_alone(self, model: str, tokens: int | None) -> None:
        """Refuse what would not fit even if nothing else were in memory."""
        alone, what = self._alone(model), _described(model, tokens)
        needed = self._used({}, alone, tokens)
        if needed > self.budget_bytes:
            raise self._refused(what, needed)
        if not self._rank_fits({}, alone, tokens):
            raise self._rank_refused(what, self._rank_used({}, alone, tokens))

    def _rank_fits(
        self, loaded: Mapping[str, _Account], candidate: _Account, tokens: int | None
    ) -> bool:
        """As far as the tightest rank elsewhere goes."""
        if self.rank_limit is None or not candidate.footprint.ranks:
            return True
        return self._rank_used(loaded, candidate, tokens) <= self.rank_limit.budget_bytes

    def _rank_used(
        self, loaded: Mapping[str, _Account], candidate: _Account, tokens: int | None
    ) -> int:
        """What one rank takes for the models that are spread, with a candidate that is."""
        spread = {name: account for name, account in loaded.items() if account.footprint.ranks}
        used = self._used(spread, candidate, tokens) - self.prefix_cache_bytes
        return self.prefix_cache_bytes + ceil(used / candidate.footprint.ranks)

    def _used(
        self,
        loaded: Mapping[str, _Account],
        candidate: _Account | None = None,
        tokens: int | None = None,
    ) -> int:
        """What these models take together, with a candidate that is not among them."""
        held, step = 0, 0
        if candidate is not None and tokens is not None:
            held, step = candidate.beside(tokens)
        elif candidate is not None:
            held, step = candidate.held, candidate.step
        for account in loaded.values():
            held += account.held
            if account.step > step:
                step = account.step
        return self.prefix_cache_bytes + held + step

    @property
    def _free_of_others(self) -> int:
        return self.budget_bytes - self.elsewhere_bytes

    def _refused(self, what: str, needed: int) -> MemoryRefused:
        if self._free_of_others < needed <= self.budget_bytes:
            return self._held_elsewhere(what, needed)
        return MemoryRefused(
            f"{what} needs {needed / GIB:.2f} GiB; "
            f"the budget is {self.budget_bytes / GIB:.2f} GiB.",
            needed_bytes=needed,
            budget_bytes=self.budget_bytes,
            hint="Raise memory_budget, lower max_tokens, unpin a model, or take a smaller one; "
            "`mlx-guarded fit` tells what fits.",
        )

    def _rank_refused(self, what: str, needed: int) -> MemoryRefused:
        assert self.rank_limit is not None
        rank, budget = self.rank_limit.rank, self.rank_limit.budget_bytes
        return MemoryRefused(
            f"{what} needs {needed / GIB:.2f} GiB at {rank}, {self.prefix_cache_bytes / GIB:.2f} "
            f"GiB of it for kept prefixes; models may use {budget / GIB:.2f} GiB there.",
            needed_bytes=needed,
            budget_bytes=budget,
            hint="Lower max_tokens or prefix_cache, spread the model over more machines, or give "
            "that one a higher memory_budget in the hostfile.",
        )

    def _held_elsewhere(self, what: str, needed: int) -> MemoryRefused:
        """It would fit if other programs held nothing."""
        who = f"{listed(self.held_by)}. " if self.held_by else ""
        return MemoryRefused(
            f"{what} needs {needed / GIB:.2f} GiB; the budget is {self.budget_bytes / GIB:.2f} "
            f"GiB, of which other programs hold {self.elsewhere_bytes / GIB:.2f} GiB.",
            needed_bytes=needed,
            budget_bytes=self.budget_bytes,
            held_by=self.held_by,
            hint=f"{who}End what is not needed, or have all programs use one server "
            "(`mlx-guarded serve --background`).",
        )


def _described(model: str, tokens: int | None) -> str:
    return model if tokens is None else f"{model} with {tokens} tokens of context"
