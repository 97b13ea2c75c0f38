"""From new tokens to what the caller gets: text, thinking, tool calls, or vectors.

`generation.Generation` is one running request of `engine.Engine`; it turns what a batch reports
into chunks, with a `pipeline`: `detokenizer` makes characters of tokens, `structure` sorts them
by the markers of `markup`, `calls` reads tool calls, and `stops` finds the first stop string.
`embedding` does the same for a request for vectors.
"""
