"""What runs in the process of another rank: it follows the orders of rank 0, from its stdin.

`child.ranks` starts it: on this machine as it is, on others by `ssh`.
"""
