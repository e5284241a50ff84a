import textwrap

import pytest


@pytest.fixture
def study_file(tmp_path, shards):
    """Writes a study over the test shards, with some of its text replaced."""

    def write(*changes):
        text = f"""
            from pathlib import Path
            from scaling.study.declaration import *
            STUDY = Study(
                name="mine", question="?",
                data=Data(
                    source=Sources(shards=Path({str(shards)!r}), train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5")),
                    num_spectra=(64, 128), rules=DataRules(noise="fixed", label="log_g")),
                ladder=Ladder(num_pixels=1024, patch_size=128), widths=(4, 8),
                recipe=Recipe(budget=Budget(samples=256), batch_size=32), search=Search(trials=1))
        """
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write
