"""The command line: operational flags only. Exit status: 0 done, 1 failed, 2 user error.

A study's science is in its module.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from scaling.commands import data, model, study
from scaling.commands.common import check_json
from scaling.errors import UserError
from scaling.files import FINAL


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user error is printed as one line on stderr and gives exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        check_json(options)
        return options.command(options)
    except UserError as error:
        print(f"scaling: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        mistake = isinstance(error, (*FINAL, FileExistsError))
        what = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        remedy = "give another path, or correct this one" if mistake else "run the same command again"
        print(f"scaling: {what}; {remedy}", file=sys.stderr)
        return 2 if mistake else 1
    except ModuleNotFoundError as error:
        if (error.name or "scaling").partition(".")[0] == "scaling":
            raise
        print(
            f"scaling: this Python has no {error.name}: install the project's dependencies (`pip install -c constraints.txt .`), or "
            "submit with `python -m cluster submit --pip`",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt as error:
        print(f"scaling: {error or 'interrupted; the same command continues from here'}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaling", description="Scaling studies of spectrum Transformers on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    for group in (data, study, model):
        group.add_commands(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
