"""The command line, `mlx-guarded`.

`app` has the application, and `commands` one module for each command. The modules here are
what commands share; `demo` and `doctor` are parts of the two commands of those names. Commands
call the library as any program does: a `Backend`, the catalog of models and the record. Slow
imports, MLX among them, happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

from .app import main

__all__ = ["main"]
