"""The models a backend knows: finding their files, and what they take in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from ..engine.protocol import Measured
from ..errors import GuardedLLMError, PullFailed
from ..logs import get_logger
from ..memory.budget import available_ram
from ..memory.corrections import Corrections
from ..memory.footprint import predict
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec, Progress
from ..models.spec import OnProgress
from ..writer import write_soon

logger = get_logger("models")

Found = Callable[[ModelFiles | GuardedLLMError], None]

_BLOCK = 16 * 1024**2
_WARM_SHARE = 0.5


class ModelRegistry:
    """Used by the dispatcher's thread only.

    Args:
        catalog: finds and fetches models.
        offline: never use the network.
        report: called from any thread with a model's key and the progress of its fetch; the
            last time with its files, or with the reason why there are none.

    Attributes:
        files: of every model that was entered, by its key.
        fetching: keys of the models whose files are being found.
    """

    def __init__(
        self,
        catalog: Catalog,
        offline: bool,
        report: Callable[[str, Progress | ModelFiles | GuardedLLMError], None],
    ) -> None:
        self.files: dict[str, ModelFiles] = {}
        self.fetching: set[str] = set()
        self._catalog = catalog
        self._offline = offline
        self._report = report
        self._corrections = Corrections(catalog.cache_dir / "measured.json", write_soon)
        self._warmer = _Warmer()

    def find(self, key: str, spec: ModelSpec) -> None:
        """Find and verify the files of a model, fetching them when needed.

        One fetch serves everybody who asks in the meantime, until `found` ends it.
        """
        if key not in self.fetching:
            self.fetching.add(key)
            report = partial(self._report, key)
            _fetch(self._catalog, spec, self._offline, report, report)

    def found(self, key: str) -> None:
        """A fetch is over. The next `find` begins another."""
        self.fetching.discard(key)

    def enter(self, key: str, files: ModelFiles, ledger: Ledger) -> None:
        """Enter a model in the ledger; it is not in memory yet.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        self.files[key] = files
        self._count(key, ledger)
        ledger.check_model(key)

    def correct(self, measured: Measured, ledger: Ledger) -> None:
        """Correct the footprint of a model by what was measured, now and for later runs."""
        files = self.files[measured.model]
        # What it took to embed one long text says nothing about the next.
        peak = 0 if files.spec.task == "embed" else measured.peak_bytes
        self._corrections.record(
            files.load_fingerprint, weight_bytes=measured.weight_bytes, peak_bytes=peak
        )
        self._count(measured.model, ledger)

    def warm(self, key: str) -> None:
        """Read a model's weights into the file cache while its load has to wait."""
        self._warmer.warm(self.files[key])

    def close(self) -> None:
        """Stop reading weights."""
        self._warmer.stop()

    def _count(self, key: str, ledger: Ledger) -> None:
        files = self.files[key]
        ledger.know_model(key, self._corrections.apply(files.load_fingerprint, predict(files)))


def _fetch(
    catalog: Catalog, spec: ModelSpec, offline: bool, progress: OnProgress, found: Found
) -> None:
    """Make sure that a model is on disk and valid, then call `found`, in a new thread."""

    def work() -> None:
        try:
            found(catalog.ensure(spec, progress=progress, offline=offline))
        except GuardedLLMError as error:
            found(error.with_traceback(None))
        except BaseException as error:  # those who wait must hear of it
            logger.exception("fetching %s failed", spec.name)
            found(PullFailed(f"fetching {spec.name} failed ({type(error).__name__}: {error})."))

    try:
        threading.Thread(target=work, name=f"mlx-guarded-fetch-{spec.name}", daemon=True).start()
    except RuntimeError as error:  # the system has no thread left at the moment
        found(
            PullFailed(
                f"{spec.name} cannot be fetched: no thread can be started ({error}).",
                hint="Raise the limit of processes (ulimit -u, pids.max), or try again later.",
            )
        )


class _Warmer:
    """Reads the weights of a deferred load once, so that they are in the file cache.

    The load then takes its bytes from memory. A model larger than half of the free RAM is
    not read: it would push out more than it brings in.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()

    def warm(self, files: ModelFiles) -> None:
        """Read them in a new thread, if the system has one left."""
        thread = threading.Thread(
            target=self._read, args=(files,), name="mlx-guarded-warm", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            logger.debug("%s is not warmed: %s", files.path, error)

    def stop(self) -> None:
        """Stop reading."""
        self._stop.set()

    def _read(self, files: ModelFiles) -> None:
        try:
            if files.load_bytes > available_ram() * _WARM_SHARE:
                return
            draft = files.draft.weight_files if files.draft else ()
            for path in (*files.weight_files, *draft):
                with path.open("rb", buffering=0) as file:
                    if hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                    while not self._stop.is_set() and file.read(_BLOCK):
                        pass
        except OSError as error:  # the load will report it
            logger.debug("warming %s stopped: %s", files.path, error)
