"""Which models are not loaded any more, because the engine died of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ModelQuarantined
from ..worker.parent.death import Death
from ..worker.parent.stderr_excerpt import stderr_excerpt

_COUNTED = ("abort", "segfault", "condemned", "hung", "exit")
_WORK = ("load", "unload", "step", "prepare")  # the model's own; a user's function is nobody's
_MEMORY_CHANCES = 2  # the second time no idle model was beside it


_Deaths = list[tuple[float, Death]]  # with when, the newest last


@dataclass
class _History:
    """The deaths that one model caused.

    Attributes:
        deaths: those that count against it.
        out_of_memory: those because memory ran out.
        held: it is quarantined.
    """

    deaths: _Deaths = field(default_factory=list)
    out_of_memory: _Deaths = field(default_factory=list)
    held: bool = False


class Quarantine:
    """Counts deaths of the engine by the model that was at work.

    Deaths with a cause outside count against nobody. Those because memory ran out are counted
    apart: they only say that the model does not fit.

    Args:
        after: deaths within `window` after which a model is quarantined; None for never.
        window: seconds.
    """

    def __init__(self, after: int | None = 3, window: float = 600.0) -> None:
        self._after = after
        self._window = window
        self._models: dict[str, _History] = {}

    def blame(self, now: float, key: str, death: Death) -> bool:
        """The engine died while it worked with this model.

        Args:
            now: seconds of a clock that does not go back.
            key: the model, "" for none.
            death: how.

        Returns:
            Whether the model is quarantined by this.
        """
        counts = death.cause in _COUNTED
        if not key or death.work not in _WORK or not (counts or death.cause == "out_of_memory"):
            return False
        if not counts and death.work == "prepare":
            return False  # it was a prompt that did not fit
        if death.cause == "hung" and death.work != "prepare" and death.preparing:
            return False  # a request that was being prepared may have held it up, and is counted
        history = self._models.setdefault(key, _History())
        if not counts:
            history.out_of_memory = [*self._recent(now, history.out_of_memory), (now, death)]
            return False
        history.deaths = [*self._recent(now, history.deaths), (now, death)]
        if history.held or self._after is None or len(history.deaths) < self._after:
            return False
        history.held = True
        return True

    def refuses(self, now: float, key: str) -> bool:
        """Whether the engine ran out of memory with this model too often to try again."""
        history = self._models.get(key, _History())
        return len(self._recent(now, history.out_of_memory)) >= _MEMORY_CHANCES

    def held(self) -> list[str]:
        """The models in quarantine."""
        return [key for key, history in self._models.items() if history.held]

    def error(self, key: str) -> ModelQuarantined | None:
        """The error for whoever asks for the model; None if it is not quarantined."""
        history = self._models.get(key, _History())
        if not history.held:
            return None
        (first, _), (last, death) = history.deaths[0], history.deaths[-1]
        count = len(history.deaths)
        often = "once" if count == 1 else f"{count} times within {max(last - first, 1):.0f} s"
        text = f"{key} made the engine die {often} (last: {death.brief}); it is quarantined."
        excerpt = stderr_excerpt(death.stderr)
        if excerpt:
            text += f' The end of its stderr: "{excerpt}".'
        return ModelQuarantined(
            text,
            model=key,
            deaths=count,
            stderr=death.stderr,
            hint=f"backend.forgive({key!r}) lifts it.",
        )

    def forgive(self, key: str) -> bool:
        """Forget what the model did. Returns whether it was quarantined."""
        return self._models.pop(key, _History()).held

    def deaths(self, key: str) -> int:
        """How often the engine died of it, within the window before the last death."""
        return len(self._models.get(key, _History()).deaths)

    def cause(self, key: str) -> str:
        """The cause of the last death in a few words, or ""."""
        deaths = self._models.get(key, _History()).deaths
        return deaths[-1][1].brief if deaths else ""

    def _recent(self, now: float, deaths: _Deaths) -> _Deaths:
        return [(when, death) for when, death in deaths if now - when <= self._window]
