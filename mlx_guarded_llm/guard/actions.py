"""What the guard tells its owner to do. They are plain values; the guard has no effects."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GuardedLLMError


@dataclass(frozen=True)
class Start:
    """Hand this request to the engine. Its model is resident, and there is room for it."""

    request_id: str
    model: str


@dataclass(frozen=True)
class Stop:
    """Stop this running generation at the next token; then report it as ended.

    Attributes:
        error: what its caller gets; None for a plain cancel.
    """

    request_id: str
    error: GuardedLLMError | None = None


@dataclass(frozen=True)
class Fail:
    """This request ended and the engine does not have it. Tell its caller.

    Attributes:
        error: what its caller gets; None for a plain cancel.
    """

    request_id: str
    error: GuardedLLMError | None = None


@dataclass(frozen=True)
class Load:
    """Evict, then load, as one piece of exclusive work.

    Attributes:
        evict: idle models to unload first, in this order.
        paused: generations to pause at a token boundary meanwhile.
    """

    job_id: str
    model: str
    evict: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unload:
    """Unload this model, as exclusive work."""

    job_id: str
    model: str
    paused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Run the user's function of this job, as exclusive work."""

    job_id: str
    paused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settle:
    """This job is over for a caller that waits for it.

    Attributes:
        error: why it failed; None when it succeeded or there was nothing to do.
        ran: the engine did it; False if there was nothing to do, as for a load of a
            resident model.
    """

    job_id: str
    error: GuardedLLMError | None = None
    ran: bool = True


Exclusive = Load | Unload | Run
Action = Start | Stop | Fail | Load | Unload | Run | Settle
