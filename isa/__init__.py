"""The instruction set: words, instructions, machine, program file, verifier."""
