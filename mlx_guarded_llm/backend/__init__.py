"""The backend: admission, memory and the engine, behind one object."""

from .backend import Backend
from .calls import AsyncStream, Stream
from .work import ModelInfo

__all__ = ["AsyncStream", "Backend", "ModelInfo", "Stream"]
