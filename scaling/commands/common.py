"""What the commands share."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.study.declaration import Study

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command of a name, the function that does it, and what it does in words; returns its parser."""


def study_and_store(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that works on a study's results."""
    parser.add_argument("study", metavar="STUDY", help="a module such as experiments.demo, or a file")
    parser.add_argument("--store", required=True, metavar="URI", help="a folder, or a URI such as s3://bucket/path")


def load_study(name: str) -> Study:
    """The `STUDY` of a module such as experiments.demo, or of a .py file.

    Raises:
        UserError: if it cannot be loaded, or defines none.
    """
    from scaling.study.declaration import Study

    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises is theirs to mend
        raise UserError(
            f"study {name}: cannot be loaded ({type(error).__name__}: {error}); give a module such as experiments.demo, or a .py file"
        ) from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise UserError(f"study {name}: the module must define STUDY = Study(...)")
    return study


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def write_json(path: Path | None, value: Any) -> None:
    """Write JSON under a temporary name and rename it; nothing where no path is given."""
    if path is not None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(partial, path)
