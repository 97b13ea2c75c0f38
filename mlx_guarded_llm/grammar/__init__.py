"""Grammars: from JSON Schemas, expressions and tools to what llguidance can enforce.

`normalise` turns the schemas that people write into one form; `schema` reduces that to the part
that llguidance can hold, and `validation` checks values against the rest. `forms` writes the
grammar of a whole answer, and `compiler` compiles it for one model. `engine.decode.grammars`
calls both; `fallback` calls `schema` and `validation`. Nothing here imports mlx; llguidance, of
the extra `grammar`, is imported on first use.
"""
