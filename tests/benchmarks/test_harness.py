from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import report
from benchmarks.cases import NAMES, chosen_cases
from benchmarks.harness import LIMIT, OURS, Case, Comparison, Failed, Figure, compare, whole
from benchmarks.ours import Ours
from benchmarks.raw import Raw
from benchmarks.side import Ask, CannotRun, Heard, Setup, Side
from mlx_guarded_llm.testing.tiny import make_tiny_model

Say = Callable[[str], None]


class Fake(Side):
    """A side that notes what is done with it, and gives the figures it is told to give."""

    def __init__(self, name: str, log: list[str], values: list[float], *, broken: str = "") -> None:
        super().__init__()
        self.name = name
        self.version = "1.0"
        self.values = iter(values)
        self.closed = 0
        self._log = log
        self._broken = broken

    def open(self, setup: Setup) -> None:
        if self._broken:
            raise CannotRun(self._broken)

    def ask(self, ask: Ask) -> Heard:
        self._log.append(self.name)
        value = next(self.values, None)
        return Heard(
            began=0.0,
            pieces=(1.0,),
            ended=value or 1.0,
            tokens=1,
            text="x",
            error="" if value else "it broke off",
        )

    def close(self) -> None:
        self.closed += 1

    def processes(self) -> list[psutil.Process]:
        return []


def make_case(**changes: Any) -> Case:
    def measure(side: Side) -> Figure:
        (heard,) = whole([side.ask(Ask(messages=[], max_tokens=1))])
        return Figure(value=heard.ended, details={"twice, s": 2 * heard.ended})

    fields: dict[str, Any] = {
        "name": "fake",
        "what": "Asks once.",
        "unit": "s",
        "better": "lower",
        "setup": lambda models: Setup(models=models),
        "measure": measure,
        "aim": "none",
        "aim_ratio": 1.05,
        "warm_up": lambda side: None,
    }
    return Case(**(fields | changes))


def run(case: Case, *sides: Side, rounds: int = 3, say: Say = lambda line: None) -> Comparison:
    return compare(case, sides, {}, rounds, say=say)


@pytest.fixture
def log() -> list[str]:
    """The names of the sides, in the order in which they were asked."""
    return []


def test_the_order_rotates_from_round_to_round(log: list[str]) -> None:
    run(make_case(), *(Fake(name, log, [1.0] * 3) for name in "abc"))
    assert "".join(log) == "abc" + "bca" + "cab"


def test_a_round_that_does_not_count_comes_first_unless_the_case_warms_up(log: list[str]) -> None:
    side = Fake("a", log, [9.0, 1.0, 2.0])
    comparison = run(make_case(warm_up=None), side, rounds=2)
    assert comparison.outcomes[0].values == [1.0, 2.0]


def test_ratios_pair_the_figures_of_one_round(log: list[str]) -> None:
    comparison = run(
        make_case(),
        Fake(LIMIT, log, [1.0, 2.0, 4.0]),
        Fake(OURS, log, [2.0, 2.0, 2.0]),
        Fake("peer", log, [3.0, 8.0, 4.0]),
    )
    assert comparison.ratios(OURS) == [2.0, 1.0, 0.5]
    assert comparison.ahead("peer") == [1.5, 4.0, 2.0]


def test_ahead_turns_round_where_higher_is_better(log: list[str]) -> None:
    sides = [Fake(OURS, log, [2.0] * 3), Fake("peer", log, [1.0] * 3)]
    assert run(make_case(better="higher"), *sides).ahead("peer") == [2.0] * 3


def test_the_reference_takes_the_place_of_the_measure_on_raw_only(log: list[str]) -> None:
    case = make_case(reference=lambda side: Figure(value=7.0))
    comparison = run(case, Fake(LIMIT, log, []), Fake(OURS, log, [1.0] * 3))
    assert [outcome.median for outcome in comparison.outcomes] == [7.0, 1.0]


def test_a_side_that_cannot_run_is_listed_with_its_reason(log: list[str]) -> None:
    broken = Fake("peer", log, [], broken="it needs Metal")
    comparison = run(make_case(), Fake(OURS, log, [1.0] * 3), broken)
    ours, peer = comparison.outcomes
    assert (peer.error, peer.figures) == ("it needs Metal", ())
    assert ours.values == [1.0] * 3
    assert not comparison.failed and broken.closed


def test_a_side_whose_answers_have_errors_has_no_figures_and_is_asked_no_more(
    log: list[str],
) -> None:
    told: list[str] = []
    sides = [Fake(OURS, log, [1.0] * 3), Fake("peer", log, [1.0])]
    comparison = run(make_case(), *sides, say=told.append)
    assert comparison.outcomes[1].error == "it broke off"
    assert comparison.outcomes[1].figures == () and comparison.ratios("peer", to=OURS) == []
    assert log.count("peer") == 2
    assert any("it broke off" in line for line in told)


def test_an_exception_of_a_case_is_named_by_its_kind(log: list[str]) -> None:
    def measure(side: Side) -> Figure:
        raise ZeroDivisionError("by nought")

    comparison = run(make_case(measure=measure), Fake("peer", log, []))
    assert comparison.outcomes[0].error == "ZeroDivisionError: by nought"


@pytest.mark.parametrize("name", [LIMIT, OURS])
def test_a_case_fails_without_figures_of_us_or_of_the_limit(name: str, log: list[str]) -> None:
    assert run(make_case(), Fake(name, log, [], broken="no")).failed


def test_every_side_is_closed_even_if_the_run_is_broken_off(log: list[str]) -> None:
    sides = [Fake("a", log, [1.0]), Fake("b", log, [1.0])]

    def interrupt(side: Side) -> Figure:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_case(measure=interrupt), *sides)
    assert [side.closed for side in sides] == [1, 1]


