"""Rank 0's side: it tells the others what it is about to do. It runs on the MLX thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...memory.budget import MemoryLimits
from ...models.hosts import Hosts
from ...models.spec import ModelFiles
from ...params import SamplingParams
from ..decode.constraint import Constraint
from ..decode.decoder import Decoder, TokenSequence, Update
from ..protocol import EngineOptions
from .forms import make_forms
from .group import Group, check_network, sharding
from .orders import Build, Clear, Done, Drop, Insert, Join, Order, Reach, Read, Remove, Step
from .ranks import Ranks
from .reach import Listening, reach

_PLAIN = SamplingParams(temperature=0.0)  # rank 0 chooses the tokens, whatever the others think


class Leader:
    """The group of an engine, from the first load that needs it to the engine's end.

    MLX has one group in a process. So all models of an engine that have `hosts` have the same.

    Args:
        ranks: the other ranks' processes.
        options: of the engine.
        limits: the engine's.

    Attributes:
        group: None until it is formed.
    """

    def __init__(self, ranks: Ranks, options: EngineOptions, limits: MemoryLimits) -> None:
        self._ranks = ranks
        self._patience = options.prepare_timeout
        self._options = replace(
            options,
            prefill_step_size=limits.prefill_step_size,
            prefix_cache_bytes=limits.prefix_cache_bytes,
        )
        self.group: Group | None = None
        self._models: set[str] = set()  # that the others have, or read

    def form(self, hosts: Hosts) -> Group:
        """The group; the first time, it is formed.

        Raises:
            HostUnavailable: a rank cannot be started, or cannot reach the next one.
            InvalidRequest: other hosts are a group already.
        """
        budgets = self._ranks.ready(hosts)
        if self.group is not None:
            return self.group
        try:
            self.group = self._form(hosts, budgets)
        except BaseException:
            self._ranks.end()
            raise
        return self.group

    def _form(self, hosts: Hosts, budgets: Sequence[int]) -> Group:
        check_network(hosts.network)
        forms = make_forms(hosts, self._options, budgets)
        own, *others = forms
        self._ranks.tell(*others)
        listening = Listening(own.listen)
        try:
            self._check(self._ranks.answers(self._patience))
            self._ranks.tell(Reach())
            reach(own.reach)
            self._check(self._ranks.answers(self._patience))
        finally:
            listening.close()
        self._ranks.tell(Clear())
        self._check(self._ranks.answers(self._patience))
        with self._ranks.joining():
            self._ranks.tell(Join())
            group = Group.join(own)
            self._check(self._ranks.answers(self._patience))
        return group

    def split(self, name: str, files: ModelFiles, ends: frozenset[int], model: Any) -> None:
        """Leave of a model what rank 0 computes, and have the other ranks read their parts.

        Args:
            ends: ids of the tokens that end an answer.
            model: whole, and not evaluated.

        Raises:
            GuardedLLMError: it cannot be split, or there is no group.
        """
        assert files.hosts is not None
        sharding(model, files, len(files.hosts))  # before anything is started for it
        group = self.form(files.hosts)
        self._models.add(name)
        self._ranks.tell(Read(name, files, ends))
        group.split(model, files)

    def read(self, name: str) -> int:
        """Rank 0 has its part. Waits for the others, and has each make its batch.

        Returns:
            The bytes that the others take of the memory that this one's ledger counts.

        Raises:
            GuardedLLMError: one of them failed.
        """
        answers = self._ranks.answers(None)  # the watchdog looks after that
        self._check(answers)
        self._ranks.tell(Build(name))
        return sum(answer.nbytes for answer in answers)

    def drop(self, name: str) -> None:
        """Have the others free a model, if they have it."""
        if name in self._models:
            self._models.discard(name)
            self._ranks.tell(Drop(name))

    def decoder(self, name: str, decoder: Decoder) -> Decoder:
        """A decoder that has the other ranks do what it does."""
        assert self.group is not None
        return _Leading(name, decoder, self._ranks.tell, self.group)

    def _check(self, answers: list[Done]) -> None:
        for answer in answers:
            if answer.error is not None:
                raise answer.error


class _Leading:
    """See `Leader.decoder`."""

    def __init__(
        self, name: str, decoder: Decoder, tell: Callable[[Order], None], group: Group
    ) -> None:
        self._name = name
        self._decoder = decoder
        self._tell = tell
        self._group = group

    def __len__(self) -> int:
        return len(self._decoder)

    @property
    def begins(self) -> bool:
        """See `Decoder.begins`."""
        return self._decoder.begins

    def insert(self, sequence: TokenSequence) -> int:
        """See `Decoder.insert`."""
        free = None if sequence.constraint is None else Constraint(None, vocabulary=0)
        told = replace(sequence, params=_PLAIN, constraint=free, share=None)
        self._tell(Insert(self._name, told))
        sequence.share = self._group.share
        return self._decoder.insert(sequence)

    def remove(self, request_id: str) -> None:
        """See `Decoder.remove`."""
        self._tell(Remove(self._name, request_id))
        self._decoder.remove(request_id)

    def step(self, *, beside: bool = False) -> list[Update]:
        """See `Decoder.step`."""
        self._tell(Step(self._name, beside))
        return self._decoder.step(beside=beside)
