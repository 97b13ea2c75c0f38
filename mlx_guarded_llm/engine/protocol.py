"""What the backend and the engine say to each other. Plain values that pickle.

Commands go down with `Engine.send`, events come back through its `emit`. Nothing here
holds an `mx.array`, and neither does any error: that is what lets the engine live in
another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import GuardedLLMError
from ..memory.budget import Limits
from ..models.spec import ModelFiles, Progress
from ..params import SamplingParams
from ..request import PromptRequest
from ..results import Chunk, FinishReason, Usage
from ..texts import TextsRequest


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine works.

    Attributes:
        max_active: requests of one model decoded together at most.
        memory_budget: bytes that models may use; None takes the device's default.
        prefill_step_size: prompt tokens computed between two decode steps; None
            takes 2048 on a GPU and 512 on a CPU.
        prefix_cache_bytes: KV caches kept for prompts that begin alike; None takes
            5 % of the memory budget, at most 4 GiB.
        load_slice_bytes: weights evaluated at once; a load can be given up, and
            reports progress, between two slices.
    """

    max_active: int = 32
    memory_budget: int | None = None
    prefill_step_size: int | None = None
    prefix_cache_bytes: int | None = None
    load_slice_bytes: int = 512 * 1024**2


# ---- commands -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Template and encode a request, off the MLX thread. Answer: `Prepared` or `Ended`.

    Whatever becomes of it, exactly one `Ended` tells that the engine is done with it.

    Attributes:
        emitted: tokens of the answer that an engine before this one has passed on; the
            answer goes on behind them.
    """

    request_id: str
    model: str
    files: ModelFiles
    prompt: PromptRequest
    params: SamplingParams
    seed: int
    emitted: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrepareTexts:
    """As `Prepare`, for texts that are to be embedded."""

    request_id: str
    model: str
    files: ModelFiles
    texts: TextsRequest


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Encode a prompt and no more. Answer: `Ended`, whose value are its token ids.

    Attributes:
        prompt: to be templated; or plain text, encoded without special tokens.
    """

    request_id: str
    model: str
    files: ModelFiles
    prompt: PromptRequest | str


@dataclass(frozen=True)
class ReadTokenizer:
    """Read the tokenizer of a model whose load was asked for, off the MLX thread."""

    model: str
    files: ModelFiles


@dataclass(frozen=True)
class Start:
    """Run a prepared request; its model is resident. Answer: chunks and `Ended`."""

    request_id: str


@dataclass(frozen=True)
class Cancel:
    """Stop a request, started or only prepared. Answer: `Ended`."""

    request_id: str


@dataclass(frozen=True)
class Load:
    """Unload `evict`, then load a model. Answer: `JobEnded`.

    Attributes:
        paused: unfinished generations are to stand still meanwhile. Without it they
            are a broken invariant, which the engine refuses.
    """

    job_id: str
    model: str
    files: ModelFiles
    evict: tuple[str, ...]
    paused: bool


@dataclass(frozen=True)
class Unload:
    """Drop a model and give its memory back. Answer: `JobEnded`."""

    job_id: str
    model: str
    paused: bool


@dataclass(frozen=True)
class Run:
    """Call a function on the MLX thread. Answer: `JobEnded` with its value."""

    job_id: str
    label: str
    fn: Callable[[], Any]
    paused: bool


Preparing = Prepare | PrepareTexts | Tokenize
Command = Preparing | ReadTokenizer | Start | Cancel | Load | Unload | Run


# ---- events ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The engine works. Says where, and with what.

    Attributes:
        device: what `mx.device_info()` says, and "device": "cpu" or "gpu".
        limits: the options, with the device's defaults filled in.
    """

    device: Mapping[str, Any]
    limits: Limits


@dataclass(frozen=True)
class Prepared:
    """A request's prompt is encoded, or its texts.

    Attributes:
        prompt_tokens: of the prompt, or of the longest text.
        max_tokens: as asked for, or what the context window leaves.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Delta:
    """A piece of an answer.

    Attributes:
        tokens: the tokens behind it, from the one after the last piece's.
    """

    request_id: str
    chunk: Chunk
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class FirstToken:
    """An answer began, so many seconds after `Start`."""

    request_id: str
    seconds: float
    cached_tokens: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request is over; the engine knows it no longer.

    Attributes:
        chunk: the last text, with finish reason and usage; None on an error.
        value: what it came to when that is no text: vectors, float32 of shape (texts,
            size), or the token ids of `Tokenize`.
        usage: token counts, when there is no chunk.
        error: why it failed.
        out_of_memory: the error came from memory that MLX could not get.
        prefill: seconds from `Start` to the first token, or to the last vector.
        decode: seconds from the first token to the last.
    """

    request_id: str
    chunk: Chunk | None = None
    value: Any = None
    usage: Usage | None = None
    error: GuardedLLMError | None = None
    out_of_memory: bool = False
    prefill: float = 0.0
    decode: float = 0.0

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.chunk.finish_reason if self.chunk else None

    @property
    def counts(self) -> Mapping[str, int]:
        """Its token counts by name, as far as they are known."""
        usage = self.chunk.usage if self.chunk else self.usage
        return {} if usage is None else asdict(usage)


@dataclass(frozen=True, kw_only=True)
class JobEnded:
    """Exclusive work is over.

    Attributes:
        error: why it failed. For `Run` the caller's own exception, as it was raised.
        value: what the function of `Run` returned.
        out_of_memory: the error came from memory that MLX could not get.
        left: models that are out of memory now.
        details: measured bytes and seconds.
    """

    job_id: str
    error: BaseException | None = None
    value: Any = None
    out_of_memory: bool = False
    left: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moved:
    """A load (by model) or a prefill (by request) went on."""

    model: str
    request_id: str | None
    progress: Progress


@dataclass(frozen=True)
class Measured:
    """What a model takes, in bytes; 0 where nothing new was learnt.

    Attributes:
        weight_bytes: its weights, measured by its load.
        peak_bytes: the most one step took beyond weights and caches.
    """

    model: str
    weight_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Broken:
    """The engine cannot go on; every request and job it had is lost."""

    error: GuardedLLMError


@dataclass(frozen=True)
class Stopped:
    """The engine was closed; its models are out of memory."""


Report = (
    Ready | Prepared | Delta | FirstToken | Ended | JobEnded | Moved | Measured | Broken | Stopped
)
