"""Models by name: what a name means, downloading, importing and verifying. No MLX here.

`catalog.Catalog` resolves a name with `aliases` and `naming`, gets the files from `hub`, `builtin`
or a folder, and has `verify` check them; the result is a `spec.ModelFiles`. `config`, `chat`,
`rope` and `generation` read what a folder says, compared with the source of mlx-lm
(`architectures`, `sources`). `backend.library` and the command line use the catalog; `memory` and
`engine` read the verified files.
"""

from .aliases import Alias
from .card import ModelCard
from .catalog import Catalog, OnDisk
from .gguf import import_gguf
from .spec import LOAD_OPTIONS, PROMPT_LOOKUP, ModelFiles, ModelSpec, OnProgress, Progress
from .verify import verify

__all__ = [
    "LOAD_OPTIONS",
    "PROMPT_LOOKUP",
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
