"""From a request to the tokens that are fed to the model, on threads beside the MLX thread.

`prepare` takes the engine's commands and runs them on a `keyed_executor`. It uses `tokenizer` to
load tokenizers and `prompt` to encode a request, which fills the chat template (`template`) so
that the caller's text stays text (`caller_text`, `control`). `tool_format` knows how each model
writes tool calls. `engine.Engine` takes what was prepared and puts it into a batch.
"""
