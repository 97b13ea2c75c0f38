from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.errors import ModelUnsupported
from mlx_guarded_llm.models.architectures import source_of
from mlx_guarded_llm.models.config import spell_out, untie
from mlx_guarded_llm.models.files import UnreadableFile

LINEAR = {"rope_type": "linear", "factor": 8, "rope_theta": 1e6}
GEMMA3 = {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 1e4}}
SLIDING = ["sliding_attention"] * 5 + ["full_attention"]


def spell(model_type: str, **config: Any) -> dict[str, Any]:
    return spell_out({"model_type": model_type, **config}, source_of)


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "phi3", "gemma2", "gpt_neox", "qwen3", "mixtral"]
)
@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_a_base_is_found_in_every_place(kind: str, place: str) -> None:
    spelt = spell(kind, **{place: {"rope_theta": 5e5, "rope_type": "default"}})
    assert spelt["rope_theta"] == spelt["rotary_emb_base"] == 5e5
    assert spelt["rope_scaling"] is None


def test_scaling_has_both_names_of_its_type() -> None:
    scaling = {"type": "llama3", "factor": 8, "original_max_position_embeddings": 8192}
    for given in ({"rope_scaling": scaling}, {"rope_parameters": {**scaling, "rope_theta": 5e5}}):
        spelt = spell("llama", **given)
        assert spelt["rope_scaling"]["type"] == spelt["rope_scaling"]["rope_type"] == "llama3"
        assert spelt["original_max_position_embeddings"] == 8192


def test_each_type_of_layer() -> None:
    for spelt in (
        spell("gemma3_text", rope_parameters=GEMMA3, layer_types=SLIDING),
        spell("gemma3", text_config={"rope_parameters": GEMMA3, "layer_types": SLIDING})[
            "text_config"
        ],
    ):
        assert spelt["rope_theta"] == 1e6
        assert spelt["rope_local_base_freq"] == 1e4
        assert spelt["rope_scaling"]["factor"] == 8.0
        assert spelt["sliding_window_pattern"] == 6


def test_an_inner_config_is_that_of_its_own_architecture() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "default"}
    spelt = spell("mistral3", text_config={"model_type": "mistral", "rope_parameters": rope})
    assert spelt["text_config"]["rope_theta"] == 5e5
    older = spell("qwen3_5", text_config={"model_type": "qwen3_5_text", "rope_theta": 1e7})
    assert older["text_config"]["rope_parameters"]["rope_theta"] == 1e7


@pytest.mark.parametrize(
    ("kind", "config", "named"),
    [
        ("gptj", {"rope_parameters": {"rope_theta": 5e5}}, "rope_theta of 500000"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 4}}, "'yarn'"),
        ("gemma2", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ("mixtral", {"rope_parameters": {**LINEAR}}, "'linear'"),
        ("llama", {"rope_scaling": {"rope_type": "of tomorrow"}}, "'of tomorrow'"),
        ("qwen2", {"partial_rotary_factor": 0.25}, "partial_rotary_factor of 0.25"),
        ("llama", {"rope_parameters": GEMMA3}, "differ in RoPE"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("gemma3_text", {"layer_types": [*SLIDING, *SLIDING[::-1]]}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3_moe", {"rope_scaling": {"type": "yarn", "factor": 4}}, "'yarn'"),
        ("glm", {"partial_rotary_factor": 0.5}, "partial_rotary_factor of 0.5"),
        ("recurrent_gemma", {"partial_rotary_factor": 0.25}, "partial_rotary_factor of 0.25"),
        ("nanochat", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit 5.0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
        ("llama", {"query_pre_attn_scalar": 256, "head_dim": 128}, "query_pre_attn_scalar 256"),
        ("llama", {"alibi": True}, "alibi"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave False"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func softmax"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func sigmoid"),
    ],
)
def test_what_would_be_left_out_is_refused(kind: str, config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        spell(kind, **config)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"hidden_act": "silu", "final_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}),
        ("stablelm", {"partial_rotary_factor": 0.25}),
        ("step3p5", {"rope_theta": [1e4, 1e6]}),
        ("gemma4_text", {"rope_parameters": GEMMA3}),
        ("deepseek_v2", {"rope_scaling": {"type": "yarn", "factor": 40}}),
        ("qwen3_moe", {"norm_topk_prob": True}),
    ],
)
def test_what_is_read_is_taken(kind: str, config: dict[str, Any]) -> None:
    spelt = spell(kind, **config)
    assert spelt["model_type"] == kind


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LINEAR},
        {"rope_theta": "many"},
        {"rope_theta": 0},
        {"rope_theta": True},
        {"rope_theta": 10**40},
        {"rope_parameters": [1]},
    ],
)
def test_contradictions(config: dict[str, Any]) -> None:
    with pytest.raises(UnreadableFile, match="rope"):
        spell("llama", **config)


