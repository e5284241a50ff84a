"""The report of a study as a page on loopback: the one in its store or, until then, a preliminary one from its rows."""

from __future__ import annotations

import contextlib
import html
import mimetypes
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

from scaling.errors import UserError
from scaling.results import to_table
from scaling.study.declaration import Study
from scaling.study.store import StudyFolder
from scaling.sweep.run import gather
from scaling.sweep.status import study_status

DRAW_SECONDS = 60.0
"""Minimum interval between renderings, which happen only on request, since the sweep needs the CPUs."""
REFITS = 100
STATUS_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title><style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
li{{overflow-wrap:anywhere}}</style></head><body><h1>{name}</h1><p>{question}</p><p>The first figures come with the first rows,
the report when the sweep is done. Until then, from the store:</p><ul>{lines}</ul></body></html>"""


class LivePage:
    """The page of a study without a report: its status, and a preliminary report updated once a minute."""

    def __init__(self, folder: StudyFolder, study: Study) -> None:
        self._folder, self._study = folder, study
        self._page: bytes | None = None
        self._rows, self._began = 0, -DRAW_SECONDS
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The current page; starts to render the next one in the background if it is due."""
        with self._lock:
            due = time.monotonic() - self._began >= DRAW_SECONDS
            if due:
                self._began = time.monotonic()
        if due:
            threading.Thread(target=self._draw, daemon=True).start()
        if self._page is not None:
            return self._page
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self._progress())
        question = html.escape(self._study.question)
        return STATUS_PAGE.format(name=self._study.name, question=question, lines=lines).encode()

    def _progress(self) -> list[str]:
        text, _ = study_status(self._folder, self._study)
        lines = text.removeprefix(f"{self._study.name}: ").splitlines()
        return [part for line in lines for part in line.split(" | ")]

    def _draw(self) -> None:
        from analysis.points.limit import parse_limit
        from analysis.report.page import write_report
        from analysis.report.pictures import TRIAL_CURVES

        with contextlib.suppress(UserError), tempfile.TemporaryDirectory(prefix="spectral-scaling-live-") as scratch:
            rows = gather(self._study, self._folder)
            if len(rows) == self._rows:
                return
            known, place = self._folder.read_limit(), self._folder.store.locate(self._folder.limit_path)
            page = write_report(
                to_table(rows).to_pandas(),
                Path(scratch) / "report",
                bootstrap=REFITS,
                limit=None if known is None else parse_limit(known, place),
                curves=TRIAL_CURVES,
                progress=self._progress(),
            )
            self._page, self._rows = page.read_bytes(), len(rows)


@contextlib.contextmanager
def report_server(folder: StudyFolder, study: Study, host: str, port: int) -> Iterator[None]:
    """Serve the report from the store, with its trials' curves, and a live page until there is one."""
    live = LivePage(folder, study)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = PurePosixPath(self.path.partition("?")[0].strip("/") or "index.html")
            curve = path.parts[:1] == ("trials",) and path.name == "progress.csv"
            place = f"{folder.name}/{path}" if curve else f"{folder.name}/report/{path}"
            content = None if ".." in path.parts else folder.store.read(place)
            if content is None and str(path) == "index.html":
                content = live.read()
            kind = "text/plain" if curve else mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *arguments: Any) -> None:
            """Suppress the log of requests."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
