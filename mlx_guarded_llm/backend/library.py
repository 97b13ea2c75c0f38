"""Which models a backend knows: their names, their files and their footprints."""

from __future__ import annotations

from collections.abc import Callable

from ..engine.protocol import Measured
from ..errors import GuardedLLMError
from ..memory.corrections import Corrections
from ..memory.footprint import predict
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec, OnProgress
from .fetching import Warmer, fetch

Found = ModelFiles | GuardedLLMError


class Library:
    """Used by the dispatcher's thread only.

    Args:
        catalog: finds and fetches models.
        offline: never use the network.
        post: has a call run on the dispatcher's thread.
    """

    def __init__(
        self, catalog: Catalog, offline: bool, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self.files: dict[str, ModelFiles] = {}
        self.fetching: dict[str, list[Callable[[Found], None]]] = {}
        self._catalog = catalog
        self._offline = offline
        self._post = post
        self._corrections = Corrections(catalog.cache_dir / "measured.json")
        self._keys: dict[ModelSpec, str] = {}
        self._warmer = Warmer()

    def key(self, spec: ModelSpec) -> str:
        """The one name under which everybody who means this model meets."""
        canonical = spec.unnamed()
        key = self._keys.get(canonical)
        if key is None:
            taken = set(self._keys.values())
            key, n = spec.name, 1
            while key in taken:
                n += 1
                key = f"{spec.name}#{n}"
            self._keys[canonical] = key
        return key

    def find(
        self, key: str, spec: ModelSpec, progress: OnProgress, then: Callable[[Found], None]
    ) -> None:
        """Call `then` with the verified files, fetching them when needed.

        One fetch serves all who ask meanwhile. `progress` comes from its thread.
        """
        waiting = self.fetching.setdefault(key, [])
        waiting.append(then)
        if len(waiting) == 1:
            found = lambda result: self._post(lambda: self._found(key, result))  # noqa: E731
            fetch(self._catalog, spec, self._offline, progress, found)

    def enter(self, key: str, files: ModelFiles, ledger: Ledger) -> None:
        """Count with a model that is not in memory.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        self.files[key] = files
        self._count(key, ledger)
        ledger.check_model(key)

    def correct(self, measured: Measured, ledger: Ledger) -> None:
        """Keep what was measured of a model, and count with it from now on."""
        files = self.files[measured.model]
        # What one long text took to be embedded says nothing of the next.
        peak = 0 if files.spec.task == "embed" else measured.peak_bytes
        self._corrections.record(
            files.fingerprint, weight_bytes=measured.weight_bytes, peak_bytes=peak
        )
        self._count(measured.model, ledger)

    def warm(self, key: str) -> None:
        """Read a model's weights into the file cache, while its load has to wait."""
        self._warmer.warm(self.files[key])

    def close(self) -> None:
        """Give up what is being read."""
        self._warmer.stop()

    def _found(self, key: str, result: Found) -> None:
        for then in self.fetching.pop(key, ()):
            then(result)

    def _count(self, key: str, ledger: Ledger) -> None:
        files = self.files[key]
        ledger.know_model(key, self._corrections.apply(files.fingerprint, predict(files)))
