"""What clients of a server meet, on ours and on others, scenario by scenario.

Unlike the cases of `benchmarks.cases`, where a side whose answers fail has no figure, a
server that refuses, hangs, dies or answers with another model has a row here that says so.
"""
