"""Models from the Hugging Face hub: its cache, its downloads, its errors."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import GuardedLLMError, ModelNotFound, ModelUnsupported, PullFailed
from .disk import causes, disk_full, free_bytes, is_disk_full, require_space, tree_size
from .spec import OnProgress, Progress
from .weights import INDEX, weight_files

# Weights as safetensors, JSON and tokenizers; no code and no pickles, ever.
ALLOW = [
    "model*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.tiktoken",
    "tokenizer.model",
    "spiece.model",
]
MAIN = "main"  # the revision that None means
STALL_TIMEOUT = 300.0  # seconds without a new byte on the disk
_INTERVAL = 0.25  # seconds between checks of the disk
_TOLD = 10.0  # seconds for the hub to say what a repository has
_SETTINGS = frozenset({
    "config.json", "generation_config.json", "hf_quant_config.json", "tokenizer_config.json", INDEX,
})  # fmt: skip
_AT_ONCE = 8  # headers read side by side


def cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a downloaded revision, or None. This does not use the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=ALLOW
            )
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def repositories() -> list[str]:
    """The repositories of which something is in the cache, by the names of its folders."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return sorted(folder.name.split("--", 1)[1].replace("--", "/") for folder in folders)


def fetch(repository: str, revision: str | None, *, progress: OnProgress | None = None) -> Path:
    """Download a revision, continuing where an earlier attempt stopped.

    Args:
        repository: "org/name".
        revision: branch, tag or commit; None is the main branch.
        progress: called in this thread with stage "download"; an exception from it ends the call,
            although the current file may still be completed.

    Returns:
        The snapshot's folder.

    Raises:
        ModelNotFound: no such repository or revision.
        ModelUnsupported: the repository contains no safetensors.
        PullFailed: it is gated, there is no network or no space on the disk, or there was no
            progress for `STALL_TIMEOUT` seconds. What was downloaded is kept.
    """
    from huggingface_hub import snapshot_download

    storage = _storage(repository)
    with _typed_errors(repository, revision, storage):
        plan = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=ALLOW,
            tqdm_class=_silent_bar(),
            dry_run=True,
        )
    if not any(file.filename.endswith(".safetensors") for file in plan):
        raise _no_safetensors(repository)
    missing = sum(file.file_size or 0 for file in plan if file.will_download)
    total = sum(file.file_size or 0 for file in plan)
    before = tree_size(storage)
    partial = sum(file.stat().st_size for file in storage.glob("blobs/*.incomplete"))
    require_space(storage, missing - partial, repository)

    def report() -> int:
        now = tree_size(storage)
        if progress:
            have = total - missing + partial + now - before
            progress(Progress("download", max(0, min(have, total)), total))
        return now

    with _typed_errors(repository, revision, storage):
        return _download(repository, revision, report)


def fetch_outline(repository: str, revision: str | None, folder: Path) -> None:
    """Write a folder that has the shapes of a model, but none of its numbers.

    Only the settings and the headers of the weights are read from the hub. The weight files have
    their real size, but are holes that take no space. The tokenizer is empty.

    Args:
        repository: "org/name".
        revision: branch, tag or commit; None is the main branch.
        folder: where to write; it must exist.

    Raises:
        ModelNotFound: no such repository or revision.
        ModelUnsupported: the repository contains no safetensors.
        PullFailed: it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    with _typed_errors(repository, revision, folder):
        info = api.model_info(repository, revision=revision, timeout=_TOLD)
        names = {file.rfilename for file in info.siblings or ()}
        for name in names & _SETTINGS:
            hf_hub_download(
                repository, name, revision=info.sha, local_dir=folder, tqdm_class=_silent_bar()
            )
        files = weight_files(folder, names)
        if not files:
            raise _no_safetensors(repository)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            headers = pool.map(
                lambda file: api.parse_safetensors_file_metadata(
                    repository, file.name, revision=info.sha
                ),
                files,
            )
            for file, header in zip(files, headers, strict=True):
                _write_hole(file, header.tensors)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def _write_hole(file: Path, tensors: Any) -> None:
    """A safetensors file with this header, and nothing but a hole behind it."""
    entries = {
        name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
        for name, t in tensors.items()
    }
    raw = json.dumps(entries).encode()
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    with file.open("wb") as opened:
        opened.write(len(raw).to_bytes(8, "little") + raw)
        opened.truncate(8 + len(raw) + end)


def _no_safetensors(repository: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{repository} has no model*.safetensors; other weights are not read.",
        hint="Look for an MLX version of the model, for example in mlx-community.",
    )


def _download(repository: str, revision: str | None, report: Callable[[], int]) -> Path:
    """Downloads in a separate thread, so that a stalled transfer cannot block the caller."""
    from huggingface_hub import snapshot_download

    outcome: queue.Queue[str | BaseException] = queue.Queue()

    def work() -> None:
        try:
            outcome.put(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=ALLOW,
                    tqdm_class=_silent_bar(),
                )
            )
        except BaseException as error:  # it is raised again in the caller's thread
            outcome.put(error)

    threading.Thread(target=work, name=f"fetch {repository}", daemon=True).start()
    size, since = -1, time.monotonic()
    while True:
        try:
            result = outcome.get(timeout=_INTERVAL)
        except queue.Empty:
            now = report()
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_TIMEOUT:
                raise PullFailed(
                    f"{repository}: nothing arrived for {STALL_TIMEOUT:.0f} s.",
                    hint="Check the network and try again; what arrived is kept.",
                ) from None
            continue
        if isinstance(result, BaseException):
            raise result
        report()
        return Path(result)


def on_disk() -> list[tuple[str, Path, int]]:
    """(repository, folder, bytes) of each model in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(HF_HUB_CACHE)
    except CacheNotFound:
        return []
    return [
        (repo.repo_id, max(repo.revisions, key=lambda r: r.last_modified).snapshot_path,
         repo.size_on_disk)
        for repo in cache.repos
        if repo.repo_type == "model" and repo.revisions
    ]  # fmt: skip


