"""Over which faces a test runs."""

from __future__ import annotations

import pytest

from ._direct import Direct
from ._faces import WAYS, Face
from ._langchain import LangChain
from ._llama_index import LlamaIndex

LIBRARIES: tuple[type[Face], ...] = (Direct, LangChain, LlamaIndex)
FACES = [library(way) for library in LIBRARIES for way in WAYS]

each_face = pytest.mark.parametrize("face", FACES, ids=str)
each_library = pytest.mark.parametrize("face", [kind("call") for kind in LIBRARIES], ids=str)
each_stream = pytest.mark.parametrize("face", [f for f in FACES if f.streams], ids=str)
each_adapter = pytest.mark.parametrize(
    "face", [face for face in FACES if face.library != "direct"], ids=str
)
