"""The backend that those share who bring none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mlx_guarded_llm import BaseBackend, GuardedLLM, default_backend
from mlx_guarded_llm.errors import InvalidRequest
from tests.conftest import MakeModel


@pytest.fixture(autouse=True)
def _closed_afterwards() -> Iterator[None]:
    yield
    default_backend().close()


def test_everybody_gets_the_same_one() -> None:
    found: list[BaseBackend] = []
    threads = [threading.Thread(target=lambda: found.append(default_backend())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({id(backend) for backend in found}) == 1


def test_options_are_taken_before_its_first_use_only() -> None:
    assert default_backend(timeout=77.0).timeout == 77.0
    with pytest.raises(InvalidRequest, match="timeout"):
        default_backend(timeout=78.0)
    assert default_backend().timeout == 77.0


def test_a_new_one_follows_one_that_was_closed() -> None:
    first = default_backend()
    first.close()
    assert first.closed
    assert default_backend() is not first
    assert not default_backend().closed


def test_guarded_llms_without_a_backend_use_it(scripted: MakeModel) -> None:
    model = scripted("It is 42.")
    assert GuardedLLM(None, model).generate("?").text == "It is 42."
    assert [info.name for info in default_backend().models()] == [model]
