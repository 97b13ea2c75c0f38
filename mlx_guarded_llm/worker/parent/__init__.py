"""The program's side of the engine's process.

`client` stands for the engine there: it sends commands and reports what comes back, over a
`channel`. `process` starts (`spawn`), waits for and stops the process, whose `output` is passed
on. `watchdog` finds out whether it hangs, and `death` why it died.
"""
