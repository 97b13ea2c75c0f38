"""What clients of HTTP servers meet: the scenarios on our server and mlx_lm's, and the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.clients.__main__ import contenders
from benchmarks.clients.crash import STREAMS, Crash
from benchmarks.clients.incident import Incident
from benchmarks.clients.scenario import OTHER, OWN, Contender, Expected, Row, Scenario
from benchmarks.clients.starvation import Starvation
from benchmarks.clients.table import table
from benchmarks.pace import story
from benchmarks.peers.servers import GuardedServer, MLXLMServer
from benchmarks.side import Heard
from mlx_guarded_llm.testing.tiny import make_tiny_model

INCIDENT = Incident(16)
CRASH = Crash(400)  # tokens; more than are made while the signal is on its way
OURS = Contender(GuardedServer.name, GuardedServer, load_wait=5.0)
THEIRS = Contender(MLXLMServer.name, MLXLMServer)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        name: make_tiny_model(home / name, seed=seed)
        for seed, name in enumerate(("large", "small"))
    }


@pytest.fixture(scope="module")
def expected(models: Mapping[str, Path]) -> Expected:
    return Expected.of(models, [*INCIDENT.asks, *CRASH.asks])


@pytest.mark.parametrize("server", [OURS, THEIRS], ids=lambda server: server.name)
def test_the_incident(server: Contender, models: Mapping[str, Path], expected: Expected) -> None:
    server.known["alone"] = 1.0  # not of interest here
    met = INCIDENT.run(server, models, expected)
    assert (met.row["B is answered by"], met.row["A's answer"]) == (OWN, "whole")
    a, b = met.clients
    assert a["headers"] <= a["first"] <= a["whole"] and b["headers"] <= b["first"] <= b["whole"]
    assert (a["tokens"], b["tokens"]) == tuple(ask.max_tokens for ask in INCIDENT.asks[:2])


def test_a_crash_of_our_engine(models: Mapping[str, Path], expected: Expected) -> None:
    met = CRASH.run(OURS, models, expected)
    assert met.row["whole answers"] == met.row["of the same text"] == f"{STREAMS} of {STREAMS}"
    health = str(met.row["/health then"])
    assert health.startswith("HTTP 200 ok, engine_deaths 1") and "SIGABRT" in health
    assert isinstance(met.row["the next answer's first piece, s"], float)


def test_a_crash_of_another_server(models: Mapping[str, Path], expected: Expected) -> None:
    met = CRASH.run(THEIRS, models, expected)
    assert met.row["whole answers"] == f"0 of {STREAMS}"
    assert met.row["the next answer's first piece, s"] == "none: the server is gone"
    assert all(client["error"] for client in met.clients)


def test_whose_answer_it_is() -> None:
    large, small = story(0, 6), story(0, 6, model="small")
    expected = Expected([(large, "so"), (story(1, 6), "and so"), (small, "thus")])

    def verdict(text: str, error: str = "") -> str:
        heard = Heard(began=0.0, pieces=(), ended=1.0, tokens=6, text=text, error=error)
        return expected.verdict(large, heard)

    assert [verdict(text) for text in ("so", "thus")] == [OWN, OTHER]
    assert verdict("and so") == verdict("") == "another text"
    assert verdict("so", "HTTP 404:\n not here") == "HTTP 404: not here"


def test_who_takes_part() -> None:
    def names(scenario: Scenario, *only: str) -> list[str]:
        return [server.name for server in contenders(scenario, only)]

    waits = [f"mlx-guarded serve, load_wait={wait}" for wait in (120, 5, 0)]
    assert names(INCIDENT, "mlx-guarded serve") == waits
    assert names(CRASH, "mlx-guarded serve", "rapid-mlx") == ["mlx-guarded serve", "rapid-mlx"]
    assert names(Starvation(8), "rapid-mlx") == [
        "rapid-mlx, plain client",
        "rapid-mlx, its client loads",
    ]
    assert len(names(CRASH)) == 5


def test_the_table_has_middles_ratios_within_a_round_and_every_outcome() -> None:
    rounds: dict[str, dict[str, Row]] = {
        "ours": {"1": {"wait, s": 1.0, "got": "all"}, "2": {"wait, s": 2.0, "got": "all"}},
        "peer": {
            "2": {"wait, s": 2.0, "got": "HTTP 503 | busy"},
            "1": {"wait, s": 3.0, "got": "all"},
        },
        "dead": {"1": {"does not run": "needs Metal"}},
    }
    assert table(rounds, ratio="wait, s").splitlines() == [
        "| server | wait, s | of ours | got | does not run |",
        "| --- | --- | --- | --- | --- |",
        "| ours | 1.5 (1 … 2) | 1 | all |  |",
        "| peer | 2.5 (2 … 3) | 2 (1 … 3) | HTTP 503 / busy / all |  |",
        "| dead |  |  |  | needs Metal |",
    ]
