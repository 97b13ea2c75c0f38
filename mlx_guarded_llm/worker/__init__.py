"""The engine in a process of its own.

`parent` runs in the program, `child` in the engine's process. Both use the modules beside
them: the messages (`wire`), users' functions on their way through (`pickling`), and a page of
shared memory on which the child notes what it is doing (`status_page`). `backend.supervisor`
makes a `parent.client.WorkerEngine`, which starts `child.main`, which serves an `engine`.
"""
