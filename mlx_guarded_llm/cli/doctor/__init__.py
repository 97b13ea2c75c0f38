"""Parts of `mlx-guarded doctor`.

`checks` are those of this machine, and `trial_model` is what one of them loads. `server` asks a
server how it is, and `diagnosis` says what that means.
"""
