"""Fetching from a hub on this machine, and every way in which that may fail."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors as hf
import pytest

from mlx_guarded_llm.errors import (
    ModelError,
    ModelInvalid,
    ModelNotFound,
    ModelUnsupported,
    PullFailed,
)
from mlx_guarded_llm.models import Catalog, Progress, disk, hub
from tests.unit.models.fake_hub import COMMIT, FakeHub
from tests.unit.models.folders import make_folder


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(huggingface_hub.constants, "DEFAULT_ETAG_TIMEOUT", 2)
    monkeypatch.chdir(tmp_path)
    return Catalog(cache_dir=tmp_path / "cache")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = make_folder(tmp_path / "origin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"modeling.py": b"evil", "pytorch_model.bin": b"pickle", "README.md": b"#"}
    with FakeHub(files) as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
        )
        yield running


def test_a_repository_is_fetched_once_and_then_works_offline(
    catalog: Catalog, server: FakeHub
) -> None:
    spec = catalog.resolve("org/repo")
    assert catalog.find(spec) is None
    told: list[Progress] = []
    files = catalog.ensure(spec, progress=told.append)
    assert files.path.name == COMMIT
    download = [progress for progress in told if progress.stage == "download"]
    assert download[-1].done == download[-1].total
    server.status = 500
    assert catalog.ensure(spec, offline=True) == files == catalog.ensure(spec)


def test_code_and_pickles_are_never_fetched(catalog: Catalog, server: FakeHub) -> None:
    catalog.ensure(catalog.resolve("org/repo"))
    assert sorted(set(server.served)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_repository_is_listed_and_removed(catalog: Catalog, server: FakeHub) -> None:
    spec = catalog.resolve("org/repo")
    path = catalog.ensure(spec).path
    [(repository, listed, size)] = hub.on_disk()
    assert (repository, listed) == ("org/repo", path)
    assert size > 0
    assert catalog.remove("org/repo") > 0
    assert catalog.remove("org/repo") == 0
    assert catalog.find(spec) is None


def test_a_download_that_was_cut_goes_on(catalog: Catalog, server: FakeHub) -> None:
    spec = catalog.resolve("org/repo")
    server.cut = 30
    with pytest.raises(PullFailed, match="could not be fetched"):
        catalog.ensure(spec)
    assert catalog.find(spec) is None
    server.cut = None
    assert catalog.ensure(spec).path.name == COMMIT


def test_a_repository_without_safetensors_is_refused_before_a_byte(
    catalog: Catalog, server: FakeHub
) -> None:
    del server.files["model.safetensors"]
    with pytest.raises(ModelUnsupported, match="no model"):
        catalog.ensure(catalog.resolve("org/repo"))
    assert server.served == []


def test_a_broken_repository_says_what_is_broken(catalog: Catalog, server: FakeHub) -> None:
    del server.files["tokenizer.json"]
    with pytest.raises(ModelInvalid, match="no tokenizer"):
        catalog.ensure(catalog.resolve("org/repo"))


def test_a_full_disk_is_seen_before_a_byte(
    catalog: Catalog, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10_000_000)
    with pytest.raises(PullFailed, match=r"needs 0\.00 GB .* 0\.01 GB free"):
        catalog.ensure(catalog.resolve("org/repo"))
    assert server.served == []


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (404, "RepoNotFound", ModelNotFound, "no repository org/repo"),
        (401, "RepoNotFound", ModelNotFound, "no repository org/repo"),
        (403, "GatedRepo", PullFailed, "gated"),
        (500, "", PullFailed, "answered 500 for org/repo"),
    ],
)
def test_the_hubs_answers_become_typed_errors(
    catalog: Catalog,
    server: FakeHub,
    status: int,
    code: str,
    error: type[ModelError],
    message: str,
) -> None:
    server.status, server.code = status, code
    with pytest.raises(error, match=message) as caught:
        catalog.ensure(catalog.resolve("org/repo"))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_not_found(catalog: Catalog, server: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="revision 'v9'"):
        catalog.ensure(catalog.resolve("org/repo", revision="v9"))


def test_without_a_network_the_error_says_so(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullFailed, match="hub is out of reach") as caught:
        catalog.ensure(catalog.resolve("org/repo"))
    assert "network" in caught.value.hint


def test_hf_hub_offline_is_honoured(
    catalog: Catalog, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE"):
        catalog.ensure(catalog.resolve("org/repo"))


# ---- errors that no server can be made to give ---------------------------------------


def _plan(**_: Any) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(filename="model.safetensors", file_size=1000, will_download=True),
        SimpleNamespace(filename="config.json", file_size=None, will_download=False),
    ]


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), PullFailed, "more than that .* GB free"),
        (PermissionError(errno.EACCES, "denied"), PullFailed, "cannot be written"),
        (hf.HFValidationError("odd name"), ModelNotFound, "no repository"),
        (hf.LocalEntryNotFoundError("no connection\nmore"), PullFailed, "no connection"),
        (RuntimeError("xet: reset"), PullFailed, "xet: reset"),
        (ValueError(), PullFailed, "ValueError"),
    ],
)
def test_what_a_download_raises_is_typed(
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    error: type[ModelError],
    message: str,
) -> None:
    def download(repository: str, *, dry_run: bool = False, **options: Any) -> Any:
        if dry_run:
            return _plan(**options)
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(error, match=message) as caught:
        hub.fetch("org/repo", None)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_disk_that_filled_is_found_behind_other_errors(catalog: Catalog) -> None:
    outer = RuntimeError("download failed")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left")
    assert disk.is_disk_full(outer)
    assert not disk.is_disk_full(RuntimeError())


def test_a_transfer_that_stalls_does_not_hold_the_caller(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, *, dry_run: bool = False, **options: Any) -> Any:
        if dry_run:
            return _plan(**options)
        time.sleep(5)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "STALL_TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(PullFailed, match="nothing arrived"):
        hub.fetch("org/repo", None)
    assert time.monotonic() - start < 4


def test_what_the_progress_callback_raises_reaches_the_caller(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, *, dry_run: bool = False, **options: Any) -> Any:
        if dry_run:
            return _plan(**options)
        time.sleep(1)

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(KeyboardInterrupt):
        hub.fetch("org/repo", None, progress=stop)


def test_no_cache_at_all_is_empty(catalog: Catalog) -> None:
    assert hub.on_disk() == []
    assert hub.remove("org/repo", None) == 0
    assert hub.cached("org/repo", None) is None
