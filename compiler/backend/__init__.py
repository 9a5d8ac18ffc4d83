"""From the integer module to a program: stages, tiles, schedule, addresses, tokens, file."""
