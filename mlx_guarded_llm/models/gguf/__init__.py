"""Importing GGUF files: a reader in pure Python, and a subprocess that converts with MLX."""

from .importing import import_gguf

__all__ = ["import_gguf"]
