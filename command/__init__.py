"""The command line: one file a command, application.py registers them. Above everything but cstep.py."""
