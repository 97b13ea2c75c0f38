"""All the benchmarks that take minutes rather than hours, one after the other.

    python -m benchmarks            or: make bench

Each runs in a process of its own; `python -m benchmarks.NAME --help` tells its options.
"""

from __future__ import annotations

import subprocess
import sys

RUNS = (
    ("guard",),
    ("throughput", "--shape", "tiny", "--tokens", "300"),
    (
        "throughput",
        "--model",
        "smollm2-135m-bf16",
        "--tokens",
        "24",
        "--rows",
        "4",
        "--rounds",
        "2",
    ),
    (
        "grammar",
        "--model",
        "smollm2-135m-bf16",
        "--tokens",
        "24",
        "--rows",
        "8",
        "--rounds",
        "3",
    ),
    ("layers", "--shape", "tiny"),
    ("isolation", "--shape", "tiny", "--tokens", "200"),
    ("isolation", "--model", "smollm2-135m-bf16", "--tokens", "24", "--rows", "8", "--rounds", "2"),
    ("crash", "--shape", "tiny", "--tokens", "200", "--rounds", "3"),
    ("crash", "--model", "smollm2-135m-bf16", "--rounds", "2"),
    ("incident",),
)


def main() -> int:
    """Run them all. Returns 1 if one failed."""
    failed = []
    for name, *arguments in RUNS:
        print(f"\n== python -m benchmarks.{' '.join([name, *arguments])}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
