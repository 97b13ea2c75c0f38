"""The LangChain adapter of mlx-guarded-llm, which is not there yet.

This package can be imported and holds its version only. `ChatMLXGuarded` comes with a later
version; until then, use `mlx_guarded_llm.Backend`.
"""

__version__ = "0.1.0"
