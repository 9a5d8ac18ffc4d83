"""Sphinx: the documentation is Markdown and is read as well without it."""

project = "cstep"
extensions = ["myst_parser"]
html_theme = "alabaster"
myst_heading_anchors = 3
