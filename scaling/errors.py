"""Errors that both command lines report as one line, with exit status 2."""


class UserError(ValueError):
    """A user error; the message says what is wrong and where, what was expected and what to do."""


class NodeError(UserError):
    """An error of the node that a trial runs on, not of the trial, which would run on another node.

    `node` is the node's Ray id, set where the handler cannot know it; it is pickled with the error between processes.
    """

    node: str = ""
