"""Passes on the spike dialect, one a file. The list of all passes stands in compiler/pipeline.py."""
