"""The one kind of error that a user sees, and the one kind of warning."""


class CStepError(ValueError):
    """A user's mistake, said in one line: what, where, what would have been right."""


class CStepWarning(UserWarning):
    """What was accepted and may not be meant, said in one line: what, where, what follows."""
