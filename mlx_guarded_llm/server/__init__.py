"""The backend behind HTTP: it translates, and leaves every decision to what is below.

    from mlx_guarded_llm.server import Settings, create_app, open_backend

    settings = Settings(models={"qwen": {"model": "qwen3-4b"}})
    app = create_app(open_backend(settings), settings)  # an ASGI application

`mlx-guarded serve` runs it. Needs the extra `server`.
"""

from .app import create_app
from .opening import open_backend
from .settings import Settings

__all__ = ["Settings", "create_app", "open_backend"]
