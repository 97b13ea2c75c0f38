"""What a server is told: one file, variables of the environment over it, flags over those."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ..errors import InvalidRequest
from ..models import LOAD_OPTIONS

PREFIX = "MLX_GUARDED_"
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the file; a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Retry(Section):
    """How often and how long a model is asked again; see `RetryPolicy`."""

    attempts: Count = Field(default=3, description="Tries of each model, the first included.")
    deadline: Seconds = Field(default=3600.0, description="Seconds for all of them together.")
    attempt_timeout: Seconds | None = Field(default=None, description="Seconds for one of them.")
    initial_wait: Seconds = Field(
        default=0.5, description="Seconds before the second; doubled for each later one."
    )
    max_wait: Seconds = Field(default=30.0, description="Seconds between two, at most.")
    jitter: Seconds = Field(default=0.5, description="Seconds by which a wait is longer at random.")
    max_tokens_cap: Count | None = Field(
        default=None, description="Most tokens when an answer that was cut off is tried again."
    )


class ModelEntry(Section):
    """A model that is served, under the name of its table."""

    model: str = Field(
        default="", description="Alias, folder, repository, or name at the url; if empty, its name."
    )
    url: str = Field(
        default="", description="Of an OpenAI-compatible API that has it: http://127.0.0.1:11434/v1"
    )
    key_env: str = Field(default="", description="Variable that has the key of the url.")
    connect_timeout: Seconds = Field(default=10.0, description="Seconds to connect to the url.")
    read_timeout: Seconds = Field(
        default=300.0, description="Seconds in which the url must say something, or something more."
    )
    aliases: tuple[str, ...] = Field(
        default=(),
        description="Other names clients may use; claude-* is all that begin so.",
    )
    fallbacks: tuple[str, ...] = Field(default=(), description="Asked when this one fails.")
    on_fallback: Literal["raise", "mark", "hold"] = Field(
        default="raise",
        description="A fallback's answer: an error, marked, or kept for the end.",
    )
    on_degraded: Literal["raise", "mark"] = Field(
        default="mark", description="An empty or broken answer is marked, or is an error."
    )
    retry: Retry = Field(default=Retry(), description="See docs/concepts/provenance.md.")
    max_tokens: Count = Field(default=8192, description="Of an answer, unless asked for others.")
    token_ids: str = Field(
        default="refuse",
        description="Ids for text: refused, the model's own (\"model\"), or tiktoken's by name.",
    )
    pin: bool = Field(default=False, description="Loaded at the start, and never evicted.")
    preload: bool = Field(default=False, description="Loaded at the start.")
    revision: str | None = Field(default=None, description="Branch, tag or commit.")
    adapter_path: str | None = Field(default=None, description="Folder of LoRA adapters.")
    kv_bits: int | None = Field(default=None, description="Bits of the KV cache: 2, 4 or 8.")
    kv_group_size: int | None = Field(default=None, description="Values of it that share a scale.")
    context_window: Count | None = Field(default=None, description="Tokens it may attend to.")
    draft: str | None = Field(
        default=None, description='Smaller model that drafts its answers, or "prompt".'
    )
    hosts: str | tuple[str, ...] | None = Field(
        default=None, description='Machines it is spread over: addresses, a hostfile, or "local:2".'
    )

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        """Refuse what only a model of this machine, or only one of another server, can have."""
        local = {"pin", "preload", *LOAD_OPTIONS} - {"context_window"}
        beside = local if self.url else {"key_env", "connect_timeout", "read_timeout"}
        default = ModelEntry.model_fields
        for name in sorted(beside & self.model_fields_set):
            if getattr(self, name) not in (default[name].default, "", None):
                raise ValueError(f"{name} is for models {'without' if self.url else 'with'} a url")
        return self


class Key(Section):
    """A key that clients show, under the name of its table."""

    key: SecretStr = Field(description="The secret itself.")
    models: tuple[str, ...] = Field(default=(), description="What it may use; everything if empty.")
    admin: bool = Field(
        default=False,
        description="May load, unload and pin models, and see /metrics and /guard.",
    )


class GuardSection(Section):
    """The backend; see docs/concepts/scheduling.md and docs/concepts/memory.md."""

    load_wait: Seconds = Field(default=120.0, description="Seconds a load waits for generations.")
    fairness_window: Seconds = Field(default=5.0, description="Seconds newcomers may pass a load.")
    batch_wait: Seconds = Field(default=30.0, description="Seconds batch lets others pass.")
    on_load_deadline: Literal["pause", "raise"] = Field(
        default="pause", description="After load_wait: pause the generations, or fail the load."
    )
    memory_budget: int | str | None = Field(default=None, description='Bytes, or "12GB".')
    keep_alive: Seconds | None = Field(default=None, description="Seconds an idle model is kept.")
    prefix_cache: int | str | None = Field(default=None, description="Bytes for shared prompts.")
    wired_memory: int | str | None = Field(
        default=None, description='Metal: bytes kept wired, or "recommended".'
    )
    max_queue: Count = Field(default=1024, description="Requests that may wait.")
    max_active: Count = Field(default=32, description="Requests of a model decoded together.")
    timeout: Seconds = Field(default=3600.0, description="Seconds a request may take.")
    stall_timeout: Seconds = Field(default=60.0, description="Seconds without progress, if hung.")
    isolation: Literal["process", "thread"] = Field(
        default="process", description="Where MLX runs; a thread ends the server if MLX aborts."
    )
    offline: bool = Field(default=False, description="Never fetch a model, configured or not.")
    count_others: bool = Field(
        default=True, description="The budget counts what other programs of the user hold."
    )


class Limits(Section):
    """The most that one request may bring."""

    head_seconds: Annotated[float, Field(gt=0)] = Field(
        default=20.0, description="Seconds in which the headers of a request must arrive."
    )
    body_bytes: Count = Field(default=16 * 2**20, description="Bytes of a body.")
    body_seconds: Seconds = Field(default=60.0, description="Seconds in which it must arrive.")
    send_seconds: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Seconds in which a client must take some of its answer."
    )
    messages: Count = Field(default=4096, description="Messages of a conversation.")
    tools: Count = Field(default=256, description="Tools that a model may call.")
    schema_bytes: Count = Field(default=256 * 2**10, description="Bytes of a JSON Schema.")
    choices: Count = Field(default=16, description="Answers of one request.")
    texts: Count = Field(default=2048, description="Texts to embed.")
    connections: Count = Field(default=1024, description="Open at once.")
    conversations_bytes: Count = Field(
        default=64 * 2**20, description="Bytes kept for previous_response_id."
    )


class Settings(BaseSettings):
    """All of it. `load_settings` puts the file, the environment and the flags together."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="Another than loopback needs a key.")
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes a free one.")
    uds: Path | None = Field(default=None, description="A Unix socket instead of host and port.")
    uds_mode: str = Field(default="600", pattern="^[0-7]{3}$", description="Its permissions.")
    share: bool = Field(
        default=False,
        description="Be this user's shared server, which all programs of the user find.",
    )
    models: dict[str, ModelEntry] = Field(
        default_factory=dict, description="A table for each model, under its name."
    )
    models_roots: tuple[Path, ...] = Field(
        default=(),
        description="Folders; every model below is served, by its path.",
    )
    any_model: bool = Field(
        default=False,
        description="Serve every alias, folder and repository that is asked for.",
    )
    keys: dict[str, Key] = Field(
        default_factory=dict, description="A table for each key, under the name of who has it."
    )
    key_file: Path | None = Field(default=None, description='Lines "name key model,model admin".')
    allowed_hosts: tuple[str, ...] = Field(default=(), description="Names clients may reach it by.")
    allowed_origins: tuple[str, ...] = Field(default=(), description="Web pages that may use it.")
    heartbeat: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="Seconds between comments in a stream that waits."
    )
    early_errors: Seconds = Field(
        default=2.0,
        description="Seconds a stream's headers wait for an early error.",
    )
    log_level: Literal["debug", "info", "warning", "error", "off"] = Field(
        default="warning", description="To stderr; info has a line for each request."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="A line of text, or an object of JSON on each line."
    )
    log_file: Path | None = Field(
        default=None, description="Instead of stderr once it serves; of bounded size."
    )
    drain: Seconds = Field(default=30.0, description="Seconds that answers get at the end.")
    guard: GuardSection = GuardSection()
    limits: Limits = Limits()

    @property
    def only_shared(self) -> bool:
        """Whether it listens at the socket of the shared server and nowhere else."""
        asked = {"host", "port"} & self.model_fields_set or self.uds is not None
        return self.share and not asked

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller gives: `load_settings` reads the environment."""
        return (init_settings,)


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each of them comes from.

    Attributes:
        origins: by dotted name; what is not in it is a default.
    """

    settings: Settings
    origins: Mapping[str, str]


