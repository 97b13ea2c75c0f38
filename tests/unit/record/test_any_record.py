"""Whatever the record holds, in whatever order, every view of it must stand."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlx_guarded_llm.record import (
    Event,
    Kind,
    explain,
    overlaps,
    render_text,
    timeline,
    to_perfetto,
)
from mlx_guarded_llm.record.chart_svg import render_svg
from mlx_guarded_llm.record.log import line

from .test_perfetto import check

models = st.sampled_from([None, "big", "phi"])
ids = st.sampled_from([None, "1", "2", "3"])
details = st.dictionaries(
    st.sampled_from(
        ["bytes", "seconds", "prompt_tokens", "completion_tokens", "emitted", "recovering", "spawn"]
    ),
    st.none() | st.integers(0, 10**12) | st.floats(0, 1e6) | st.text(max_size=3),
)
events = st.builds(
    Event,
    kind=st.sampled_from(get_args(Kind)),
    time=st.integers(0, 20).map(float) | st.floats(0, 20),
    model=models,
    request_id=ids,
    job_id=ids,
    cause=st.sampled_from(["", "cancelled", "RequestCancelled: x", "LoadFailed: y"]),
    waiting_for=st.lists(st.tuples(ids.map(str), models.map(str)), max_size=2).map(tuple),
    details=details,
)


@settings(deadline=None)
@given(st.lists(events, max_size=40))
def test_every_view_stands(record: list[Event]) -> None:
    chart = timeline(record)
    for row in chart.rows:
        for lane in range(row.lanes):
            spans = [span for span in row.spans if span.lane == lane]
            assert all(a.end <= b.start for a, b in pairwise(spans))
    for span in chart.spans():
        assert chart.start <= span.start <= span.end <= chart.end
    naive = [
        (job, other)
        for job in chart.spans()
        for other in chart.spans()
        if job.kind in ("loading", "unloading", "running") and other.kind == "generating"
        if job.start < other.end and other.start < job.end
    ]
    assert len(overlaps(chart)) == len(naive)
    check(to_perfetto(record))
    ET.fromstring(render_svg(chart))
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(render_text(chart))
    assert all(len(text) <= 60 for text in capture.get().splitlines())
    for request_id in chart.histories.requests:
        assert explain(record, request_id).startswith(f"Request {request_id} asked for")
    for event in record:
        assert line(event)
