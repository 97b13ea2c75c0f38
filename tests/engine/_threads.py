"""What the tests that look inside of this process's MLX thread have in common."""

from __future__ import annotations

import gc

from mlx_guarded_llm import Backend

TEXT = "The quick brown fox jumps over the lazy dog."


def active_memory() -> int:
    """Bytes that MLX holds; asked on its thread."""

    def ask() -> int:
        import mlx.core as mx

        mx.synchronize()
        gc.collect()
        return mx.get_active_memory()

    with Backend(isolation="thread") as asker:
        return asker.run(ask)
