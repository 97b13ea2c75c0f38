"""What is installed of MLX, and what to do where it cannot be imported."""

from __future__ import annotations

import importlib.metadata

BACK_END_HINT = (
    'On Linux install a back end of MLX: pip install "mlx-guarded-llm[cpu]", or [cuda13].'
)
_DISTRIBUTION = "mlx-guarded-llm"


def installed(distribution: str) -> str | None:
    """The version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def misfits() -> list[str]:
    """Installed versions of mlx and mlx-lm that this library does not take, in words."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        return []  # it runs from a folder, and nobody says what it takes
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name not in ("mlx", "mlx-lm") or requirement.marker or requirement.extras:
            continue
        version = installed(requirement.name)
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            found.append(f"{requirement.name} {version} is installed, and {wanted} is needed")
    return found


def import_hint() -> str:
    """What to do when MLX or mlx-lm cannot be imported."""
    if found := misfits():
        return f"{'; '.join(found)}: pip install --upgrade {_DISTRIBUTION} brings those that fit."
    return BACK_END_HINT
