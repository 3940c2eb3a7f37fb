"""Measurements against exact results and peers: `python -m benchmarks --help` lists them.

A table is one file of `tables/`. Its name is that of the markers in the document that it fills,
its `BENCHMARK` says which document, and its `measure(options)` yields Markdown and `Figure`s.
"""
