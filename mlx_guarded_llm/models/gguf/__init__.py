"""Imports GGUF files: a pure-Python reader, and a subprocess that converts with MLX."""

from .importing import import_gguf

__all__ = ["import_gguf"]
