"""What a server needs of the backend behind it, beside what every backend can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models import OnProgress
from ..record import Record
from .base import BaseBackend


class ServableBackend(BaseBackend):
    """A backend that `server.create_app` can be put in front of: it knows what happens in it.

    `Backend` is one, and that of a cluster of replicas; a `RemoteBackend` has a server already.
    """

    @property
    @abstractmethod
    def record(self) -> Record:
        """The record itself, to be followed as it grows; `events` has what is kept of it."""

    @abstractmethod
    def aliases(self) -> list[str]:
        """The names that its catalog has for models."""

    @abstractmethod
    def identity(self, model: str | Path, **options: Any) -> str:
        """Which model a call with this name gets: `ModelInfo.identity` of it. Loads nothing.

        Args:
            model: alias, folder or Hugging Face repository.
            **options: as `Backend.load` takes them.

        Raises:
            GuardedLLMError: the name means nothing, or an option is wrong.
        """

    @abstractmethod
    def follow_progress(self, follower: OnProgress) -> Callable[[], None]:
        """Have a function hear of every download, load and prefill, whoever it is for.

        Args:
            follower: called on another thread, as `on_progress` is.

        Returns:
            A function that ends it.
        """
