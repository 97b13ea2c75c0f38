"""Progress of downloads, loads and prefills, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..models import OnProgress, Progress


class Listeners:
    """The stages under way. Whoever hears that one began also hears that it is over.

    Used by the dispatcher's thread only.

    Args:
        on_progress: hears everything; None for nobody.
        notify: calls a listener soon; it neither blocks nor raises.

    Attributes:
        stages: those under way and who hears of them, by model and request (or "").
    """

    def __init__(
        self, on_progress: OnProgress | None, notify: Callable[[OnProgress, Progress], None]
    ) -> None:
        self.stages: dict[tuple[str, str], tuple[Progress, list[OnProgress | None]]] = {}
        self._followers = [on_progress] if on_progress is not None else []
        self._notify_one = notify

    def follow(self, follower: OnProgress) -> None:
        """Have this hear everything, too, from now on."""
        self._followers.append(follower)

    def leave(self, follower: OnProgress) -> None:
        """Undo `follow`."""
        self._followers.remove(follower)

    def moved(
        self,
        key: str,
        progress: Progress,
        others: Iterable[OnProgress | None] = (),
        *,
        request_id: str = "",
    ) -> None:
        """A stage has come so far.

        Args:
            key: the model.
            progress: how far.
            others: who hears of it too; None is nobody.
            request_id: the request that it is for; "" for the model itself.
        """
        subject = (key, request_id)
        if subject in self.stages and self.stages[subject][0].stage != progress.stage:
            self.stopped(key, request_id)
        listeners = [*self._followers, *others]
        over = progress.done == progress.total
        progress = replace(progress, model=key, request_id=request_id, over=over)
        if over:
            self.stages.pop(subject, None)
        else:
            self.stages[subject] = (progress, listeners)
        self._notify(listeners, progress)

    def stopped(self, key: str, request_id: str = "") -> None:
        """A stage goes no further, whether it is finished or not."""
        stage = self.stages.pop((key, request_id), None)
        if stage is not None:
            progress, listeners = stage
            self._notify(listeners, replace(progress, over=True))

    def loaded(self) -> float:
        """The share of the running load that is done."""
        loads = [progress for progress, _ in self.stages.values() if progress.stage == "load"]
        return max((load.done / load.total for load in loads if load.total), default=0.0)

    def load_stopped(self) -> None:
        """As `stopped`, for the load: there is only one at a time."""
        for subject in [s for s, (progress, _) in self.stages.items() if progress.stage == "load"]:
            self.stopped(*subject)

    def all_stopped(self) -> None:
        """As `stopped`, for everything."""
        for subject in list(self.stages):
            self.stopped(*subject)

    def _notify(self, listeners: list[OnProgress | None], progress: Progress) -> None:
        for listener in listeners:
            if listener is not None:
                self._notify_one(listener, progress)