def remove(repository: str, revision: str | None) -> int:
    """Delete a revision (None: all) from the hub's cache. Returns the bytes freed.

    Raises:
        PullFailed: a file could not be deleted.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(HF_HUB_CACHE)
    except CacheNotFound:
        return 0
    commits = [
        found.commit_hash
        for repo in cache.repos
        if repo.repo_type == "model" and repo.repo_id == repository
        for found in repo.revisions
        if revision is None or revision == found.commit_hash or revision in found.refs
    ]
    if not commits:
        return 0
    strategy = cache.delete_revisions(*commits)
    try:
        strategy.execute()
    except OSError as error:
        raise PullFailed(
            f"{repository} cannot be removed: {error}.",
            hint="Delete it with `hf cache rm`.",
        ) from error
    return strategy.expected_freed_size


def _silent_bar() -> type[Any]:
    """A progress bar that draws nothing: progress goes to the caller's callback."""
    from huggingface_hub.utils.tqdm import tqdm

    class SilentBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return SilentBar


def _storage(repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


@contextlib.contextmanager
def _typed_errors(repository: str, revision: str | None, storage: Path) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into one of this library's errors."""
    try:
        yield
    except GuardedLLMError:
        raise
    except Exception as error:
        raise _typed(error, repository, revision, storage) from error


def _typed(
    error: Exception, repository: str, revision: str | None, storage: Path
) -> GuardedLLMError:
    from huggingface_hub import errors as hf

    # A dry run or a missing cache entry may wrap the error with the reason.
    links = list(causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    # The order matters: the error for a gated repository is a subclass of "not found".
    if is_any(hf.GatedRepoError):
        return PullFailed(
            f"{repository} is gated and you have no access.",
            hint=f"Accept its terms at https://huggingface.co/{repository}, then `hf auth login`.",
        )
    if is_any(hf.RepositoryNotFoundError, hf.HFValidationError):
        return ModelNotFound(
            f"there is no repository {repository} on the Hugging Face hub.",
            hint="Check the spelling; if it is private, run `hf auth login`.",
        )
    if is_any(hf.RevisionNotFoundError):
        return ModelNotFound(
            f"{repository} has no revision {revision!r}.",
            hint="Check the branch, tag or commit.",
        )
    if is_disk_full(error):
        return disk_full(storage, repository, needed=None, free=free_bytes(storage))
    if is_any(PermissionError):
        return PullFailed(
            f"{repository} cannot be written to {storage}.",
            hint="Make the folder writable, or set HF_HOME to one that is.",
        )
    if is_any(hf.OfflineModeIsEnabled):
        return PullFailed(
            f"{repository} is not on disk and the network is off (HF_HUB_OFFLINE).",
            hint="Unset HF_HUB_OFFLINE and fetch it once.",
        )
    responses = (getattr(link, "response", None) for link in links)
    status = next((response.status_code for response in responses if response is not None), None)
    if status is not None:
        return PullFailed(
            f"the Hugging Face hub answered {status} for {repository}.",
            hint="Try again later; what arrived is kept.",
        )
    # The first cause says more than the errors that wrap it.
    reason = (str(links[-1]).strip() or type(error).__name__).splitlines()[0]
    if is_any(ConnectionError, socket.gaierror):
        return PullFailed(
            f"{repository} is not on disk, and the Hugging Face hub is out of reach: {reason}.",
            hint="Check the network, the proxy and HF_ENDPOINT, and try again; what arrived is "
            "kept. smollm2-135m needs no hub.",
        )
    return PullFailed(
        f"{repository} could not be fetched: {reason}.",
        hint="Check the network and try again; what arrived is kept.",
    )
