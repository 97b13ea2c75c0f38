"""A model behind a server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import os
import urllib.parse
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...backend.options import label, seconds
from ...backend.streams import AsyncStream, GatheredAnswer, Promise, Put, Stream
from ...errors import (
    GuardedLLMError,
    InvalidRequest,
    ModelUnsupported,
    RequestCancelled,
)
from ...json_values import plain_text, shown
from ...results import Embeddings, Result
from ..candidate import Call
from ..deadline import awithin
from ..external import ExternalModel, is_wrong_request
from .answer import Answer, embeddings
from .loop import Task
from .request import EXTRA_SETTINGS, SETTINGS, STOPS, body_of, effort_of

if TYPE_CHECKING:
    import openai

NEWER_LIMIT = "max_completion_tokens"  # of OpenAI's newer models, for "max_tokens"
NO_KEY = "none"  # servers without keys ignore it; without any, the client takes OpenAI's own
_SEEDS = 2**31  # servers differ in how many they know
# What a call may ask besides settings. `priority` and `constrain` are for what stands before it.
_UNDERSTOOD = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "schema", "stop", "thinking"}
    | {"template_kwargs", "priority", *SETTINGS, *EXTRA_SETTINGS}
)


class OpenAIModel(ExternalModel):
    """A model behind a server that speaks OpenAI's API: Ollama, LM Studio, vLLM, a cloud.

        import os

        from mlx_guarded_llm import GuardedLLM, OpenAIModel

        far = OpenAIModel(
            url="http://127.0.0.1:11434/v1", model="llama3.1", key=os.environ.get("MY_KEY")
        )
        llm = GuardedLLM(None, far)  # or as one of `fallbacks`

    Needs the extra `openai`. Options that the API does not have are refused by name: `regex`,
    `grammar`, `raw`, `logit_bias`, `continue_final_message` and variables of a template. Other
    settings that the server turns out to refuse are left out from then on;
    `guard.sampling` has those that were sent.

    Args:
        url: of the API, with its path: "https://api.openai.com/v1".
        model: its name there.
        key: of the server, if it needs one.
        name: what provenance shows; by default that of the model.
        connect_timeout: seconds in which a connection must be made.
        read_timeout: seconds in which the server must say something: the first of its answer,
            or the next.

    Raises:
        InvalidRequest: an argument is wrong, or the extra is not installed.
    """

    errors = (GuardedLLMError,)
    dispensable = frozenset(
        {"stop", "thinking", "stream_options", *SETTINGS, *EXTRA_SETTINGS}
        - {"max_tokens", "logprobs", "top_logprobs"}
    )

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key: str | None = None,
        name: str | None = None,
        connect_timeout: float = 10.0,
        read_timeout: float = 300.0,
    ) -> None:
        asked = label("model", model)
        super().__init__(label("name", name) if name else asked, asked)
        self.url = _checked_url(url)
        self._key = None if key is None else plain_text(key, "key")
        self._connect_timeout = seconds("connect_timeout", connect_timeout)
        self._read_timeout = seconds("read_timeout", read_timeout)
        self._limit = "max_tokens"  # or its newer name, where the server wants that
        self._under_way: dict[Task, str] = {}  # and the ids of their requests
        self._owner = 0
        self._made: openai.AsyncOpenAI | None = None
        _import()

    def __repr__(self) -> str:
        return f"OpenAIModel(url={self.url!r}, model={self.model!r}, name={self.name!r})"

    def generate(self, call: Call) -> Result:
        answer = GatheredAnswer()
        return answer.wait(give_up=self._begin(call, answer.put).cancel)

    async def agenerate(self, call: Call) -> Result:
        answer = GatheredAnswer()
        return await answer.wait_async(give_up=self._begin(call, answer.put).cancel)

    def stream(self, call: Call) -> Stream:
        stream = Stream(call.request_id, lambda name: task.cancel())
        task = self._begin(call, stream.mail.put)
        return stream

    def astream(self, call: Call) -> AsyncStream:
        stream = AsyncStream(call.request_id, lambda name: task.cancel())
        task = self._begin(call, stream.mail.put)
        return stream

    async def aembed(
        self, texts: Sequence[str | Sequence[int]], *, timeout: float, request_id: str = ""
    ) -> Embeddings:
        """Make vectors of texts; they are asked for once, and not retried.

        Args:
            texts: or lists of token ids.
            timeout: seconds.
            request_id: what provenance shows.

        Raises:
            GuardedLLMError: the server made none.
        """
        made: Promise[Embeddings] = Promise()
        work = self._embed(list(texts), timeout, request_id, made)
        task = self._under(request_id, work, made.put)
        return await made.wait_async(give_up=task.cancel)

    def cancel(self, request_id: str) -> None:
        for task, name in tuple(self._under_way.items()):
            if name == request_id:
                task.cancel()

    def refuse_what_it_cannot(self, options: Mapping[str, Any]) -> None:
        """Refuse, by its name, what cannot be said in OpenAI's API.

        Raises:
            ModelUnsupported: the call asks for such a thing.
        """
        for name in sorted(options.keys() - _UNDERSTOOD):
            if options[name]:
                raise self.unsupported(f"be asked with {name}: OpenAI's API has no such option")
        for name in options.get("template_kwargs") or ():
            if name != "reasoning_effort":
                raise self.unsupported(f"be given {name}: its template is the server's own")

    def unsupported(self, what: str) -> ModelUnsupported:
        return ModelUnsupported(f"{self._who} cannot {what}.")

    def learns(self, call: Call, error: Exception) -> bool:
        """As of `ExternalModel`; and OpenAI's newer models want another name for the limit, and
        some servers know no `response_format`.
        """
        if not is_wrong_request(error):
            return False
        if self._limit != NEWER_LIMIT and NEWER_LIMIT in str(error):
            self._limit = NEWER_LIMIT
            return True
        form = "response_format"
        if form in str(error) and form not in self._refuses and call.options.get("schema"):
            self._refuses |= {form}
            return True
        return super().learns(call, error)

    @property
    def _who(self) -> str:
        return f"{self.name} at {self.url}"

    def _settings(self, options: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
        """What is sent besides messages, tools and form: option, field of the request, value."""
        fields = {"max_tokens": self._limit}
        given = (*SETTINGS, *EXTRA_SETTINGS)
        found = [(name, fields.get(name, name), options.get(name)) for name in given]
        found.append(("thinking", "reasoning_effort", effort_of(options)))
        found.append(("stream_options", "stream_options", {"include_usage": True}))
        found.append(("stop", "stop", _first_stops(options.get("stop"))))
        sent = []
        for name, field, value in found:
            if not (value is None or value is False or value == () or name in self._refuses):
                sent.append((name, field, value % _SEEDS if name == "seed" else value))
        return sent

    def _begin(self, call: Call, put: Put) -> Task:
        return self._under(call.request_id, self._work(call, put), put)

    def _under(self, request_id: str, work: Coroutine[Any, Any, None], put: Put) -> Task:
        """Begin to ask, under the id of a request."""

        def ended(task: Task) -> None:
            self._under_way.pop(task, None)
            put(RequestCancelled(f"request {request_id} was cancelled."))  # before it began

        task = Task(work, ended)
        self._under_way[task] = request_id
        task.begin()
        return task

    async def _work(self, call: Call, put: Put) -> None:
        """Ask, and hand on what comes; the last of it is the end of the answer or an error."""
        answer = Answer(call, self._who, self.name, self.result)
        try:
            await awithin(call.timeout, self._who, self._read(call, answer, put))
            put(answer.end())
        except asyncio.CancelledError:
            put(answer.cancelled())
            raise
        except Exception as error:
            put(self._as_ours(error, answer.text))

    async def _read(self, call: Call, answer: Answer, put: Put) -> None:
        async with await self._open(call) as stream:
            answer.sampling = {name: value for name, _, value in self._settings(call.options)}
            async for event in stream:
                chunk = answer.add(event)
                if chunk is not None:
                    put(chunk)
                if answer.over:
                    return

    async def _open(self, call: Call) -> Any:
        """The stream of an answer, without what the server refuses to be asked with."""
        self.refuse_what_it_cannot(call.options)
        create = self._client().chat.completions.create
        while True:
            asked = self.understood(call)
            settings = {field: value for _, field, value in self._settings(asked.options)}
            has_format = "response_format" not in self._refuses
            body = body_of(asked, settings, has_format=has_format)
            try:
                return await create(model=self.model, **body)
            except Exception as error:
                if not self.learns(asked, error):
                    raise

    async def _embed(
        self, texts: list[Any], timeout: float, request_id: str, made: Promise[Embeddings]
    ) -> None:
        create = self._client().embeddings.create
        asking = create(model=self.model, input=texts, encoding_format="float")
        try:
            found = await awithin(timeout, self._who, asking)
            made.set(embeddings(found, len(texts), self.name, request_id, self._who))
        except Exception as error:
            made.fail(self._as_ours(error))

    def _as_ours(self, error: Exception, text: str = "") -> Exception:
        from .errors import as_ours, is_clients

        if not is_clients(error):
            return error
        return as_ours(error, self._who, key=self._key, text=text)

    def _client(self) -> openai.AsyncOpenAI:
        """The client; a forked child makes its own."""
        if self._made is None or self._owner != os.getpid():
            client = _import()
            timeout = client.Timeout(self._read_timeout, connect=self._connect_timeout, pool=None)
            self._made = client.AsyncOpenAI(
                base_url=self.url,
                api_key=self._key or NO_KEY,
                max_retries=0,  # `GuardedLLM` retries
                timeout=timeout,
                # The address is its owner's choice, and no server's.
                http_client=client.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout),
            )
            self._owner = os.getpid()
            weakref.finalize(self, _close, self._made, self._owner).atexit = False
        return self._made


def _close(client: openai.AsyncOpenAI, owner: int) -> None:
    """Close the connections of a model that nobody holds any more."""
    if owner == os.getpid():
        Task(client.close(), lambda task: None).begin()


def _first_stops(stop: Any) -> tuple[str, ...]:
    """As many as servers take. The answer is cut at the others here."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())[:STOPS]


def _checked_url(url: str) -> str:
    text = plain_text(url, "url")
    try:
        parts = urllib.parse.urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        known = known and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise InvalidRequest(
            f"url is {shown(text)}; it must be the address of an API.",
            hint='As in "http://127.0.0.1:11434/v1".',
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidRequest(
            "url has a user, a query or a fragment.", hint="A key is given as `key`."
        )
    return text.rstrip("/")


def _import() -> Any:
    try:
        import openai
    except ImportError as error:
        raise InvalidRequest(
            f"OpenAI's client is not installed ({error}).",
            hint='pip install "mlx-guarded-llm[openai]"',
        ) from error
    return openai
