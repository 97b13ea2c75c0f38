"""Loading a tokenizer. It touches no MLX array, so it need not run on the MLX thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelInvalid

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..models.spec import ModelFiles

# Without any of these transformers makes up an empty tokenizer and says nothing.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)


def load_tokenizer(files: ModelFiles) -> TokenizerWrapper:
    """The tokenizer of a model folder, as `mlx_lm.load` makes it.

    Code that comes with a model is never run.

    Args:
        files: the verified folder.

    Raises:
        ModelInvalid: there is no tokenizer, or it cannot be loaded.
    """
    # Late, because this imports mlx.
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as mlx_load_tokenizer

    if not any(any(files.path.glob(name)) for name in _VOCABULARIES):
        raise ModelInvalid(
            f"{files.path} has no tokenizer.",
            hint="Copy tokenizer.json and tokenizer_config.json into it, or fetch it again.",
        )
    try:
        # load_config lets generation_config.json overrule the end-of-text tokens.
        eos = load_config(files.path).get("eos_token_id")
        tokenizer: TokenizerWrapper = mlx_load_tokenizer(
            files.path,
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=_token_ids(eos),
        )
        if not len(tokenizer):
            raise ValueError("its vocabulary is empty")
    except Exception as error:  # transformers raises what it likes
        raise ModelInvalid(
            f"The tokenizer in {files.path} cannot be loaded ({type(error).__name__}: {error}).",
            hint="Fetch the model again; a tokenizer that needs its own code is not supported.",
        ) from error
    return tokenizer


def _token_ids(eos: object) -> list[int] | None:
    """End-of-text ids of a config; None when it names none, so that defaults apply."""
    if eos is None:
        return None
    ids: list[object] = eos if isinstance(eos, list) else [eos]
    tokens = [token for token in ids if isinstance(token, int) and not isinstance(token, bool)]
    if len(tokens) < len(ids):
        raise ValueError(f"eos_token_id is {eos!r}")
    return tokens
