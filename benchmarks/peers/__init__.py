"""Other ways to serve MLX models, each in an environment of its own."""

from collections.abc import Callable

from benchmarks.peers.http import HTTPServer
from benchmarks.peers.python_api import LangChainMLX, LlamaIndexMLX
from benchmarks.peers.servers import VLLMMLX, MLXLMServer, MLXOpenAIServer, RapidMLX
from benchmarks.side import Side

SERVERS: tuple[Callable[[], HTTPServer], ...] = (MLXLMServer, VLLMMLX, RapidMLX, MLXOpenAIServer)
PYTHON_APIS: tuple[Callable[[], Side], ...] = (LlamaIndexMLX, LangChainMLX)
