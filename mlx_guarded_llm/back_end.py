"""What to do where MLX cannot be imported: on Linux its back end is installed apart."""

BACK_END_HINT = (
    'On Linux install a back end of MLX: pip install "mlx-guarded-llm[cpu]", or [cuda13].'
)
