"""What the commands share."""

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
            spec = importlib.util.spec_from_file_location(f"study {Path(name).stem}", name)
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # where the file's own dataclasses look up their annotations
            try:
                spec.loader.exec_module(module)
            finally:  # Ray sends what is defined there by its content: workers have no such module
                sys.modules.pop(spec.name, None)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(name)
        study = getattr(module, "STUDY", None)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's module raises is theirs to correct, sys.exit too
        raise UserError(
            f"study {name}: cannot be loaded ({type(error).__name__}: {error}); give a module such as experiments.demo, or a .py file"
        ) from error
    if not isinstance(study, Study):
        raise UserError(f"study {name}: the module must define STUDY = Study(...)")
    return study


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def inputs(options: argparse.Namespace) -> list[Location]:
    """Everything that a command's arguments name, but for its outputs; what is no file or folder does no harm."""
    named = [value for name, value in vars(options).items() if name not in ("json", "out")]
    flat = [item for value in named for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, str | Path)]


def check_json(options: argparse.Namespace) -> None:
    """Refuse a command's ``--json`` before anything is computed."""
    if getattr(options, "json", None) is not None:
        check_output(options.json, inputs(options))


def write_json(options: argparse.Namespace, value: Any) -> None:
    """Write a command's ``--json``; nothing where none is given."""
    write_json_output(options.json, value, inputs(options))


def study_folder(options: argparse.Namespace) -> tuple[Study, StudyFolder]:
    """The study of a command and its folder in the store, which is there.

    Raises:
        UserError: There is no such study, or no such store.
    """
    from scaling.study.store import Store, StudyFolder

    study, store = load_study(options.study), Store(options.store)
    if store.local is not None and not store.local.is_dir():
        raise UserError(f"--store {options.store}: no such folder; correct it, or run the study first")
    return study, StudyFolder(store, study.name)
