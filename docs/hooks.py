"""Pages that lie elsewhere in the repository, and links out of docs/: the same links work on GitHub and in the built pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster.md",
    "benchmarks/coverage.md": "coverage.md",
    "experiments/LOG.md": "log.md",
}
"""Files of the repository that are pages, and what they are called there."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn each relative link into one to a page. A file that is no page keeps its name only; mkdocs reports what is missing."""
    names = {name: path for path, name in ELSEWHERE.items()}
    folder = posixpath.dirname(names.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def to_page(link: re.Match[str]) -> str:
        picture, text, path, anchor = link.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in ELSEWHERE or target.startswith("docs/"):
            return f"{picture}[{text}]({ELSEWHERE.get(target, target.removeprefix('docs/'))}{anchor})"
        return text if (ROOT / target).exists() else f"[{text}](missing/{target})"

    return LINK.sub(to_page, markdown)
