"""The command line, `mlx-guarded`. Each command is a module; MLX is imported on use."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
