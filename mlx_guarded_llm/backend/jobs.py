"""Jobs as the dispatcher keeps them: loads, unloads and users' functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import GuardedLLMError
from ..models import ModelFiles, ModelSpec
from ..models.spec import OnProgress
from .streams import Promise


@dataclass(eq=False, kw_only=True)
class Job:
    """A load, an unload or a user's function that somebody waits for.

    Attributes:
        promise: what its caller waits on.
        spec: of the model; None for a function.
        key: the name under which the guard and the engine know the model; the label of a
            function.
        declares: once it is loaded, the bare name of the model means it.
        files: of the model to be loaded, when they are known.
        in_engine: an engine prepares it.
        asked: the guard has it, or is about to.
        value: what the engine returned.
        error: what the engine reported, or the function raised.
    """

    id: str
    kind: Literal["load", "unload", "run"]
    promise: Promise[Any]
    spec: ModelSpec | None = None
    key: str = ""
    pin: bool = False
    declares: bool = False
    fn: Callable[[], Any] | None = None
    files: ModelFiles | None = None
    in_engine: bool = False
    asked: bool = False
    on_progress: OnProgress | None = None
    value: Any = None
    error: BaseException | None = None

    def settle(self, error: GuardedLLMError | None, *, ran: bool) -> None:
        """End it. The exception that a function raised comes before an error of ours."""
        reason = self.error or error
        if reason is not None:
            self.promise.fail(reason)
        else:
            self.promise.set(ran if self.kind == "unload" else self.value)
