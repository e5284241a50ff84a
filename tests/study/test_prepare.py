"""Where a study's shards are."""

from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.study.declaration import Data, Sources
from scaling.study.prepare import shards_path
from scaling.study.store import Store
from tests.study.example import example_study


@pytest.mark.parametrize("place", ["shards", "s3:/", "nonsense"])
def test_shards_are_named_by_a_path_or_a_uri(place):
    with pytest.raises(UserError, match=r"Sources.shards = .*a URI as a string"):
        Sources(shards=place, train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5"))


def test_the_place_of_a_studys_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(str(tmp_path / "store"))
    for given, found in (
        ("s3://bucket/shards?region=x", "s3://bucket/shards?region=x"),
        (Path("shards"), tmp_path / "shards"),
        (f"file://{tmp_path}/shards", tmp_path / "shards"),
    ):
        source = Sources(shards=given, train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5"))
        study = example_study(data=Data(source=source, num_spectra=(128, 256)))
        assert shards_path(study, store) == found
