"""The one exception both command lines turn into one clear line and exit status 2."""


class UserError(ValueError):
    """A user's mistake: the message names what is wrong and where, what was expected and what to do."""
