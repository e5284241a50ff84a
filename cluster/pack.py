"""Print a study's report and table as text, for `python -m cluster fetch`; runs as a job with access to the store."""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tarfile

from cluster.jobs import BEGIN, END
from scaling.commands.common import study_and_store, study_folder
from scaling.errors import UserError


def main() -> int:
    """The entry point of the job."""
    parser = argparse.ArgumentParser(prog="python -m cluster.pack")
    study_and_store(parser)
    try:
        _, folder = study_folder(parser.parse_args())
        files = [
            path for path in folder.store.tree(folder.name) if path.startswith("report/") or path == "results.parquet"
        ]
        if not any(path.startswith("report/") for path in files):
            raise UserError(f"{folder.store.locate(folder.name)}: no report yet; `scaling report` writes one")
    except UserError as error:
        print(" ".join(str(error).split()))
        return 2
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(files):
            if (content := folder.store.read(f"{folder.name}/{path}")) is None:  # a folder
                continue
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    text = base64.b64encode(buffer.getvalue()).decode()
    print(BEGIN, *(text[at : at + 1000] for at in range(0, len(text), 1000)), END, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
