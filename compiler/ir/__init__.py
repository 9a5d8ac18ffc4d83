"""The dialects `spike` and `cstep`, their one spelling, and what every op computes."""
