"""Code shared by the commands."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError
from scaling.files import Location, check_output, write_json_output

if TYPE_CHECKING:
    from scaling.study.declaration import Study
    from scaling.study.store import StudyFolder

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command from its name, its function and its description; returns its parser."""


def study_and_store(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that works on a study's results."""
    parser.add_argument("study", metavar="STUDY", help="a module such as experiments.demo, or a file")
    parser.add_argument("--store", required=True, metavar="URI", help="a folder, or a URI such as s3://bucket/path")


def load_study(name: str) -> Study:
    """Load the `STUDY` of a module such as experiments.demo, or of a .py file.

    Raises:
        UserError: It cannot be loaded, or defines no study.
    """
    from scaling.study.declaration import Study

    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"study {Path(name).stem}", name)
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # the file's dataclasses look up their annotations here
            try:
                spec.loader.exec_module(module)
            finally:  # workers have no such module, so Ray pickles its definitions by value
                sys.modules.pop(spec.name, None)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(name)
        study = getattr(module, "STUDY", None)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # any exception of the user's module is a user error, including sys.exit
        raise UserError(
            f"study {name}: cannot be loaded ({type(error).__name__}: {error}); give a module such as experiments.demo, or a .py file"
        ) from error
    if not isinstance(study, Study):
        raise UserError(f"study {name}: the module must define STUDY = Study(...)")
    return study


def say(text: str) -> None:
    """Print a line with a timestamp."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def inputs(options: argparse.Namespace) -> list[Location]:
    """All inputs named by a command's arguments, excluding outputs; arguments that are not paths do no harm."""
    named = [value for name, value in vars(options).items() if name not in ("json", "out")]
    flat = [item for value in named for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, str | Path)]


def check_json(options: argparse.Namespace) -> None:
    """Reject an invalid ``--json`` path before anything is computed."""
    if getattr(options, "json", None) is not None:
        check_output(options.json, inputs(options))


def write_json(options: argparse.Namespace, value: Any) -> None:
    """Write a command's ``--json`` output, if requested."""
    write_json_output(options.json, value, inputs(options))


def study_folder(options: argparse.Namespace) -> tuple[Study, StudyFolder]:
    """The study of a command and its existing folder in the store.

    Raises:
        UserError: There is no such study, or no such store.
    """
    from scaling.study.store import Store, StudyFolder

    study, store = load_study(options.study), Store(options.store)
    if store.local is not None and not store.local.is_dir():
        raise UserError(f"--store {options.store}: no such folder; correct it, or run the study first")
    return study, StudyFolder(store, study.name)
