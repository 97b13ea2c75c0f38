"""The memory ledger: what is promised to whom, counted before a byte is read.

Pure book-keeping in bytes; the guard asks it (`guard.Room`) and nothing waits here.

    used = weights of every model that is resident or loading
         + KV caches of every running request, padded as its batch pads them
         + the prefix cache's bound
         + the largest prefill peak, once, because one thread steps one batch at a time
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import MemoryRefused
from .footprint import Footprint

GIB = 1024**3


@dataclass
class _Account:
    """One model's side of the ledger.

    Attributes:
        wanted: tokens of the requests that wait for it, in order of arrival.
        running: tokens of the requests that hold a KV cache.
    """

    footprint: Footprint
    loaded: bool = False
    wanted: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)

    def kv_bytes(self, *more: int) -> int:
        """KV caches of the running requests and of `more`, padded to the longest."""
        tokens = [*self.running.values(), *more]
        per_row = self.footprint.kv_bytes(max(tokens)) + self.footprint.state_bytes if tokens else 0
        return len(tokens) * per_row


class Ledger:
    """Promises memory to models and requests, within a budget.

    Args:
        budget_bytes: all there is.
        prefix_cache_bytes: the bound of the prefix cache, promised from the start.
        prefill_tokens: tokens of one prefill chunk.
    """

    def __init__(
        self, budget_bytes: int, *, prefix_cache_bytes: int = 0, prefill_tokens: int = 2048
    ) -> None:
        self.budget_bytes = budget_bytes
        self.prefix_cache_bytes = prefix_cache_bytes
        self._prefill_tokens = prefill_tokens
        self._accounts: dict[str, _Account] = {}

    # ---- what the backend tells it ---------------------------------------------

    def know_model(self, model: str, footprint: Footprint) -> None:
        """Say how large a model is, or correct it by what was measured."""
        account = self._accounts.get(model)
        if account is None:
            self._accounts[model] = _Account(footprint)
        else:
            account.footprint = footprint

    def know_request(self, request_id: str, model: str, tokens: int) -> None:
        """Say how many tokens (prompt and answer) a waiting request may need.

        Raises:
            MemoryRefused: it would not fit even with every other model evicted.
        """
        account = self._accounts[model]
        needed = self._alone(account, tokens)
        if needed > self.budget_bytes:
            raise self._refused(f"{model} with {tokens} tokens of context", needed)
        account.wanted[request_id] = tokens

    def forget_request(self, request_id: str, model: str) -> None:
        """A request ended before it started."""
        account = self._accounts.get(model)
        if account is not None:
            account.wanted.pop(request_id, None)

    def check_model(self, model: str) -> None:
        """Refuse a model that cannot fit even alone.

        Raises:
            MemoryRefused: with the numbers.
        """
        needed = self._alone(self._accounts[model], None)
        if needed > self.budget_bytes:
            raise self._refused(model, needed)

    @property
    def used_bytes(self) -> int:
        """Everything promised now."""
        return self._used(self._accounts.values())

    def model_bytes(self, model: str) -> int:
        """Weights and KV caches promised to one model now."""
        account = self._accounts.get(model)
        if account is None or not account.loaded:
            return 0
        return account.footprint.weight_bytes + account.kv_bytes()

    # ---- what the guard asks (guard.Room) ----------------------------------------

    def plan_load(self, model: str, idle: Sequence[str]) -> tuple[str, ...] | None:
        """See `guard.Room.plan_load`."""
        account = self._accounts[model]
        return self._evict_until_fits(account, next(iter(account.wanted.values()), None), idle)

    def plan_start(self, request_id: str, model: str, idle: Sequence[str]) -> tuple[str, ...] | None:
        """See `guard.Room.plan_start`."""
        account = self._accounts[model]
        return self._evict_until_fits(account, account.wanted.get(request_id, 0), idle)

    def reserve_load(self, model: str) -> None:
        """See `guard.Room.reserve_load`."""
        self._accounts[model].loaded = True

    def release_model(self, model: str) -> None:
        """See `guard.Room.release_model`."""
        self._accounts[model].loaded = False

    def reserve_start(self, request_id: str, model: str) -> None:
        """See `guard.Room.reserve_start`."""
        account = self._accounts[model]
        account.running[request_id] = account.wanted.pop(request_id, 0)

    def release_start(self, request_id: str) -> None:
        """See `guard.Room.release_start`."""
        for account in self._accounts.values():
            account.running.pop(request_id, None)

    def refusal(self, model: str, request_id: str | None = None) -> MemoryRefused:
        """See `guard.Room.refusal`."""
        account = self._accounts[model]
        tokens = account.wanted.get(request_id) if request_id else None
        if tokens is None:
            tokens = next(iter(account.wanted.values()), None)
        others = self._used(a for a in self._accounts.values() if a is not account)
        held = ", ".join(n for n, a in self._accounts.items() if a.loaded and a is not account)
        error = self._refused(model, self._alone(account, tokens) + others - self.prefix_cache_bytes)
        return error if not held else self._refused(f"{model} beside {held}", error.needed_bytes)

    # ---- sums -------------------------------------------------------------------------

    def _evict_until_fits(
        self, account: _Account, tokens: int | None, idle: Sequence[str]
    ) -> tuple[str, ...] | None:
        kept = [a for a in self._accounts.values() if a.loaded and a is not account]
        evict: list[str] = []
        candidates = iter(idle)
        while self._used(kept, account, tokens) > self.budget_bytes:
            name = next(candidates, None)
            if name is None:
                return None
            evict.append(name)
            kept.remove(self._accounts[name])
        return tuple(evict)

    def _used(
        self,
        accounts: Iterable[_Account],
        candidate: _Account | None = None,
        tokens: int | None = None,
    ) -> int:
        loaded = [a for a in accounts if a.loaded and a is not candidate]
        total = self.prefix_cache_bytes
        total += sum(a.footprint.weight_bytes + a.kv_bytes() for a in loaded)
        if candidate is not None:
            more = () if tokens is None else (tokens,)
            total += candidate.footprint.weight_bytes + candidate.kv_bytes(*more)
            loaded.append(candidate)
        peaks = (a.footprint.prefill_bytes(self._prefill_tokens) for a in loaded)
        return total + max(peaks, default=0)

    def _alone(self, account: _Account, tokens: int | None) -> int:
        fresh = _Account(account.footprint)
        return self._used((), fresh, tokens)

    def _refused(self, what: str, needed: int) -> MemoryRefused:
        return MemoryRefused(
            f"{what} needs {needed / GIB:.2f} GiB; the budget is {self.budget_bytes / GIB:.2f} GiB.",
            needed_bytes=needed,
            budget_bytes=self.budget_bytes,
            hint="Raise memory_budget, lower max_tokens, unpin a model, or take a smaller one.",
        )
