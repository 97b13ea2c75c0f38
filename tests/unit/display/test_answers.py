from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from mlx_guarded_llm import Attempt, Provenance, Result, ToolCall, Usage
from mlx_guarded_llm.cli.answer import guard_lines
from mlx_guarded_llm.results import InvalidToolCall

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def provenance(**fields: Any) -> Provenance:
    common = {"request_id": "r1", "requested_model": "phi3", "served_model": "phi3"}
    return Provenance(**(common | fields))


def answer(**fields: Any) -> Result:
    common: dict[str, Any] = {
        "text": "Paris.",
        "reasoning": "",
        "tool_calls": (),
        "invalid_tool_calls": (),
        "logprobs": (),
        "finish_reason": "stop",
        "usage": Usage(10, 21),
        "guard": provenance(prefill=0.5, decode=2.0),
    }
    return Result(**(common | fields))


class Reader(HTMLParser):
    """The tags, the text, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("br", "hr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(item: Any) -> Reader:
    return Reader(item._repr_html_())


class TestResult:
    def test_the_answer_and_where_it_came_from(self) -> None:
        page = shown(answer())
        assert "Paris." in page.text
        assert "phi3 · prefill 0.50 s · decode 2.00 s · 10 + 21 tokens at 10 tokens/s" in page.text
        assert "queued" not in page.text and "details" not in page.tags

    def test_waits_are_told(self) -> None:
        guard = provenance(queued=40.0, deferred=35.0, loading=5.0, paused=1.0, decode=2.0)
        page = shown(answer(guard=guard))
        assert "queued 40.0 s (deferred 35.0 s, loading 5.00 s)" in page.text
        assert "paused 1.00 s" in page.text

    def test_the_speed_is_of_the_time_it_decoded(self) -> None:
        guard = provenance(prefill=0.5, decode=9.0, paused=1.0, recovering=6.0, resumed=True)
        page = shown(answer(guard=guard))
        assert "recovering 6.00 s" in page.text and "at 10 tokens/s" in page.text
        told = dict(guard_lines(answer(guard=guard)))
        assert "6.00 s recovering" in told["waited"]
        assert told["tokens"].endswith("21 generated, 10.0 tokens/s")

    def test_markdown_is_drawn(self) -> None:
        page = shown(answer(text="**Two:**\n\n- one\n- `<b>`\n\n```html\n<i>\n```"))
        assert {"strong", "ul", "li", "code", "pre"} <= {*page.tags}
        assert "<b>" in page.text and "<i>" in page.text
        assert "i" not in page.tags

    def test_thinking_is_folded_away(self) -> None:
        page = answer(reasoning="I think\nof France.")._repr_html_()
        assert "<details style" in page and "4 words of thinking" in page
        assert page.index("I think\nof France.") < page.index("</details>") < page.index("Paris.")

    def test_tool_calls_are_shown_and_unreadable_ones_stand_out(self) -> None:
        page = shown(
            answer(
                text="",
                tool_calls=(ToolCall("c1", "weather", {"city": "Zürich <b>"}),),
                invalid_tool_calls=(InvalidToolCall('{"name": "we', "cut off"),),
            )
        )
        assert 'weather({"city": "Zürich <b>"})' in page.text
        assert 'cannot be read: {"name": "we' in page.text
        assert "no text" not in page.text

    def test_no_text_is_said(self) -> None:
        assert "no text" in shown(answer(text=" \n")).text

    def test_a_fallback_and_a_degraded_answer_stand_out(self) -> None:
        guard = provenance(served_model="tiny", fallback=True, degraded=("length", "loop"))
        page = answer(guard=guard)._repr_html_()
        assert "<b style=" in page
        assert "Fallback: tiny answered, not phi3." in page
        assert "Degraded: length, loop." in page

    def test_several_attempts_are_listed_and_open_when_something_is_wrong(self) -> None:
        attempts = (
            Attempt(model="phi3", outcome="error", error="QueueFull: too many", seconds=0.1),
            Attempt(model="phi3", outcome="degraded", reasons=("empty",), changed={"seed": 7}),
            Attempt(model="phi3", outcome="ok", seconds=2.0, tokens=21),
        )
        page = answer(guard=provenance(attempts=attempts))._repr_html_()
        assert "3 attempts" in page and "<details style" in page
        for word in ("QueueFull: too many", "empty", "seed=7"):
            assert word in page
        marked = answer(guard=provenance(attempts=attempts, fallback=True))._repr_html_()
        assert "<details open" in marked
        assert "<details" not in answer(guard=provenance(attempts=attempts[2:]))._repr_html_()

    def test_nothing_of_a_model_or_a_server_becomes_markup(self) -> None:
        attempt = Attempt(
            model=EVIL, outcome="error", error=EVIL, reasons=(EVIL,), changed={EVIL: EVIL}
        )
        guard = provenance(
            requested_model=EVIL,
            served_model=EVIL,
            fallback=True,
            degraded=(EVIL,),
            attempts=(attempt, attempt),
        )
        page = shown(
            answer(
                text=f"{EVIL}\n\n```\n{EVIL}\n```\n- `{EVIL}`\n\n[a](javascript:alert(3))"
                f"\n\n![see](https://example.com/pixel.png) </div></details>",
                reasoning=f"{EVIL}</details>",
                tool_calls=(ToolCall(EVIL, EVIL, {EVIL: EVIL}),),
                invalid_tool_calls=(InvalidToolCall(EVIL, EVIL),),
                guard=guard,
            )
        )
        assert not {"script", "img", "iframe", "link"} & {*page.tags}
        # A link may be followed by a click; nothing is fetched or run by itself.
        assert {name for name, _ in page.attributes} == {"style", "open", "href"}
        links = [value for name, value in page.attributes if name == "href"]
        assert links == ["https://example.com/pixel.png"]


class TestProvenance:
    def test_it_lists_its_attempts(self) -> None:
        attempt = Attempt(model="phi3", outcome="ok", tokens=21)
        page = shown(provenance(attempts=(attempt, attempt)))
        assert "table" in page.tags and "outcome" in page.text
        assert "table" not in shown(provenance(attempts=(attempt,))).tags

    def test_a_column_that_holds_nothing_is_left_out(self) -> None:
        attempt = Attempt(model="phi3", outcome="ok", tokens=21)
        changed = Attempt(model="phi3", outcome="ok", tokens=21, changed={"seed": 7})
        assert "changed" not in shown(provenance(attempts=(attempt, attempt))).text
        assert "changed" in shown(provenance(attempts=(attempt, changed))).text

    def test_nobody_answered(self) -> None:
        assert "no model" in shown(provenance(served_model="")).text

    def test_an_answer_that_went_on_after_a_crash_says_so(self) -> None:
        assert "resumed after a crash" in shown(replace(provenance(), resumed=True)).text
