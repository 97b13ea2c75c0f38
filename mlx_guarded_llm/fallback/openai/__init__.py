"""Models behind any server that speaks OpenAI's API, asked with OpenAI's own client.

`model.OpenAIModel` is the candidate. `request` makes the body of a request out of a call,
`answer` an answer out of the events of a stream, `errors` our errors out of the client's. All of
a process's requests run in one event loop, `loop`, so that any thread can end them.
"""
