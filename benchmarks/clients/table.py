"""Rounds of a scenario as a table in Markdown: a row for each server, a column for each figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.clients.scenario import Row

Rounds = Mapping[str, Row]


def table(rounds: Mapping[str, Rounds], *, ratio: str = "") -> str:
    """All servers' rounds beside each other.

    Args:
        rounds: of each server, by name, the first one ours; a row for each, by its name.
        ratio: a column; each server's ratio to ours, within a round, is told after it.
    """
    rows_of_all = [row for rows in rounds.values() for row in rows.values()]
    columns = list(dict.fromkeys(name for row in rows_of_all for name in row))
    ours = next(iter(rounds.values()))
    lines = []
    for name, rows in rounds.items():
        cells = [name]
        for column in columns:
            cells.append(_together(row.get(column, "") for row in rows.values()))
            if column == ratio:
                cells.append("1" if rows is ours else _together(_ratios(rows, ours, column)))
        lines.append(cells)
    heads = ["server"]
    for column in columns:
        heads += [column, "of ours"] if column == ratio else [column]
    return "\n".join(map(_line, [heads, ["---"] * len(heads), *lines]))


def _together(values: Iterable[float | str]) -> str:
    """The middle of numbers, with least and most; different texts one after the other."""
    values = list(values)
    numbers = [value for value in values if isinstance(value, float)]
    texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    told = [_spread(numbers)] if numbers else []
    return " / ".join([*told, *texts])


def _spread(numbers: Sequence[float]) -> str:
    middle = _number(statistics.median(numbers))
    if len(numbers) == 1:
        return middle
    return f"{middle} ({_number(min(numbers))} … {_number(max(numbers))})"


def _ratios(rows: Rounds, ours: Rounds, column: str) -> list[float | str]:
    both = [name for name in rows if name in ours]
    pairs = [(rows[name].get(column), ours[name].get(column)) for name in both]
    return [a / b for a, b in pairs if isinstance(a, float) and isinstance(b, float) and b]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
