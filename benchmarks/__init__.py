"""Benchmarks of feast-anchor: `make bench`, or `python -m benchmarks --help`.

The rules: what is measured is what an export wrote and what the pipeline runs, never a copy of it.
Every figure is a ratio of things that ran in turns in the same process and minute; before anything
is timed, all that is compared has given the same vectors. One module of `sections` is one question.
"""
