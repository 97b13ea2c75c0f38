from __future__ import annotations

from pathlib import Path

from mlx_guarded_llm import Backend, Catalog, ModelInfo, Provenance, Result, Usage, taint
from mlx_guarded_llm.backend.model_info import Models
from mlx_guarded_llm.fallback.taint import Taints
from mlx_guarded_llm.testing.tiny import make_tiny_model


def info(name: str, **changes: object) -> ModelInfo:
    fields: dict[str, object] = {
        "name": name,
        "state": "resident",
        "pinned": False,
        "active": 0,
        "waiting": 0,
        "memory_bytes": 2_390_000_000,
        "context_window": 4096,
        "fingerprint": "",
        "idle_seconds": 12.0,
    }
    return ModelInfo(**(fields | changes))  # type: ignore[arg-type]  # of several types


class TestModels:
    def test_they_are_still_a_list(self) -> None:
        models = Models([info("phi3")])
        assert models == [info("phi3")] and models[0].name == "phi3"

    def test_print_aligns_the_columns(self) -> None:
        models = Models(
            [info("phi3"), info("llama-70b", pinned=True, active=12, idle_seconds=None)]
        )
        assert str(models).splitlines() == [
            "model      state             running  waiting   memory  context    idle",
            "phi3       resident                0        0  2.39 GB    4,096  12.0 s",
            "llama-70b  resident, pinned       12        0  2.39 GB    4,096",
        ]

    def test_crashes_and_quarantine_are_told(self) -> None:
        models = Models(
            [
                info("phi3", state="quarantined", crashes=3, cause="SIGABRT while generating"),
                info("llama", crashes=1, pinned=True, cause="no progress while loading"),
            ]
        )
        _, phi, llama = str(models).splitlines()
        assert "  quarantined, 3 crashes (SIGABRT while generating)  " in phi
        assert "  resident, pinned, 1 crash (no progress while loading)  " in llama

    def test_replicas_are_named_up_to_a_number(self) -> None:
        pinned, plain = info("phi3", pinned=True), info("phi3")
        few = Models([info("phi3", replicas={"r2": plain, "r1": pinned})])
        assert "  resident, at r1 (resident, pinned) and r2 (resident)  " in str(few)
        many = info("phi3", replicas={f"r{n:02}": plain for n in range(20)})
        assert many.places[-2:] == ["r07 (resident)", "12 more"]

    def test_a_notebook_gets_a_table(self) -> None:
        page = Models([info("<b>phi3")])._repr_html_()
        assert page.count("<tr>") == 2 and "&lt;b&gt;phi3" in page
        assert "<td" in page and "2.39 GB" in page

    def test_a_long_table_scrolls_and_only_long_cells_are_broken(self) -> None:
        name, cause = "mlx-community/DeepSeek-R1-Distill-Llama-70B-4bit", "a long story " * 9
        page = Models([info(name, crashes=1, cause=cause)] * 500)._repr_html_()
        assert "max-height" in page[: page.index("<table")]
        assert f'nowrap">{name}</td>' in page
        assert f'text-align:left">resident, 1 crash ({cause.strip()}' in page

    def test_none_are_said_to_be_none(self) -> None:
        assert str(Models()) == "No model is resident or wanted."
        assert Models()._repr_html_() == "<p>No model is resident or wanted.</p>"

    def test_a_backend_gives_them(self, tmp_path: Path) -> None:
        folder = str(make_tiny_model(tmp_path / "model"))
        with Backend(catalog=Catalog(cache_dir=tmp_path / "cache")) as backend:
            assert str(backend.models()) == "No model is resident or wanted."
            backend.load(folder)
            assert folder in str(backend.models())


class TestTaints:
    def test_what_is_wrong_with_each_step(self) -> None:
        bad = Result(
            text="",
            reasoning="",
            tool_calls=(),
            invalid_tool_calls=(),
            logprobs=(),
            finish_reason="length",
            usage=Usage(1, 1),
            guard=Provenance(
                request_id="r", requested_model="a", served_model="b", degraded=("length",)
            ),
        )
        steps = taint([{"role": "user", "content": "Hi"}, bad, {"role": "assistant"}])
        assert isinstance(steps, Taints)
        assert str(steps).splitlines() == [
            "step  verdict  own reasons  rests on",
            "   0  clean",
            "   1  tainted  length",
            "   2  tainted               step 1",
        ]
        assert "<td" in steps._repr_html_()
        assert str(Taints()) == "There are no steps."
