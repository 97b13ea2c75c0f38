"""The commands and reports that the backend and the engine exchange: plain values that pickle.

Commands go down with `Engine.send`, reports come back through its `emit`. Nothing here holds
an `mx.array`, and neither does any error, so the engine can live in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..embed_request import EmbedRequest
from ..errors import GuardedLLMError
from ..memory.budget import MemoryLimits
from ..memory.rank_limit import RankLimit
from ..models.spec import ModelFiles, Progress
from ..params import SamplingParams
from ..request import PromptRequest
from ..results import Chunk, FinishReason, Usage


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The options of an engine.

    Attributes:
        max_active: the most requests of one model that are decoded together.
        memory_budget: bytes that models may use; None for the device's default.
        prefill_step_size: prompt tokens computed between two decode steps; None
            takes 2048 on a GPU and 512 on a CPU.
        prefix_cache_bytes: for KV caches that are kept for prompts with a common beginning;
            None for 5 % of the memory budget, at most 4 GiB.
        wired_memory: bytes that Metal keeps wired, or "recommended" for what the device does;
            None leaves that alone.
        prepare_timeout: seconds that preparing a request may take.
        load_slice_bytes: weights evaluated at once. Between two slices a load reports its
            progress and can be given up.
    """

    max_active: int = 32
    memory_budget: int | None = None
    prefill_step_size: int | None = None
    prefix_cache_bytes: int | None = None
    wired_memory: int | Literal["recommended"] | None = None
    prepare_timeout: float = 60.0
    load_slice_bytes: int = 512 * 1024**2


# ---- commands -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Template and encode a request, off the MLX thread. Answer: `Prepared` or `Ended`.

    In every case exactly one `Ended` says that the engine is done with the request.

    Attributes:
        emitted: tokens of the answer that an earlier engine has passed on already, perhaps one
            of another server; the answer continues after them.
    """

    request_id: str
    model: str
    files: ModelFiles
    prompt: PromptRequest
    params: SamplingParams
    seed: int
    emitted: tuple[int, ...] = ()

    @property
    def characters(self) -> int:
        """The size of what is to be prepared."""
        return self.prompt.characters


@dataclass(frozen=True, kw_only=True)
class PrepareTexts:
    """Like `Prepare`, for texts to embed."""

    request_id: str
    model: str
    files: ModelFiles
    texts: EmbedRequest

    @property
    def characters(self) -> int:
        """The size of what is to be prepared."""
        return self.texts.characters


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Only encode a prompt. Answer: `Ended`, whose value is the list of token ids.

    Attributes:
        prompt: a request to template, or plain text, encoded without special tokens.
    """

    request_id: str
    model: str
    files: ModelFiles
    prompt: PromptRequest | str

    @property
    def characters(self) -> int:
        """The size of what is to be prepared."""
        prompt = self.prompt
        return len(prompt) if isinstance(prompt, str) else prompt.characters


@dataclass(frozen=True)
class PrepareLoad:
    """Do what a load needs and MLX does not, before its turn. Answer: `LoadPrepared`.

    Its tokenizer is read, and the processes of other ranks are started.

    Attributes:
        job_id: who asked; None for a model that comes back after the death of an engine.
    """

    job_id: str | None
    model: str
    files: ModelFiles


@dataclass(frozen=True)
class Start:
    """Run a prepared request, whose model is resident. Answer: chunks and `Ended`."""

    request_id: str


@dataclass(frozen=True)
class Cancel:
    """Stop a request that was started or prepared. Answer: `Ended`."""

    request_id: str


@dataclass(frozen=True)
class Load:
    """Unload `evict`, then load a model. Answer: `JobEnded`.

    Attributes:
        paused: unfinished generations are paused for the duration. Without it they break the
            invariant, and the engine refuses the command.
    """

    job_id: str
    model: str
    files: ModelFiles
    evict: tuple[str, ...]
    paused: bool


@dataclass(frozen=True)
class Unload:
    """Drop a model and free its memory. Answer: `JobEnded`."""

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
Command = Preparing | PrepareLoad | Start | Cancel | Load | Unload | Run


# ---- reports --------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The engine is up.

    Attributes:
        device: `mx.device_info()`, and "device": "cpu" or "gpu".
        limits: the options, with the device's defaults filled in.
        wired_bytes: that Metal keeps wired; 0 where the limit was left alone.
    """

    device: Mapping[str, Any]
    limits: MemoryLimits
    wired_bytes: int = 0


@dataclass(frozen=True)
class Prepared:
    """The prompt of a request is encoded, or its texts are.

    Attributes:
        prompt_tokens: tokens of the prompt, or of the longest text.
        max_tokens: as requested, or what the context window leaves.
        rank_limit: for the ledger, if ranks elsewhere have parts of the model.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    rank_limit: RankLimit | None = None


@dataclass(frozen=True)
class LoadPrepared:
    """A load can have its turn, or why it never will.

    Attributes:
        job_id, model: as in `PrepareLoad`.
        rank_limit: see `Prepared`.
    """

    job_id: str | None
    model: str
    rank_limit: RankLimit | None = None
    error: GuardedLLMError | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of an answer."""

    request_id: str
    chunk: Chunk


@dataclass(frozen=True)
class FirstToken:
    """An answer began, this many seconds after `Start`."""

    request_id: str
    seconds: float
    cached_tokens: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request is over and forgotten by the engine.

    Attributes:
        chunk: the last text, with finish reason and usage; None on an error.
        value: the result when it is not text: vectors, float32 of shape (texts, size), or the
            token ids of `Tokenize`.
        usage: token counts, if there is no chunk.
        error: why it failed.
        out_of_memory: it failed because MLX could not allocate memory.
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
        """The token counts that are known, by name."""
        usage = self.chunk.usage if self.chunk else self.usage
        return {} if usage is None else asdict(usage)


@dataclass(frozen=True, kw_only=True)
class JobEnded:
    """Exclusive work is over.

    Attributes:
        error: why it failed. For `Run` the caller's own exception, as it was raised.
        value: what the function of `Run` returned.
        out_of_memory: it failed because MLX could not allocate memory.
        left: models that are no longer in memory.
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
    """Progress of a load (of a model) or a prefill (of a request)."""

    model: str
    request_id: str | None
    progress: Progress


@dataclass(frozen=True)
class Measured:
    """How many bytes a model takes; 0 where nothing new was measured.

    Attributes:
        weight_bytes: its weights, measured during the load.
        peak_bytes: the most that one step took in addition to weights and caches.
    """

    model: str
    weight_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Broken:
    """The engine cannot continue; all its requests and jobs are lost.

    Attributes:
        lost: another rank that has a part of a model is gone.
    """

    error: GuardedLLMError
    lost: bool = False


@dataclass(frozen=True)
class Stopped:
    """The engine was closed and its models unloaded."""


Report = (
    Ready
    | Prepared
    | LoadPrepared
    | Delta
    | FirstToken
    | Ended
    | JobEnded
    | Moved
    | Measured
    | Broken
    | Stopped
)
