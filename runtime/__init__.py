"""The emulator: runs a program file bit for bit and counts what it cost."""