def load_settings(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """Read a file, put the environment over it and the flags over both.

    Args:
        file: TOML.
        flags: as the file has them, nested.

    Raises:
        InvalidRequest: a name is unknown or a value wrong; the message says where it stands.
    """
    layers = [("flag", dict(flags or {})), ("environment", _environment())]
    if file is not None:
        layers.append((str(file), _read(file)))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in reversed(layers):
        _merge(merged, values)
        for name, value in _leaves(values):
            if value == {}:  # a table without a line says nothing
                continue
            stale = [known for known in origins if _within(known, name) or _within(name, known)]
            for known in stale:
                del origins[known]
            origins[name] = origin
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        where = next((o for n, o in origins.items() if _within(n, name) or _within(name, n)), "")
        raise InvalidRequest(
            f"{name}: {first['msg']}" + (f" ({where})." if where else "."),
            hint="`mlx-guarded serve --write-config` writes a file with every setting.",
        ) from None
    return Loaded(settings, origins)


def in_force(loaded: Loaded) -> Iterator[tuple[str, Any, str]]:
    """Every setting by dotted name: its value, secrets hidden, and where it comes from."""
    for name, value in _leaves(loaded.settings.model_dump(mode="json")):
        origin = next((o for n, o in loaded.origins.items() if _within(name, n)), "default")
        yield name, value, origin


def _environment() -> dict[str, Any]:
    source = EnvSettingsSource(Settings, env_prefix=PREFIX, env_nested_delimiter="__")
    return source()


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} is no TOML ({error}).") from error


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
