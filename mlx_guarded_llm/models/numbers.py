"""Sizes in a config.json, which go by several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_LAYERS = 10_000  # a damaged config must not cause a loop of hours


class Numbers:
    """The whole numbers of a config, which go by several names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.raw = config

    def get(self, *names: str, default: int) -> int:
        """The first of the names that holds a positive whole number."""
        for name in names:
            value = self.raw.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return default

    def list(self, *names: str) -> list[Any]:
        """The first of the names that holds a list, or an empty one."""
        for name in names:
            value = self.raw.get(name)
            if isinstance(value, list):
                return value
        return []

    @property
    def layers(self) -> int:
        return min(self.declared_layers, MAX_LAYERS)

    @property
    def declared_layers(self) -> int:
        """How many layers the config says there are, true or not."""
        return self.get("num_hidden_layers", "n_layer", "n_layers", "num_layers",
                        "num_transformer_layers", default=1)  # fmt: skip

    @property
    def experts(self) -> int:
        return self.get("num_experts", "num_local_experts", "n_routed_experts",
                        "moe_num_experts", default=0)  # fmt: skip

    @property
    def hidden(self) -> int:
        return self.get("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim", default=1)

    @property
    def heads(self) -> int:
        return self.get("num_attention_heads", "n_head", "n_heads", "num_heads", default=1)

    @property
    def kv_heads(self) -> int:
        if self.raw.get("multi_query") is True:
            return 1
        if grouped := _heads_in_group(self.raw.get("block_configs")):
            return max(1, self.heads // grouped)
        if each := self.list("num_kv_heads"):  # one for each layer: the largest
            return max((n for n in each if isinstance(n, int) and n > 0), default=self.heads)
        return self.get("num_key_value_heads", "num_kv_heads", "n_head_kv",
                        "num_attention_groups", default=self.heads)  # fmt: skip

    @property
    def head_dim(self) -> int:
        return self.get("head_dim", "kv_channels", "hidden_size_per_head",
                        default=max(1, self.hidden // self.heads))  # fmt: skip


def _heads_in_group(blocks: object) -> int:
    """How many query heads share a key in a pruned model (nemotron-nas); 0 for others."""
    groups = [
        block["attention"].get("n_heads_in_group")
        for block in (blocks if isinstance(blocks, list) else ())
        if isinstance(block, dict) and isinstance(block.get("attention"), dict)
    ]
    # The smallest group has the most keys. The largest layer stands for all.
    return min((group for group in groups if isinstance(group, int) and group > 0), default=0)
