"""Models by name: aliases, fetching, importing, checking. Nothing here touches MLX."""

from .aliases import Alias
from .card import ModelCard
from .catalog import Catalog, OnDisk
from .gguf import import_gguf
from .spec import ModelFiles, ModelSpec, OnProgress, Progress
from .verify import verify

__all__ = [
    "Alias",
    "Catalog",
    "ModelCard",
    "ModelFiles",
    "ModelSpec",
    "OnDisk",
    "OnProgress",
    "Progress",
    "import_gguf",
    "verify",
]
