"""Imported by the fork server of runs inside a test process: their benchmarks take half a second instead of ten."""

from deploycompress.stages import benchmark

benchmark.LENGTHS["quick"] = benchmark.Length(6, 10.0, 10.0, 64, 200)
del __file__  # else it would count as code of the user's model
