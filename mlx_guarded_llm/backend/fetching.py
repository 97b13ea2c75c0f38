"""Finding, fetching and warming model files, in threads of their own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from ..errors import GuardedLLMError, PullFailed
from ..memory.budget import available_ram
from ..models import Catalog, ModelFiles, ModelSpec
from ..models.spec import OnProgress

logger = logging.getLogger("mlx_guarded_llm.models")

Found = Callable[[ModelFiles | GuardedLLMError], None]

_BLOCK = 16 * 1024**2
_WARM_SHARE = 0.5


def fetch(
    catalog: Catalog, spec: ModelSpec, offline: bool, progress: OnProgress, found: Found
) -> None:
    """Make sure a model is on disk and sound, then call `found`, from a new thread."""

    def work() -> None:
        try:
            found(catalog.ensure(spec, progress=progress, offline=offline))
        except GuardedLLMError as error:
            found(error.with_traceback(None))
        except Exception as error:
            logger.exception("fetching %s failed", spec.name)
            found(PullFailed(f"fetching {spec.name} failed ({type(error).__name__}: {error})."))

    threading.Thread(target=work, name=f"mlx-guarded-fetch-{spec.name}", daemon=True).start()


class Warmer:
    """Reads the weights of a deferred load once, so that they are in the file cache.

    The load itself then takes its bytes from memory. A model larger than half the
    free RAM is left alone: it would push out more than it brings in.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()

    def warm(self, files: ModelFiles) -> None:
        """Begin, in a new thread."""
        threading.Thread(
            target=self._read, args=(files,), name="mlx-guarded-warm", daemon=True
        ).start()

    def stop(self) -> None:
        """Give up what is under way."""
        self._stop.set()

    def _read(self, files: ModelFiles) -> None:
        try:
            if files.weight_bytes > available_ram() * _WARM_SHARE:
                return
            for path in files.weight_files:
                with path.open("rb", buffering=0) as file:
                    if hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                    while not self._stop.is_set() and file.read(_BLOCK):
                        pass
        except OSError as error:  # the load will say it better
            logger.debug("warming %s stopped: %s", files.path, error)
