"""What the config.json of models that people use says, as far as it may matter to answers.

Written down from what each family's files are known to hold, nulls and left-over keys too.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

SILU: Config = {"hidden_act": "silu", "tie_word_embeddings": False}
LLAMA3: Config = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
YARN: Config = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
DEEPSEEK_YARN: Config = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip
LONGROPE: Config = {"type": "longrope", "long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
GELU: Config = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
WINDOW: Config = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 28}
DEEPSEEK: Config = {
    **SILU, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "num_nextn_predict_layers": 1, "ep_size": 1, "rope_theta": 10000,
    "rope_scaling": DEEPSEEK_YARN, "aux_loss_alpha": 0.001, "seq_aux": True, "moe_layer_freq": 1,
}  # fmt: skip
GRANITE: Config = {
    **SILU, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
    "logits_scaling": 16.0, "residual_multiplier": 0.22, "rope_scaling": None,
    "rope_theta": 10000000.0, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
GPT_OSS_YARN: Config = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
QUANTISED: Config = {
    "quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp": {"bits": 8}},
    "quantization_config": {"group_size": 64, "bits": 4},
}

CONFIGS: dict[str, tuple[str, Config]] = {
    "Llama 2": ("llama", {**SILU, "rope_scaling": None, "pretraining_tp": 1}),
    "Llama 3": ("llama", {**SILU, "rope_theta": 500000.0, "rope_scaling": None}),
    "Llama 3.2": ("llama", {**SILU, "rope_theta": 500000.0, "rope_scaling": LLAMA3,
                            "tie_word_embeddings": True, "head_dim": 64, **QUANTISED}),
    "Llama 4": ("llama4", {
        "text_config": {
            **SILU, "model_type": "llama4_text", "rope_theta": 500000.0, "rope_scaling": LLAMA3,
            "attention_chunk_size": 8192, "attn_temperature_tuning": 4, "floor_scale": 8192,
            "attn_scale": 0.1, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1,
            "num_local_experts": 16, "no_rope_layers": [], "use_qk_norm": True,
        },
        "vision_config": {"hidden_act": "gelu", "rope_theta": 10000},
    }),
    "CodeLlama": ("llama", {**SILU, "rope_theta": 1000000}),
    "Vicuna 16k": ("llama", {**SILU, "rope_scaling": {"factor": 8.0, "type": "linear"}}),
    "Yi": ("llama", {**SILU, "rope_theta": 5000000.0, "rope_scaling": None}),
    "Mistral 7B": ("mistral", {**SILU, "sliding_window": 4096, "rope_theta": 10000.0}),
    "Mistral Nemo": ("mistral", {**SILU, "head_dim": 128, "rope_theta": 1000000.0,
                                 "sliding_window": None}),
    "Mistral Small 3.1": ("mistral3", {
        "text_config": {**SILU, "model_type": "mistral", "rope_theta": 1000000000.0,
                        "head_dim": 128, "sliding_window": None},
        "vision_config": {"hidden_act": "gelu", "model_type": "pixtral", "rope_theta": 10000.0},
        "projector_hidden_act": "gelu",
    }),
    "Ministral 3": ("mistral3", {
        "text_config": {
            **SILU, "model_type": "ministral3", "sliding_window": None,
            "rope_parameters": {
                "rope_type": "yarn", "type": "yarn", "factor": 16.0, "rope_theta": 1000000.0,
                "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            },
        },
    }),
    "Mixtral": ("mixtral", {**SILU, "rope_theta": 1000000.0, "sliding_window": None,
                            "num_local_experts": 8, "num_experts_per_tok": 2}),
    "Qwen 1.5": ("qwen2", {**SILU, **WINDOW, "rope_theta": 1000000.0}),
    "Qwen 1.5 MoE": ("qwen2_moe", {**SILU, **WINDOW, "rope_theta": 1000000.0,
                                   "norm_topk_prob": False, "decoder_sparse_step": 1}),
    "Qwen 2.5": ("qwen2", {**SILU, **WINDOW, "rope_theta": 1000000.0, "use_mrope": False,
                           "rope_scaling": YARN}),
    "Qwen 2.5 VL": ("qwen2_5_vl", {
        **SILU, **WINDOW, "rope_theta": 1000000.0, "vision_config": {"hidden_act": "silu"},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }),
    "Qwen 3": ("qwen3", {**SILU, **WINDOW, "rope_theta": 1000000, "rope_scaling": None,
                         "head_dim": 128, "sliding_window": None, "attention_bias": False}),
    "Qwen 3 MoE": ("qwen3_moe", {
        **SILU, "rope_theta": 1000000.0, "rope_scaling": None,
        "norm_topk_prob": True, "mlp_only_layers": [], "num_experts": 128, "head_dim": 128,
    }),
    "Qwen 3 Next": ("qwen3_next", {
        **SILU, "rope_theta": 10000000, "partial_rotary_factor": 0.25, "rope_scaling": None,
        "full_attention_interval": 4, "norm_topk_prob": True, "num_experts": 512,
        "linear_conv_kernel_dim": 4, "mlp_only_layers": [],
    }),
    "Qwen 3.5": ("qwen3_5", {
        "text_config": {
            **SILU, "model_type": "qwen3_5_text", "full_attention_interval": 4,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
            "attn_output_gate": True, "mtp_num_hidden_layers": 1,
            "rope_parameters": {
                "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
                "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            },
        },
        "vision_config": {"hidden_act": "gelu_pytorch_tanh"},
    }),
    "Qwen 3 VL": ("qwen3_vl", {
        "text_config": {
            **SILU, "model_type": "qwen3_vl_text", "rope_theta": 5000000, "head_dim": 128,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
                             "rope_type": "default"},
        },
    }),
    "Phi 2": ("phi", {"hidden_act": "gelu_new", "partial_rotary_factor": 0.4, "rope_theta": 10000.0,
                      "rope_scaling": None, "qk_layernorm": False}),
    "Phi 3 mini 4k": ("phi3", {**SILU, "rope_scaling": None, "sliding_window": 2047,
                               "original_max_position_embeddings": 4096}),
    "Phi 3.5 mini": ("phi3", {**SILU, "rope_scaling": LONGROPE, "sliding_window": 262144,
                              "original_max_position_embeddings": 4096}),
    "Phi 3 su": ("phi3", {**SILU, "rope_scaling": {**LONGROPE, "type": "su"},
                          "original_max_position_embeddings": 4096}),
    "Phi 3.5 MoE": ("phimoe", {
        **SILU, "original_max_position_embeddings": 4096, "attention_bias": True,
        "lm_head_bias": True, "num_local_experts": 16, "router_jitter_noise": 0.01,
        "rope_scaling": {**LONGROPE, "long_mscale": 1.24, "short_mscale": 1.24,
                         "original_max_position_embeddings": 4096},
    }),
    "Phi 4": ("phi3", {**SILU, "rope_theta": 250000, "rope_scaling": None,
                       "sliding_window": None, "partial_rotary_factor": 1.0}),
    "Phi 4 mini": ("phi3", {**SILU, "rope_scaling": LONGROPE, "partial_rotary_factor": 0.75,
                            "original_max_position_embeddings": 4096, "lm_head_bias": False,
                            "mlp_bias": False, "tie_word_embeddings": True}),
    "Gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None}),
    "Gemma, older": ("gemma", {"hidden_act": "gelu", "rope_scaling": None}),
    "Gemma 2": ("gemma2", {**GELU, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                           "query_pre_attn_scalar": 256, "sliding_window": 4096}),
    "Gemma 3 1B": ("gemma3_text", {
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "query_pre_attn_scalar": 256, "rope_scaling": None,
        "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6,
    }),
    "Gemma 3 4B": ("gemma3", {
        "text_config": {"model_type": "gemma3_text", "sliding_window": 1024,
                        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {"model_type": "siglip_vision_model"},
    }),
    "Gemma 3, newer": ("gemma3_text", {
        "hidden_activation": "gelu_pytorch_tanh", "_sliding_window_pattern": 6,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4,
        "rope_scaling": None, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256, "use_bidirectional_attention": False,
    }),
    "Gemma 3n": ("gemma3n", {
        "text_config": {
            "model_type": "gemma3n_text", "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 30.0, "rope_local_base_freq": 10000.0,
            "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        },
    }),
    "Gemma 4": ("gemma4", {
        "text_config": {
            "model_type": "gemma4_text", "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 30.0, "use_bidirectional_attention": "vision",
            "global_head_dim": 512, "sliding_window": 1024,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
                                   "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        },
    }),
    "DeepSeek V2 Lite": ("deepseek_v2", {
        **DEEPSEEK, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy",
        "q_lora_rank": None, "num_nextn_predict_layers": None,
        "rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    }),
    "DeepSeek V2": ("deepseek_v2", {
        **DEEPSEEK, "norm_topk_prob": False, "routed_scaling_factor": 16.0,
        "scoring_func": "softmax", "topk_method": "group_limited_greedy",
    }),
    "DeepSeek V3": ("deepseek_v3", {
        **DEEPSEEK, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }),
    "DeepSeek R1 0528, newer": ("deepseek_v3", {
        **DEEPSEEK, "rope_interleave": True, "rope_scaling": {**DEEPSEEK_YARN, "factor": 40.0},
    }),
    "DeepSeek V3.2": ("deepseek_v32", {**DEEPSEEK, "index_topk": 2048, "index_n_heads": 64}),
    "Kimi K2": ("kimi_k2", {
        **DEEPSEEK, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "num_nextn_predict_layers": 0, "rope_theta": 50000.0,
        "rope_scaling": {**DEEPSEEK_YARN, "beta_fast": 1.0, "factor": 32.0},
    }),
    "Kimi VL": ("kimi_vl", {"text_config": {
        **DEEPSEEK, "model_type": "deepseek_v3", "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 2.446, "rope_scaling": None, "rope_theta": 800000.0,
    }}),
    "Moonlight": ("deepseek_v3", {
        **DEEPSEEK, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446,
        "rope_scaling": None, "rope_theta": 50000.0,
    }),
    "GLM 4 9B 0414": ("glm4", {**SILU, "partial_rotary_factor": 0.5, "attention_bias": True,
                               "rope_theta": 10000.0}),
    "GLM Edge": ("glm", {**SILU, "partial_rotary_factor": 1.0, "rope_theta": 10000.0}),
    "GLM 4.5 Air": ("glm4_moe", {
        **SILU, "partial_rotary_factor": 0.5, "rope_theta": 1000000, "rope_scaling": None,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True,
        "num_nextn_predict_layers": 1, "use_qk_norm": False,
    }),
    "GLM 4.6": ("glm4_moe", {
        **SILU, "partial_rotary_factor": 0.5, "rope_theta": 1000000, "rope_scaling": None,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "num_nextn_predict_layers": 1, "use_qk_norm": True,
    }),
    "GLM 4.7 Flash": ("glm4_moe_lite", {
        **SILU, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "rope_theta": 1000000,
        "norm_topk_prob": True, "topk_method": "noaux_tc", "partial_rotary_factor": 1.0,
        "rope_interleave": True, "rope_scaling": None, "num_nextn_predict_layers": 1,
    }),
    "gpt-oss": ("gpt_oss", {
        **SILU, "swiglu_limit": 7.0, "rope_theta": 150000, "rope_scaling": GPT_OSS_YARN,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "sliding_window": 128,
        "attention_bias": True, "initial_context_length": 4096, "experts_per_token": 4,
        "quantization_config": {"quant_method": "mxfp4"},
    }),
    "Granite 3": ("granite", GRANITE),
    "Granite 3 MoE": ("granitemoe", {**GRANITE, "num_local_experts": 40}),
    "Granite 4 H": ("granitemoehybrid", {
        **GRANITE, "position_embedding_type": "nope", "rope_theta": 10000, "num_local_experts": 0,
        "layer_types": ["mamba"] * 5 + ["attention"], "shared_intermediate_size": 4096,
        "normalization_function": "rmsnorm", "init_method": "mup",
    }),
    "Command R": ("cohere", {**SILU, "logit_scale": 0.0625, "use_qk_norm": False,
                             "rope_theta": 8000000.0, "rope_scaling": None}),
    "Command R+": ("cohere", {**SILU, "logit_scale": 0.8333333333333334, "use_qk_norm": True,
                              "rope_theta": 75000000.0}),
    "Command A": ("cohere2", {
        **SILU, "logit_scale": 0.25, "rope_theta": 50000, "rope_scaling": None,
        "sliding_window": 4096, "sliding_window_pattern": 4, "rotary_pct": 1.0,
        "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "use_gated_activation": True,
        "use_embedding_sharing": True, "use_parallel_block": True, "use_parallel_embedding": False,
    }),
    "OLMo 2": ("olmo2", {**SILU, "rope_theta": 500000, "rope_scaling": None}),
    "OLMo 3": ("olmo3", {
        **SILU, "rope_theta": 500000, "sliding_window": 4096,
        "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32.0,
                         "beta_slow": 1.0, "factor": 8.0,
                         "original_max_position_embeddings": 8192, "rope_type": "yarn"},
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    }),
    "OLMoE": ("olmoe", {**SILU, "clip_qkv": None, "norm_topk_prob": False, "rope_theta": 10000.0,
                        "rope_scaling": None}),
    "StableLM 2": ("stablelm", {**SILU, "partial_rotary_factor": 0.25, "rope_theta": 10000,
                                "qk_layernorm": False, "use_parallel_residual": False}),
    "StarCoder 2": ("starcoder2", {
        "activation_function": "gelu", "hidden_act": "gelu_pytorch_tanh", "mlp_type": "default",
        "rope_theta": 999999.4420358813, "sliding_window": 4096, "norm_type": "layer_norm",
        "use_bias": True,
    }),
    "InternLM 2": ("internlm2", {**SILU, "rope_theta": 1000000, "bias": False,
                                 "rope_scaling": {"factor": 2.0, "type": "dynamic"}}),
    "InternLM 3": ("internlm3", {**SILU, "rope_theta": 50000000, "qkv_bias": False, "bias": False,
                                 "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}}),
    "MiniCPM": ("minicpm", {**SILU, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4}),
    "MiniCPM 3": ("minicpm3", {**SILU, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4,
                               "rope_scaling": {**LONGROPE,
                                                "original_max_position_embeddings": 32768}}),
    "EXAONE 3.5": ("exaone", {"activation_function": "silu", "rope_theta": 1000000.0,
                              "rope_scaling": LLAMA3}),
    "EXAONE 4 1.2B": ("exaone4", {
        **SILU, "rope_theta": 1000000, "sliding_window": None, "sliding_window_pattern": None,
        "rope_scaling": {**LLAMA3, "factor": 16.0}, "layer_types": ["full_attention"] * 30,
    }),
    "EXAONE 4 32B": ("exaone4", {
        **SILU, "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
        "rope_scaling": {**LLAMA3, "factor": 16.0},
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    }),
    "EXAONE 4, of transformers": ("exaone4", {
        **SILU, "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": 4,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    }),
    "SmolLM": ("llama", {**SILU, "rope_theta": 10000.0, "tie_word_embeddings": True}),
    "SmolLM 2": ("llama", {**SILU, "rope_theta": 100000, "rope_interleaved": False,
                           "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
    "SmolLM 3": ("smollm3", {**SILU, "rope_theta": 5000000.0, "rope_scaling": None,
                             "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4,
                             "use_sliding_window": False, "max_window_layers": 28}),
    "Nemotron 4": ("nemotron", {"hidden_act": "relu2", "partial_rotary_factor": 0.5,
                                "rope_percent": 0.5, "rope_theta": 10000}),
    "Nemotron Nano 2": ("nemotron_h", {
        "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "attention_bias": False,
        "rope_theta": 10000, "time_step_limit": [0.0, None], "residual_in_fp32": False,
        "hybrid_override_pattern": "M-M*",
    }),
    "Nemotron 3 Nano": ("nemotron_h", {
        "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_theta": 10000,
        "partial_rotary_factor": 1.0,
    }),
    "Llama Nemotron Super": ("nemotron-nas", {**SILU, "rope_theta": 500000.0,
                                              "rope_scaling": LLAMA3, "block_configs": []}),
    "Falcon H1": ("falcon_h1", {
        **SILU, "embedding_multiplier": 5.656854249492381, "lm_head_multiplier": 0.0195,
        "rope_theta": 100000000000.0, "rope_scaling": None, "attention_in_multiplier": 1.0,
        "mlp_multipliers": [0.8838834764831844, 0.5859375], "ssm_multipliers": [0.35] * 5,
    }),
    "Falcon Mamba": ("falcon_mamba", {"hidden_act": "silu", "residual_in_fp32": True,
                                      "time_step_rank": 256, "mixer_rms_eps": 1e-6}),
    "Mamba": ("mamba", {"hidden_act": "silu", "residual_in_fp32": True, "time_step_rank": 160}),
    "Mamba 2": ("mamba2", {"hidden_act": "silu", "residual_in_fp32": True, "n_groups": 1,
                           "time_step_limit": [0.0, None], "norm_before_gate": False}),
    "Jamba": ("jamba", {**SILU, "num_experts": 16, "num_experts_per_tok": 2,
                        "attn_layer_period": 8, "attn_layer_offset": 4}),
    "LFM2": ("lfm2", {"rope_theta": 1000000.0, "block_auto_adjust_ff_dim": True, "conv_bias": False,
                      "layer_types": ["conv", "conv", "full_attention"], "use_pos_enc": True}),
    "LFM2 MoE": ("lfm2_moe", {"rope_theta": 1000000.0, "norm_topk_prob": True,
                              "routed_scaling_factor": 1.0, "use_expert_bias": True}),
    "MiniMax M2": ("minimax", {
        **SILU, "rope_theta": 5000000, "rotary_dim": 64, "scoring_func": "sigmoid",
        "use_routing_bias": True, "num_mtp_modules": 3, "use_qk_norm": True,
        "qk_norm_type": "per_layer", "partial_rotary_factor": 0.5, "head_dim": 128,
    }),
    "Ernie 4.5": ("ernie4_5", {**SILU, "rope_theta": 500000.0, "rope_scaling": None,
                               "use_bias": False, "compression_ratio": 1.0}),
    "Ernie 4.5 MoE": ("ernie4_5_moe", {
        **SILU, "rope_theta": 500000.0, "moe_num_experts": 64, "moe_k": 6, "moe_use_aux_free": True,
        "moe_gate": "topk", "num_nextn_predict_layers": 1, "rope_scaling": None,
    }),
    "Hunyuan A13B": ("hunyuan", {
        **SILU, "rope_theta": 10000.0, "use_qk_norm": True, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0, "moe_topk": [8] * 32, "num_experts": 64,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0,
                         "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"},
    }),
    "Hunyuan 7B": ("hunyuan_v1_dense", {
        **SILU, "rope_theta": 10000.0, "use_qk_norm": True,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0,
                         "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"},
    }),
    "Seed OSS": ("seed_oss", {**SILU, "rope_theta": 10000000.0, "attention_bias": True,
                              "attention_out_bias": False, "head_dim": 128,
                              "rope_scaling": {"rope_type": "default"}}),
    "Apertus": ("apertus", {"hidden_act": "xielu", "rope_theta": 12000000.0, "qk_norm": True,
                            "post_norm": False, "rope_scaling": {**LLAMA3, "type": "llama3"}}),
    "Ling Lite": ("bailing_moe", {
        **SILU, "rope_theta": 600000, "rope_scaling": None, "norm_topk_prob": True,
        "first_k_dense_replace": 0, "norm_head": False, "norm_softmax": False,
    }),
    "Ling 2": ("bailing_moe", {
        **SILU, "rope_theta": 600000, "rope_scaling": None, "norm_topk_prob": True, "n_group": 8,
        "topk_group": 4, "routed_scaling_factor": 2.5, "score_function": "sigmoid",
        "partial_rotary_factor": 0.5, "use_qk_norm": True, "num_nextn_predict_layers": 0,
        "moe_router_enable_expert_bias": True, "rotary_dim": 64,
    }),
    "dots.llm1": ("dots1", {
        **SILU, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "rope_theta": 10000000,
        "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc", "rope_scaling": None,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 62,
    }),
    "Helium": ("helium", {**SILU, "rope_theta": 100000.0, "head_dim": 128}),
    "Baichuan M1": ("baichuan_m1", {"hidden_act": "silu", "rope_theta": 1000000.0,
                                    "sliding_window": 8192, "conv_window": 2}),
    "MiMo": ("mimo", {**SILU, "rope_theta": 640000, "num_nextn_predict_layers": 1,
                      "sliding_window": 32768, "use_sliding_window": False}),
    "Bitnet": ("bitnet", {"hidden_act": "relu2", "rope_theta": 500000.0,
                          "quantization_config": {"quant_method": "bitnet"}}),
    "GPT-2": ("gpt2", {"activation_function": "gelu_new", "n_ctx": 1024, "scale_attn_weights": True,
                       "scale_attn_by_inverse_layer_idx": False}),
    "GPT-NeoX": ("gpt_neox", {"hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
                              "use_parallel_residual": True}),
    "GPT-NeoX, newer": ("gpt_neox", {
        "hidden_act": "gelu", "rope_parameters": {"rope_theta": 10000, "rope_type": "default",
                                                  "partial_rotary_factor": 0.25},
    }),
    "nanochat": ("nanochat", {"hidden_act": "relu2", "final_logit_softcapping": 15.0,
                              "rope_theta": 10000.0}),
    "RecurrentGemma": ("recurrent_gemma", {
        "hidden_activation": "gelu_pytorch_tanh", "partial_rotary_factor": 0.5,
        "logits_soft_cap": 30.0, "rope_theta": 10000.0, "attention_window_size": 2048,
    }),
    "DBRX": ("dbrx", {"attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000}}),
    "OpenELM": ("openelm", {"activation_fn_name": "swish", "rope_freq_constant": 10000}),
    "Step 3.5 Flash": ("step3p5", {
        "rope_theta": [5000000.0, 10000.0, 10000.0, 10000.0] * 12, "norm_expert_weight": True,
        "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 12, "moe_router_scaling_factor": 3.0,
        "rope_scaling": {**LLAMA3, "factor": 2.0}, "yarn_only_types": ["full_attention"],
        "layer_types": ["full_attention", *["sliding_attention"] * 3] * 12,
    }),
    "LongCat Flash": ("longcat_flash", {
        "num_layers": 28, "rope_theta": 10000000.0, "routed_scaling_factor": 6.0,
        "zero_expert_type": "identity", "norm_topk_prob": False, "router_bias": False,
    }),
    "Kimi Linear": ("kimi_linear", {
        "hidden_act": "silu", "rope_theta": 10000.0, "rope_scaling": None, "num_expert_group": 1,
        "moe_renormalize": True, "routed_scaling_factor": 2.446, "use_grouped_topk": True,
        "moe_router_activation_func": "sigmoid", "mla_use_nope": True,
    }),
    "Youtu": ("youtu_llm", {**SILU, "rope_theta": 1600000, "rope_interleave": True,
                            "rope_scaling": None}),
    "AFM": ("afm7", {"hidden_act": "silu", "rope_theta": 500000.0}),
    "AFMoE": ("afmoe", {
        **SILU, "rope_theta": 10000, "rope_scaling": None, "global_attn_every_n_layers": 4,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "mup_enabled": True,
        "n_group": 1, "topk_group": 1, "route_norm": True, "route_scale": 2.826,
        "score_func": "sigmoid", "sliding_window": 2048,
    }),
    "Ministral, windows": ("mistral", {
        **SILU, "rope_theta": 1000000.0, "sliding_window": 4096, "head_dim": 128,
        "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 8,
    }),
}  # fmt: skip
