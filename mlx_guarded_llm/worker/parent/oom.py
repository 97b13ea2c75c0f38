"""How often the kernel has killed for memory."""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(root: Path = Path("/")) -> int:
    """Kills that Linux has counted so far; 0 where it is not known.

    Only its growth means something. The control group's own count is preferred: in a container
    the count of the machine includes the neighbours.

    Args:
        root: where `proc` and `sys` lie.
    """
    for file in (*_of_group(root), root / "proc/vmstat"):
        try:
            found = _COUNT.search(file.read_text())
        except (OSError, ValueError):
            continue
        if found:
            return int(found[1])
    return 0


def _of_group(root: Path) -> list[Path]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    mounted, files = root / "sys/fs/cgroup", []
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        path = path.lstrip("/")
        if not controllers:  # version 2
            files.append(mounted / path / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(mounted / "memory" / path / "memory.oom_control")
    return files
