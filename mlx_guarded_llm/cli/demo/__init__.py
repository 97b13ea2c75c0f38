"""Parts of `mlx-guarded demo`, which `commands.demo` puts together.

`scene` sends the two requests, `boards` show the answers as they come, and `summary` says at the
end what happened. `naive` shows the same scene on a server without a guard.
"""