def test_an_answer_without_tokens_is_not_whole() -> None:
    heard = Heard(began=0.0, pieces=(), ended=1.0, tokens=0, text="")
    with pytest.raises(Failed, match="no token"):
        whole([heard])


# ---- what is reported -------------------------------------------------------------


@pytest.fixture
def comparison(log: list[str]) -> Comparison:
    return run(
        make_case(),
        Fake(LIMIT, log, [1.0, 2.0, 4.0]),
        Fake(OURS, log, [2.0, 2.0, 2.0]),
        Fake("peer", log, [], broken="it needs Metal"),
    )


def test_the_json_holds_every_round_and_where_it_was(
    comparison: Comparison, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    report.write_json(file, [comparison], models={"large": "a"}, device="a chip")
    written = json.loads(file.read_text())
    assert written["machine"]["device"] == "a chip" and written["models"] == {"large": "a"}
    assert {"mlx", "mlx-lm"} <= written["versions"].keys()
    (case,) = written["cases"]
    limit, ours, peer = case["sides"]
    assert limit["rounds"][1] == {"value": 2.0, "twice, s": 4.0}
    assert ours["of_raw"] == [2.0, 1.0, 0.5] and ours["version"] == "1.0"
    assert (peer["error"], peer["median"], peer["rounds"]) == ("it needs Metal", None, [])


def test_the_table_fits_a_terminal_and_names_who_did_not_run(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    report.show(comparison)
    out = capsys.readouterr().out
    assert all(len(line) <= report.WIDTH for line in out.splitlines())
    assert "1.000 (0.500 … 2.000)" in out
    assert "peer: no figure. it needs Metal" in out


def test_the_plot_is_an_image(comparison: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "out.png"
    report.plot(file, [comparison], title="a title")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_every_case_there_is_can_be_named() -> None:
    folder = Path(report.__file__).with_name("cases")
    modules = {file.stem for file in folder.glob("*.py") if "\ndef case(" in file.read_text()}
    assert modules == set(NAMES)


# ---- the two sides that are always there --------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        name: make_tiny_model(home / name, seed=seed)
        for seed, name in enumerate(("large", "small"))
    }


@pytest.fixture(params=[Ours, Raw])
def side(request: pytest.FixtureRequest) -> Any:
    side: Side = request.param()
    yield side
    side.close()


def hello(model: str = "large", **options: Any) -> Ask:
    messages = [{"role": "user", "content": "Hello?"}]
    return Ask(messages=messages, max_tokens=6, model=model, options=options)


def test_a_side_answers_sleeps_wakes_and_leaves_no_process(
    side: Side, models: Mapping[str, Path]
) -> None:
    side.open(Setup(models=models))
    first = side.ask(hello())
    assert (first.tokens, first.error) == (6, "") and first.pieces
    processes = side.processes()
    with side.asleep():
        assert {process.status() for process in processes} == {psutil.STATUS_STOPPED}
    assert side.ask(hello()).text == first.text
    side.close()
    assert processes and not any(process.is_running() for process in processes)


def test_a_side_answers_several_models_and_samplings_at_once(
    side: Side, models: Mapping[str, Path]
) -> None:
    side.open(Setup(models=models))
    mixed = [hello(), hello(temperature=0.7, seed=1, top_k=5), hello(repetition_penalty=1.2)]
    for asks in (mixed, [hello(), hello("small")]):
        heard = side.together(asks)
        assert [(one.tokens, one.error) for one in heard] == [(6, "")] * len(asks)


def test_a_side_with_memory_for_one_model_has_one_at_a_time(
    side: Side, models: Mapping[str, Path]
) -> None:
    side.open(Setup(models=models, fits_one=True))
    for model in ("small", "large", "small"):
        assert not side.ask(hello(model)).error
    if isinstance(side, Ours):
        resident = [info.name for info in side.backend.models() if info.state == "resident"]
        assert resident == [str(models["small"])]


def test_a_side_that_finds_no_model_cannot_run(side: Side, tmp_path: Path) -> None:
    with pytest.raises(CannotRun):
        side.open(Setup(models={"large": tmp_path}))
    assert side.processes() == []


def test_raw_tells_how_its_process_ended(models: Mapping[str, Path]) -> None:
    side = Raw()
    side.open(Setup(models=models))
    try:
        (process,) = side.processes()
        process.kill()
        assert side.ask(hello()).error.startswith("the process ended")
        assert side.processes() == []
    finally:
        side.close()


def test_raw_keeps_the_prefix_of_a_chat(models: Mapping[str, Path]) -> None:
    side = Raw()
    side.open(Setup(models=models, prefix_cache=True))
    try:
        first, again = side.ask(hello()), side.ask(hello())
        assert (first.text, first.tokens) == (again.text, again.tokens)
    finally:
        side.close()


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["batch"], ["batch-1", "batch-8", "batch-32"]),
        (["newcomer-0", "batch-32"], ["batch-32", "newcomer-0"]),
        (["two_models", "two-models"], ["two-models", "two-models-mix", "two-models-chain"]),
        (["overhead"], []),
    ],
)
def test_cases_by_module_or_by_name(names: list[str], cases: list[str]) -> None:
    args = argparse.Namespace(names=names, tokens=24, gpu=False, passages=None)
    assert [case.name for case in chosen_cases(args)] == cases


def test_no_name_means_every_case() -> None:
    args = argparse.Namespace(names=[], tokens=24, gpu=False, passages=None)
    assert len({case.name for case in chosen_cases(args)}) == len(chosen_cases(args)) > len(NAMES)
