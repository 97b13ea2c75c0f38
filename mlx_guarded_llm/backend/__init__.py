"""The backend: admission, memory and the engine, behind one object.

`base` has what every backend can do, and `servable` what a server needs of one beside.
`backend.Backend` runs models here, `remote` asks a server that does. The first checks what they
ask and posts it to the `dispatcher`, the one thread that decides: it asks the `guard` what may
begin, and tells the engine through the `supervisor`, which starts one and starts another when it
has died. A caller waits on what `streams` has. What the dispatcher knows of models is in
`model_registry` and `names`, of what is under way in `pending`, of crashes in `quarantine` and
`crashes`.
"""

from .backend import Backend
from .base import BaseBackend
from .health import Health
from .model_info import ModelInfo
from .request_status import RequestStatus
from .servable import ServableBackend
from .streams import AsyncStream, Stream

__all__ = [
    "AsyncStream",
    "Backend",
    "BaseBackend",
    "Health",
    "ModelInfo",
    "RequestStatus",
    "ServableBackend",
    "Stream",
]
