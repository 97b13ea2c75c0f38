"""What came of the cases: a table, a JSON file and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from .harness import LIMIT, OURS, Comparison, Outcome

WIDTH = 100
PACKAGES = ("mlx", "mlx-lm", "transformers", "numpy")


def show(comparison: Comparison) -> None:
    """Print the table of a case."""
    case = comparison.case
    table = Table(box=None, pad_edge=False)
    table.add_column("side")
    table.add_column(f"{case.unit}, {case.better} is better", justify="right")
    for column in (f"of {LIMIT}", "we are ahead of it"):
        table.add_column(column, justify="right")
    for outcome in comparison.outcomes:
        if outcome.error:
            continue
        side = outcome.side
        table.add_row(
            side,
            f"{_number(outcome.median)} ({_span(outcome.values)})",
            "" if side == LIMIT else _ratios(comparison.ratios(side)),
            "" if side == OURS else _ratios(comparison.ahead(side)),
        )
    console = Console(width=WIDTH, highlight=False)
    console.print(table)
    for outcome in comparison.outcomes:
        for line in _remarks(outcome):
            text = textwrap.fill(f"{outcome.side}: {line}", WIDTH, subsequent_indent="    ")
            console.print(text, markup=False)
    console.print(f"aim: {case.aim}", markup=False)


def _remarks(outcome: Outcome) -> list[str]:
    if outcome.error:
        return [f"no figure. {textwrap.shorten(outcome.error, 400)}", *outcome.notes]
    details = ", ".join(f"{name} {_number(value)}" for name, value in outcome.details.items())
    return [*([details] if details else []), *outcome.notes]


def _ratios(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})"


def _span(values: Sequence[float]) -> str:
    return f"{_number(min(values))} … {_number(max(values))}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def write_json(
    path: Path, comparisons: Sequence[Comparison], *, models: Mapping[str, str], device: str
) -> None:
    """Write all that was measured, of every round, and where.

    Args:
        models: what "large" and "small" stood for.
        device: what MLX computes on.
    """
    document = {
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "machine": {
            "device": device,
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "python": platform.python_version(),
        },
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "models": dict(models),
        "cases": [_case(comparison) for comparison in comparisons],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _case(comparison: Comparison) -> dict[str, Any]:
    case = comparison.case
    return {
        "name": case.name,
        "what": case.what,
        "unit": case.unit,
        "better": case.better,
        "aim": case.aim,
        "sides": [
            {
                "name": outcome.side,
                "version": outcome.version,
                "notes": outcome.notes,
                "error": outcome.error,
                "rounds": [{"value": f.value, **f.details} for f in outcome.figures],
                "median": outcome.median if outcome.figures else None,
                "of_raw": comparison.ratios(outcome.side),
                "ours_ahead": comparison.ahead(outcome.side),
            }
            for outcome in comparison.outcomes
        ],
    }


def plot(path: Path, comparisons: Sequence[Comparison], *, title: str) -> None:
    """Draw a panel for each case: a bar for each side, and whiskers from least to most.

    A bar is the side's ratio to raw mlx-lm, or to us where raw takes no part.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = [c for c in comparisons if _bars(c)]
    if not drawn:
        return
    heights = [1.0 + 0.32 * len(_bars(c)) for c in drawn]
    figure, axes = pyplot.subplots(
        len(drawn),
        figsize=(9, sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title)
    for panel, comparison in zip(axes[:, 0], drawn, strict=True):
        _draw(panel, comparison)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _base(comparison: Comparison) -> str:
    return LIMIT if comparison.ratios(LIMIT) else OURS


def _bars(comparison: Comparison) -> dict[str, list[float]]:
    """Ratios of each side that has some."""
    base = _base(comparison)
    sides = [outcome.side for outcome in comparison.outcomes]
    return {side: ratios for side in sides if (ratios := comparison.ratios(side, to=base))}


def _draw(panel: Any, comparison: Comparison) -> None:
    case, bars = comparison.case, _bars(comparison)
    middles = [statistics.median(ratios) for ratios in bars.values()]
    whiskers = [
        [middle - min(ratios) for middle, ratios in zip(middles, bars.values(), strict=True)],
        [max(ratios) - middle for middle, ratios in zip(middles, bars.values(), strict=True)],
    ]
    colours = [{OURS: "tab:blue", LIMIT: "lightgrey"}.get(side, "tab:orange") for side in bars]
    panel.barh(list(bars), middles, xerr=whiskers, color=colours, height=0.7, capsize=3)
    for y, (side, middle) in enumerate(zip(bars, middles, strict=True)):
        medians = {
            outcome.side: outcome.median for outcome in comparison.outcomes if outcome.figures
        }
        panel.annotate(
            f"{middle:.2f}  ({_number(medians[side])} {case.unit})",
            (max(bars[side]), y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    if case.aim_ratio is not None:
        panel.axvline(case.aim_ratio, color="tab:red", linewidth=1, linestyle="--")
        panel.text(
            case.aim_ratio,
            1.0,
            "aim",
            transform=panel.get_xaxis_transform(),
            color="tab:red",
            fontsize=8,
            ha="center",
            va="bottom",
        )
    panel.invert_yaxis()
    panel.set_xlim(0, 1.35 * max(max(ratios) for ratios in bars.values()))
    panel.set_title(f"{case.name}: {case.unit}, {case.better} is better", fontsize=10, loc="left")
    panel.set_xlabel(f"ratio to {_base(comparison)}", fontsize=8)
    for edge in ("top", "right"):
        panel.spines[edge].set_visible(False)
