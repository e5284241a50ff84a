"""The pages: links lead somewhere, Python blocks run, commands parse, and what users declare, read and call is named."""

import ast
import contextlib
import dataclasses
import fnmatch
import functools
import io
import re
import shlex
import textwrap
from types import SimpleNamespace

import pytest

import analysis.__main__
import cluster.__main__
import scaling.__main__
from analysis.laws import LAWS
from cluster.environment import ROOT
from scaling.results import Row
from scaling.study import declaration

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
PARSERS = {
    "scaling": scaling.__main__._parser,
    "python -m scaling": scaling.__main__._parser,
    "python -m analysis": analysis.__main__._parser,
    "python -m cluster": cluster.__main__._parser,
}
COMMAND = re.compile(
    r"^ *(?:ray job submit .* -- +)?(?:\w+=\S+ )*(?P<program>scaling|python -m \S+) (?P<words>.*)$", re.MULTILINE
)
PYTHON = re.compile(r"^(?P<not_run><!-- not run: .+ -->\n)?```python\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def test_every_link_and_anchor_leads_somewhere(tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    assert {path.stem for path in PAGES if path.parent.name == "docs"} < {
        path.stem for path in tmp_path.rglob("*.html")
    }


@pytest.mark.parametrize("broken", ["[a](missing.md)", "[a](#missing)", "[a](missing/scaling/x.py)"])
def test_a_link_that_leads_nowhere_fails_the_build(broken, tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    (tmp_path / "index.md").write_text(f"# Title\n\n{broken}\n")
    changes = {"docs_dir": str(tmp_path), "nav": None, "hooks": [], "site_dir": str(tmp_path.parent / "site")}
    with pytest.raises(Abort, match="1 warnings"):
        build(load_config(str(ROOT / "mkdocs.yml"), **changes))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("study.md", "[a](data.md#shards)", "[a](data.md#shards)"),
        ("study.md", "[a](../cluster/README.md)", "[a](cluster.md)"),
        ("study.md", "[a](../scaling/results.py)", "a"),
        ("study.md", "[a](../scaling/missing.py)", "[a](missing/scaling/missing.py)"),
        ("index.md", "![a](docs/pictures/demo.png)", "![a](pictures/demo.png)"),
        ("index.md", "[a](study.md)", "[a](missing/study.md)"),
        ("cluster.md", "[a](../docs/study.md#watch) [b](https://x.org)", "[a](study.md#watch) [b](https://x.org)"),
    ],
)
def test_links_mean_the_same_in_the_repository_and_on_the_pages(page, link, expected):
    pytest.importorskip("mkdocs")
    from docs.hooks import on_page_markdown

    assert on_page_markdown(link, SimpleNamespace(file=SimpleNamespace(src_uri=page))) == expected


@EACH
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in PYTHON.finditer(page.read_text()):
        code = compile(block["source"], str(page), "exec", flags=ast.PyCF_ONLY_AST if block["not_run"] else 0)
        if not block["not_run"]:
            exec(code, names)


def commands(page):
    """The command lines in the code blocks of a page: each its program and its words, without comments."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(
        r"^(?: {4,}.*\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    for block in fenced + indented:
        for line in COMMAND.finditer(textwrap.dedent(block)):
            yield line["program"], shlex.split(line["words"], comments=True)


@functools.cache
def help_of(program, *command):
    """What a command says of itself: the options, and the commands below it."""
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        PARSERS[program]().parse_args([*command, "--help"])
    options = set(re.findall(r"--[\w-]+", text.getvalue()))
    return options, set(re.findall(r"^    (\w+)(?: |$)", text.getvalue(), re.MULTILINE))


def options_of(program, name):
    return help_of(program, name)[0]


def names_of(program):
    return help_of(program)[1]


@EACH
def test_commands_parse(page):
    for program, words in commands(page):
        if program in PARSERS:
            PARSERS[program]().parse_args(words)  # exits with what is wrong
        else:
            require_module(program, " ".join(words))


def require_module(program, words):
    """A benchmark is there, and so are the options it is called with."""
    path = ROOT / (program.removeprefix("python -m ").replace(".", "/") + ".py")
    source = path.read_text()
    assert path.parent.name == "benchmarks"
    for option in re.findall(r"--[\w-]+", words):
        assert f'"{option}"' in source, f"{program} has no {option}"


@EACH
def test_commands_and_options_in_the_text_are_there(page):
    ours = {"--against"}.union(*(options_of(program, name) for program in PARSERS for name in names_of(program)))
    for span in SPAN.findall(page.read_text()):
        options = set(re.findall(r"(?<!\S)--[\w-]+", span))
        if program := next((each for each in PARSERS if span.startswith(f"{each} ")), None):
            name = span.removeprefix(program).split()[0]
            assert name in names_of(program), span
            assert options <= options_of(program, name), span
        elif benchmark := re.fullmatch(r"(python -m benchmarks\S+) ?(.*)", span):
            require_module(*benchmark.groups())
        elif span.startswith("--") and page.parent.name != "cluster":  # which names options of Ray, too
            assert options <= ours, span


@EACH
def test_files_and_targets_in_the_text_are_there(page):
    targets = set(re.findall(r"^([.\w]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for span in SPAN.findall(page.read_text()):
        if target := re.fullmatch(r"make ([.\w]+)", span):
            assert target[1] in targets, span
        elif re.fullmatch(r"(scaling|analysis|cluster|experiments|benchmarks|tests|docs)/[\w./-]+", span):
            assert (ROOT / span).exists(), span


def spans(page):
    return " ".join(SPAN.findall((ROOT / "docs" / page).read_text()))


def test_every_command_is_in_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    for program in ("scaling", "python -m analysis", "python -m cluster"):
        for name in names_of(program):
            assert f"{program} {name}" in text, f"{program} {name}"


def test_every_column_of_the_row_is_named():
    section = (ROOT / "docs" / "data.md").read_text().partition("## The row")[2].partition("\n## ")[0]
    patterns = re.findall(
        r"`([\w*]+)`", " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
    )
    names = [field.name for field in dataclasses.fields(Row)]
    assert [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(names, pattern)] == []


def test_every_law_is_named_with_its_formula():
    text = (ROOT / "docs" / "laws.md").read_text()
    for law in LAWS.values():
        assert f"| `{law.name}` | `{law.formula.split(';')[0].removeprefix('L = ')}` |" in text


def test_every_field_of_a_declaration_is_named():
    named = set(re.findall(r"\w+", " ".join(spans(name) for name in ("study.md", "data.md", "training.md"))))
    blocks = "".join(block["source"] for block in PYTHON.finditer((ROOT / "docs" / "study.md").read_text()))
    named |= set(re.findall(r"(\w+)=", blocks))
    for name in set(declaration.__all__) - {"Cell", "BaselineCell"}:
        fields = {field.name for field in dataclasses.fields(getattr(declaration, name))}
        assert fields <= named, f"{name}: {sorted(fields - named)}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