def test_an_interval_that_the_list_of_layers_contradicts() -> None:
    with pytest.raises(UnreadableFile, match="sliding_window_pattern 3"):
        spell("gemma3_text", layer_types=SLIDING, sliding_window_pattern=3)


def test_a_head_of_its_own_is_kept() -> None:
    assert untie({"text_config": {}}) == {
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False},
    }
    assert untie({"tie_word_embeddings": True})["tie_word_embeddings"] is True


def test_an_inner_config_that_the_outer_architecture_reads_itself() -> None:
    """There is a module llama4_text, and it is not what llama4 runs."""
    scaling = {"rope_type": "llama3", "factor": 16, "original_max_position_embeddings": 8192}
    text = {"model_type": "llama4_text", "rope_theta": 5e5, "rope_scaling": scaling}
    assert spell("llama4", text_config=text)["text_config"]["rope_scaling"]["factor"] == 16.0


FOUR = ["sliding_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize(
    ("layers", "given", "spelt"),
    [
        (FOUR * 2, 4, "LLLGLLLG"),
        (FOUR * 2, "LLLG", "LLLGLLLG"),
        (FOUR * 2, None, "LLLGLLLG"),
        (["full_attention"] * 4, None, None),  # its code fails on letters without windows
    ],
)
def test_letters_of_layers(layers: list[str], given: object, spelt: object) -> None:
    config = spell("exaone4", layer_types=layers, sliding_window_pattern=given)
    assert config["sliding_window_pattern"] == spelt


@pytest.mark.parametrize("given", [3, "LLG"])
def test_letters_that_contradict_the_layers(given: object) -> None:
    with pytest.raises(UnreadableFile, match="layer_types that say LLLGLLLG"):
        spell("exaone4", layer_types=FOUR * 2, sliding_window_pattern=given)


def test_what_a_scaling_leaves_out_is_what_transformers_concludes() -> None:
    yarn = {"rope_type": "yarn", "factor": 4}
    for config, original in (
        ({"max_position_embeddings": 32768}, 32768),
        ({"max_position_embeddings": 32768, "original_max_position_embeddings": 8192}, 8192),
    ):
        spelt = spell("llama", rope_scaling=yarn, **config)
        assert spelt["rope_scaling"]["original_max_position_embeddings"] == original


def test_a_factor_of_attention_is_told_to_mlx() -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
    for attention, scale in ((1.2079441541679836, 1), (1.0, 0)):
        scaling = spell("olmo3", rope_scaling={**yarn, "attention_factor": attention})
        assert scaling["rope_scaling"]["mscale"] == pytest.approx(scale)


def test_spellings_that_say_the_same_in_other_words() -> None:
    old = {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}
    new = {**old, "rope_type": "longrope", "type": "longrope", "rope_theta": 1e4}
    spelt = spell("phi3", rope_scaling=old, rope_parameters=new, max_position_embeddings=4096)
    assert spelt["rope_scaling"]["type"] == "longrope"
