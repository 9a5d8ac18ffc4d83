"""The cstep dialect (placeholder until the back end's ops are derived from isa.instructions)."""
from xdsl.ir import Dialect
CSTEP = Dialect("cstep", [], [])
