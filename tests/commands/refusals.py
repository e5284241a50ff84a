"""What every user's mistake must print."""

from scaling.__main__ import main


def mistake(capsys, *arguments):
    """The one line printed for a command that must fail as the user's mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("scaling: ")
    assert error.count("\n") == 1
    return error
