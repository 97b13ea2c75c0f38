"""The side of the other ranks: they do what rank 0 tells. It runs on the MLX thread."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ...errors import GuardedLLMError, MemoryRefused, ModelInvalid
from ...models.spec import ModelFiles
from ...models.verify import verify
from ..residency import loading
from ..residency.residents import Residency, Resident, device
from .group import Group, check_network
from .orders import (
    Beat,
    Build,
    Clear,
    Done,
    Drop,
    EndTokens,
    Form,
    Insert,
    Join,
    Order,
    Reach,
    Read,
    Remove,
    Step,
)
from .reach import Listening, reach


class Follower:
    """Carries out the orders of rank 0.

    Nothing is caught that goes wrong in a step: this rank could not keep up with the others then.

    Args:
        answer: takes what is sent to rank 0.
        host: what this machine calls itself, for messages.
    """

    def __init__(self, answer: Callable[[Done], None], host: str) -> None:
        self._answer = answer
        self._host = host
        self._form: Form | None = None
        self._listening: Listening | None = None
        self._group: Group | None = None
        self._residency: Any = None
        self._read: dict[str, tuple[Any, Read]] = {}
        self._residents: dict[str, Resident] = {}

    def do(self, order: Order) -> None:
        """Carry out an order."""
        if isinstance(order, Step):
            self._residents[order.model].step(beside=order.beside)
        elif isinstance(order, Insert):
            assert self._group is not None
            order.sequence.share = self._group.share
            self._decoder(order.model).insert(order.sequence)
        elif isinstance(order, Remove):
            self._decoder(order.model).remove(order.request_id)
        elif isinstance(order, Build):
            self._build(order.model)
        elif isinstance(order, Drop):
            self._drop(order.model)
        elif not isinstance(order, Beat):
            self._answer(self._done(order))

    def stop(self) -> None:
        """Free everything."""
        for model in tuple(self._residents):
            self._drop(model)

    def _decoder(self, model: str) -> Any:
        return self._residents[model].decoder

    def _done(self, order: Form | Reach | Clear | Join | Read) -> Done:
        try:
            if isinstance(order, Read):
                return Done(nbytes=self._read_part(order))
            if isinstance(order, Form):
                self._form = order
                check_network(order.network)
                self._listening = Listening(order.listen)
            elif isinstance(order, Reach):
                assert self._form is not None
                reach(self._form.reach)
            elif isinstance(order, Clear):
                assert self._listening is not None
                self._listening.close()
            else:
                self._join()
        except GuardedLLMError as error:
            return Done(error=self._named(error))
        except Exception as error:
            assert isinstance(order, Read)
            return Done(error=self._named(loading.load_error(error, order.files)))
        return Done()

    def _join(self) -> None:
        form = self._form
        assert form is not None
        self._group = Group.join(form)
        self._residency = Residency(form.options, device())

    def _read_part(self, order: Read) -> int:
        """Read this rank's part of a model. Returns the bytes that the ledger of rank 0 counts."""
        form, group = self._form, self._group
        assert form is not None and group is not None
        files = self._verified(order.files)
        before = mx.get_active_memory()

        def split(model: Any) -> None:
            group.split(model, files)
            if not form.counted:
                self._check_memory(model, files)

        model = loading.load(
            files,
            slice_bytes=form.options.load_slice_bytes,
            progress=lambda done, total: None,
            stop=lambda: False,
            split=split,
        )
        self._read[order.model] = model, Read(order.model, files, order.ends)
        return mx.get_active_memory() - before if form.counted else 0

    def _check_memory(self, model: Any, files: ModelFiles) -> None:
        """Refuse a part that does not fit, before it is read. The ledger went by predictions.

        Raises:
            MemoryRefused: with the numbers.
        """
        leaves: Any = tree_flatten(model.parameters())
        needed = sum(array.nbytes for _, array in leaves)
        budget = self._residency.limits.budget_bytes - mx.get_active_memory()
        if needed > budget:
            raise MemoryRefused(
                f"its part of {files.spec.name} takes {needed / 2**30:.2f} GiB; "
                f"{budget / 2**30:.2f} GiB are left.",
                needed_bytes=needed,
                budget_bytes=budget,
                hint="Spread the model over more machines.",
            )

    def _verified(self, files: ModelFiles) -> ModelFiles:
        """The files on this machine.

        Raises:
            ModelInvalid: they are not the same.
        """
        own = verify(replace(files.spec, hosts=None), files.path)
        if own.fingerprint != files.fingerprint:
            raise ModelInvalid(
                f"{files.path} has another version of {files.spec.name} than rank 0.",
                hint="Copy the model to every machine, at the same path.",
            )
        return replace(own, spec=files.spec, hosts=files.hosts)

    def _build(self, name: str) -> None:
        model, read = self._read.pop(name)
        self._residents[name] = self._residency.adopt(
            name, model, EndTokens(read.ends), read.files, load=_no_draft, group=self._group
        )

    def _drop(self, model: str) -> None:
        self._read.pop(model, None)
        resident = self._residents.pop(model, None)
        if resident is not None:
            self._residency.release(resident)
        gc.collect()

    def _named(self, error: GuardedLLMError) -> GuardedLLMError:
        """The error, with the name of this machine in front."""
        rank = self._form.rank if self._form is not None else "?"
        error.message = f"rank {rank} on {self._host}: {error.message}"
        error.args = (error.message, *error.args[1:])
        return error.with_traceback(None)


def _no_draft(files: ModelFiles) -> Any:
    raise AssertionError(f"{files.spec.name} would draft, which was refused before")
