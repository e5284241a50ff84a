"""Every command of the capacity guide that is given with its output prints that output."""

import os
import shlex
import subprocess
import sys
import textwrap

import pytest

from cluster.environment import ROOT

GUIDE = ROOT / "cluster" / "CAPACITY.md"


def transcript(text):
    """The commands of the indented blocks, each with the lines that it printed. A command ends where its quotes do."""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    found = []
    for line in lines:
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif is_open(found[-1][0]):
            found[-1][0] += "\n" + line
        else:
            found[-1][1].append(line.strip())
    return found


def is_open(command):
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


def printed(command, folder):
    bin_folder = os.path.dirname(sys.executable)
    settings = {name: value for name, value in os.environ.items() if name not in ("BOSZ_1M", "SHARDS")}
    settings |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=settings, capture_output=True, text=True)
    assert not done.stderr, textwrap.indent(done.stderr, "    ")
    return [line.strip() for line in done.stdout.splitlines()]


def test_a_command_ends_where_its_quotes_do():
    text = "x\n\n    $ echo 'a\n    b'\n    a\n    b\n    $ true\n"
    assert transcript(text) == [["echo 'a\nb'", ["a", "b"]], ["true", []]]


@pytest.mark.rehearsal
@pytest.mark.timeout(900)  # eight plans, 7 s of a core each
def test_the_capacity_guide_quotes_what_its_commands_print(tmp_path):
    commands = transcript(GUIDE.read_text())
    assert sum("scaling plan" in command for command, _ in commands) == 4
    for command, quoted in commands:
        assert printed(command, tmp_path) == quoted, command
