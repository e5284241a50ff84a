"""The errors that both command lines turn into one clear line and exit status 2."""


class UserError(ValueError):
    """A user's mistake: the message names what is wrong and where, what was expected and what to do."""


class NodeError(UserError):
    """An error of the node that a trial runs on, not of the trial: on another node it would run.

    `node` is the node's Ray id where the one who catches it cannot know; it travels with the error between processes.
    """

    node: str = ""
