"""The one kind of error that a user sees."""


class CStepError(ValueError):
    """A user's mistake, said in one line: what, where, what would have been right."""
