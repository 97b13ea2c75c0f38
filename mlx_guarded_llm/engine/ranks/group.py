"""The group of ranks in MLX. Used on the MLX thread only; it imports mlx."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack
from typing import Any, Literal

import mlx.core as mx

from ...errors import HostUnavailable, ModelUnsupported
from ...models.config import text_config
from ...models.numbers import Numbers
from ...models.spec import ModelFiles
from .orders import Form

_STALLS = 2  # times `prepare_timeout`: the watchdog of a program that is there comes first


class Group:
    """The ranks, as one of them sees them.

    Args:
        group: what `mlx.core.distributed.init` returned.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank: int = group.rank()
        self.size: int = group.size()

    @classmethod
    def join(cls, form: Form) -> Group:
        """Join the group, together with all other ranks. It waits for them.

        MLX holds Python's lock while it waits, so that this process would not notice that the one
        it is to serve has ended. SIGALRM ends it then.

        Raises:
            RuntimeError: MLX cannot connect them.
        """
        with ExitStack() as stack:
            for name, content in form.files.items():
                file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
                file.write(content)
                file.flush()
                os.environ[name] = file.name
            os.environ.update(form.variables)
            signal.setitimer(signal.ITIMER_REAL, _STALLS * form.options.prepare_timeout)
            stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
            return cls(mx.distributed.init(strict=True, backend=_backend(form.network)))

    def share(self, tokens: mx.array) -> mx.array:
        """The tokens that rank 0 has, at every rank. Lazy, like all of MLX.

        Not every network adds up in the same order at every rank, so that the logits of two
        ranks may differ in the last bit. And only rank 0 knows the grammars.
        """
        # Not zeros_like: every rank has to exchange this after what its tokens depend on.
        own = tokens if self.rank == 0 else tokens * 0
        return mx.distributed.all_sum(own, group=self._group)

    def agree(self, number: int) -> bool:
        """Whether all ranks say the same number. Every rank must ask at the same moment."""
        both = mx.distributed.all_max(mx.array([number, -number]), group=self._group)
        values: Any = both.tolist()
        most, negated = values
        return bool(most == -negated)

    def check_alike(self, files: ModelFiles, *facts: bool) -> None:
        """Make sure that these are true of every rank's part of a model, or false of every one's.

        Raises:
            ModelUnsupported: the ranks would not take the same steps.
        """
        if not self.agree(sum(fact << i for i, fact in enumerate(facts))):
            raise _unsupported(files, "has layers of several kinds, in which its parts differ")

    def split(self, model: Any, files: ModelFiles) -> None:
        """Leave of a model only what this rank computes. Its weights must not be evaluated yet.

        Raises:
            ModelUnsupported: its architecture, or its size, cannot be split like this.
        """
        way = sharding(model, files, self.size)
        try:
            if way == "tensor":
                model.shard(self._group)
            else:
                model.model.pipeline(self._group)
        except ValueError as error:
            raise _unsupported(files, f"cannot be split into {self.size} parts ({error})") from None
        kind = type(model)
        # Whatever is known of the architecture as a whole need not hold for its parts.
        model.__class__ = type(f"Split{kind.__name__}", (kind,), {"__module__": kind.__module__})


def check_network(network: str) -> None:
    """Make sure that MLX has what it needs for a network, which it has not everywhere.

    Raises:
        HostUnavailable: it cannot use it on this machine.
    """
    backend = _backend(network)
    if not mx.distributed.is_available(backend):
        raise HostUnavailable(f"MLX has no {backend} here.", hint='Take the backend "ring".')
    if backend == "nccl" and not mx.device_count(mx.gpu):
        raise HostUnavailable(
            "there is no GPU for this rank.", hint="Each rank takes the next GPU of its machine."
        )


def _backend(network: str) -> str:
    """What MLX calls it."""
    return "jaccl" if network == "jaccl-ring" else network


def sharding(model: Any, files: ModelFiles, ranks: int) -> Literal["tensor", "pipeline"]:
    """How a model can be split, as `mlx_lm.utils.sharded_load` decides it.

    By tensors if its architecture has `shard` and its heads can be divided; else by layers.

    Raises:
        ModelUnsupported: neither, or not in the way that was asked for.
    """
    wanted = files.hosts.sharding if files.hosts is not None else None
    c = Numbers(text_config(files.config))
    heads = (c.heads, c.heads if c.get("kv_lora_rank", default=0) else c.kv_heads)
    whole = not any(count % ranks for count in heads)
    can = {
        "tensor": hasattr(model, "shard"),
        "pipeline": hasattr(getattr(model, "model", None), "pipeline"),
    }
    if files.hosts is not None and files.hosts.network == "nccl":
        can["pipeline"] = False  # MLX's NCCL does not send
    architecture = type(model).__module__.rpartition(".")[2]
    if not any(can.values()):
        raise _unsupported(files, f"cannot be split: mlx-lm's {architecture} has no shard and "
                           "no pipeline")  # fmt: skip
    if wanted is not None and not can[wanted]:
        raise _unsupported(files, f"cannot be split by {wanted}: mlx-lm's {architecture} has no "
                           f"{'shard' if wanted == 'tensor' else wanted}")  # fmt: skip
    if can["tensor"] and wanted != "pipeline" and whole:
        return "tensor"
    if can["pipeline"] and wanted != "tensor":
        return "pipeline"
    raise _unsupported(files, f"has {heads[0]} heads and {heads[1]} of keys and values, which "
                       f"{ranks} ranks cannot share evenly")  # fmt: skip


def _unsupported(files: ModelFiles, why: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{files.spec.name} {why}.",
        hint="Load it without hosts, or on another number of machines.",
    )
