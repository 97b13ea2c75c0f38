"""What rank 0 tells the other ranks, and what they answer: plain values that pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import GuardedLLMError
from ...models.spec import ModelFiles
from ..decode.decoder import TokenSequence
from ..protocol import EngineOptions


@dataclass(frozen=True, kw_only=True)
class Form:
    """Prepare for the group. Answer: `Done`, once this rank listens at its addresses.

    Attributes:
        rank: of the one who is told.
        options: of rank 0's engine, with its limits filled in: all ranks must cut prompts alike.
        network: see `Hosts`.
        variables: of the environment.
        files: by the variable that is to have the name of the file: what is in it.
        listen: its (address, port) pairs, which are tried before MLX uses them.
        reach: those that this rank connects to.
        counted: the ledger of rank 0 has its memory.
    """

    rank: int
    options: EngineOptions
    network: str
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    listen: tuple[tuple[str, int], ...] = ()
    reach: tuple[tuple[str, int], ...] = ()
    counted: bool = False


@dataclass(frozen=True)
class Reach:
    """Try whether the next rank can be reached. Answer: `Done`."""


@dataclass(frozen=True)
class Clear:
    """Leave the addresses to MLX. Answer: `Done`.

    All ranks must have done so before any joins: MLX would take who only listened for a rank that
    it can connect with.
    """


@dataclass(frozen=True)
class Join:
    """Join the group, which every rank does at the same time. Answer: `Done`."""


@dataclass(frozen=True)
class Read:
    """Read this rank's part of a model. Answer: `Done` with its bytes.

    Attributes:
        ends: ids of the tokens that end an answer.
    """

    model: str
    files: ModelFiles
    ends: frozenset[int]


@dataclass(frozen=True)
class Build:
    """Every rank has read its part: find out what its caches can do, and make a batch."""

    model: str


@dataclass(frozen=True)
class Insert:
    """A request joins a model's batch."""

    model: str
    sequence: TokenSequence


@dataclass(frozen=True)
class Remove:
    """A request leaves it."""

    model: str
    request_id: str


@dataclass(frozen=True)
class Step:
    """Advance a model's batch; see `Decoder.step`."""

    model: str
    beside: bool


@dataclass(frozen=True)
class Drop:
    """Free the memory of a model. Answer: `Done`."""

    model: str


@dataclass(frozen=True)
class Beat:
    """Rank 0 is there. A rank that hears nothing for long ends: the network may be cut."""


Order = Beat | Form | Reach | Clear | Join | Read | Build | Insert | Remove | Step | Drop


@dataclass(frozen=True, kw_only=True)
class Done:
    """An order was carried out, or why it was not.

    Attributes:
        nbytes: for `Read`: what this rank's part takes. Of the first answer, once MLX is
            imported: what models may use of its device, if nothing else is said.
    """

    nbytes: int = 0
    error: GuardedLLMError | None = None


@dataclass(frozen=True)
class EndTokens:
    """All that a batch needs of a tokenizer."""

    eos_token_ids: Any
