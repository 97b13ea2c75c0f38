"""Parts of `mlx-guarded doctor`: its `checks`, and the `trial_model` that one of them loads."""
