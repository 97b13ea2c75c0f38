"""Run a script or a module under the witness: `python -m mlx_guarded_llm.testing.witness`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_guarded_llm.engine.observer import WITNESS_VARIABLE
from mlx_guarded_llm.testing import witness as witness_module


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, install the witness and run the script."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_guarded_llm.testing.witness",
        description="Run a Python script; abort it when two pieces of MLX work overlap.",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="SCRIPT is a module")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS")
    options = parser.parse_args(arguments)

    # With this variable an engine in a child process installs a witness of its own.
    os.environ[WITNESS_VARIABLE] = "1"
    witness = witness_module.install()
    sys.argv = [options.script, *options.args]
    try:
        if options.module:
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(options.script, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(options.script).resolve().parent))
            runpy.run_path(options.script, run_name="__main__")
    finally:
        kinds = ", ".join(f"{count} {kind}" for kind, count in witness.seen.items())
        sys.stderr.write(f"witness: saw {kinds or 'no MLX work'} in this process\n")
