"""The manifest is a door for content from outside: what is not exactly a manifest of these shards is refused in one line."""

import copy
import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.data.shards.manifest import FORMAT_VERSION, MANIFEST, Manifest, _digest
from scaling.data.shards.verify import describe_shards, verify
from scaling.errors import UserError
from tests.data.shards.converting import one_line

FIRST = "train/part-00000.parquet"


@pytest.fixture(scope="module")
def fields(original):
    """The fields of the manifest but for its digest; to be copied before they are changed."""
    found = json.loads((original / MANIFEST).read_text())
    del found["digest"]
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def signed(fields):
    """A manifest with a correct digest of whatever its fields are."""
    return json.dumps(fields | {"digest": _digest(fields)}).encode()


def refused(dest, content):
    """What is said of a manifest."""
    (dest / MANIFEST).write_bytes(content)
    with pytest.raises(UserError) as raised:
        Manifest.load(dest)
    assert str(dest / MANIFEST) in str(raised.value)
    return one_line(raised.value)


def places(value, path=()):
    """The paths of all values of a JSON document."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def holder(value, path):
    for key in path[:-1]:
        value = value[key]
    return value


NUMBERS = st.one_of(
    st.integers(-5, 100), st.sampled_from([10**30, -(10**30), 10**5000, 2**63, 1e308, -0.0, 0.5, float("nan")])
)
VALUES = st.one_of(NUMBERS, st.text(max_size=9), st.none(), st.booleans(), st.just([]), st.just({}), st.just([[[]]]))
SIMPLE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=150, **SIMPLE)
@given(data=st.data())
def test_a_changed_manifest_means_the_same_or_is_refused(data, fields, original, scratch):
    changed = copy.deepcopy(fields)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in places(changed) if path]))
        parent, key = holder(changed, path), path[-1]
        what = data.draw(st.sampled_from(["delete", "rename", "replace", "replace", "twice"]))
        if what == "replace":
            parent[key] = copy.deepcopy(data.draw(VALUES))  # the next change may be inside it
        elif isinstance(parent, dict):
            value = parent.pop(key)
            if what != "delete":
                parent[data.draw(st.text(max_size=9))] = value
        elif what == "twice":
            parent.insert(data.draw(st.integers(0, len(parent))), copy.deepcopy(parent[key]))
        else:
            del parent[key]
    try:
        text = (
            signed(changed) if data.draw(st.booleans()) else json.dumps(changed | {"digest": _digest(fields)}).encode()
        )
    except ValueError:  # json has no word for so large a number
        return
    (scratch / MANIFEST).write_bytes(text)
    started = time.monotonic()
    try:
        found = Manifest.load(scratch)
    except UserError as error:
        one_line(error)
    else:
        again = json.loads(found.content(), parse_int=float)  # a whole number in place of an SNR is rounded to a float
        del again["digest"]
        assert again == json.loads(json.dumps(changed), parse_int=float)
        for split in ("train", "val", "test"):
            assert found.digest(split, found.num_rows(split))
    assert time.monotonic() - started < 2


@settings(max_examples=150, **SIMPLE)
@given(data=st.data())
def test_changed_bytes_mean_the_same_or_are_refused(data, original, scratch):
    content = bytearray((original / MANIFEST).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\0", b"\xff", b"{", b"}", b'"', b"1", b"e9", b"NaN", b"\\u0000", b" "])
        )
        content[at : at + data.draw(st.integers(0, 3))] = piece
    (scratch / MANIFEST).write_bytes(content)
    try:
        found = Manifest.load(scratch)
    except UserError as error:
        one_line(error)
    else:
        assert found.content() == Manifest.load(original).content()


def edited(fields, *path, value):
    """The fields with one of them changed, or, where it is a function, as it makes it."""
    changed = copy.deepcopy(fields)
    parent = holder(changed, path)
    parent[path[-1]] = value(parent[path[-1]]) if callable(value) else value
    return changed


def shards_of(split):
    return ("splits", split)


@pytest.mark.parametrize("rows", [17, 15, 0, -5, 10**12, 10**30, 16.0, "16", True, None, [16]])
@pytest.mark.parametrize("index", [0, 3])
def test_a_wrong_number_of_rows_is_refused(rows, index, dest, fields):
    changed = edited(fields, *shards_of("train"), index, "rows", value=rows)
    if index == 3 and rows == 15:
        rows = 12
    assert re.search("rows", refused(dest, signed(changed)))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("train/part-00001.parquet", "train lists a shard twice"),
        ("val/part-00000.parquet", "one of another split"),
        ("/etc/passwd", "pattern"),
        ("/train/x.parquet", "pattern"),
        ("../x.parquet", "pattern"),
        ("train/../../x.parquet", "pattern"),
        ("train/..parquet", "pattern"),
        ("train\\x.parquet", "pattern"),
        ("train/a\\..\\x.parquet", "pattern"),
        ("train/x.parquet\n", "pattern"),
        ("train//x.parquet", "pattern"),
        ("train/.x.parquet", "pattern"),
        ("train/x\0.parquet", "pattern"),
        ("other/x.parquet", "pattern"),
        ("train/x", "pattern"),
        ("", "pattern"),
        ("train/" + "x" * 100_000 + ".parquet", ""),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_shard_of_another_name_is_refused(file, said, dest, fields):
    assert said in refused(dest, signed(edited(fields, *shards_of("train"), 0, "file", value=file)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("wave",), []),
        (("wave",), [4000.0]),
        (("wave",), lambda wave: wave[:-1]),
        (("wave",), lambda wave: [*wave, wave[-1] + 1]),
        (("wave",), lambda wave: wave[::-1]),
        (("wave",), lambda wave: [wave[1], *wave[1:]]),
        (("wave",), lambda wave: [*wave[:-1], None]),
        (("wave",), lambda wave: [*wave[:-1], "5000"]),
        (("wave",), lambda wave: [*wave[:-1], 10**400]),
        (("wave",), lambda wave: [[value] for value in wave]),
        (("wave",), {}),
        (("wave",), "12345678"),
        (("wave",), None),
        (("pixels",), 7),
        (("pixels",), None),
        (("format_version",), 2),
        (("format_version",), 4),
        (("format_version",), "3"),
        (("format_version",), 3.0),
        (("format_version",), True),
        (("splits",), []),
        (("splits", "val"), []),
        (("splits", "more"), []),
        (("sources", "val"), []),
        (("sources", "val", 0, "rows"), 11),
        (("sources", "val", 0, "size"), -1),
        (("labels",), None),
        (("labels", "log_g", "mean"), "3"),
        (("labels", "log_g", "nan"), -1),
        (("labels", "log_g", "more"), 1),
        (("snr", "50"), None),
        (("snr", "50"), "1"),
        (("order", "kind"), "auto"),
        (("order", "seed"), -1),
        (("order", "seed"), 2**63),
        (("problems",), "none"),
        (("statistics",), "x"),
        (("splits", "train", 0, "checksum"), "A" * 32),
        (("splits", "train", 0, "more"), 1),
        (("more",), 1),
    ],
    ids=lambda value: "altered" if callable(value) else str(value),
)
def test_a_field_that_is_not_as_it_must_be_is_named(path, value, dest, fields):
    if path[-1] == "more":
        changed = copy.deepcopy(fields)
        holder(changed, path)["more"] = value
    elif path == ("sources", "val"):
        changed = copy.deepcopy(fields)
        del changed["sources"]["val"]
    else:
        changed = edited(fields, *path, value=value)
    said = refused(dest, signed(changed))
    name = {"format_version": "format version", "more": "plit" if "splits" in path else "more"}.get(path[-1], path[-1])
    assert name in said or path[0] in said


@pytest.mark.parametrize(
    "path", [("labels", "log_g", "mean"), ("wave",), ("labels", "log_g", "std"), ("rows_per_shard",)]
)
def test_what_is_edited_without_its_digest_is_refused(path, dest, fields):
    twice = edited(fields, *path, value=lambda value: [2 * v for v in value] if isinstance(value, list) else 2 * value)
    original = json.loads((dest / MANIFEST).read_text())["digest"]
    assert "was altered" in refused(dest, json.dumps(twice | {"digest": original}).encode())
    assert "was altered" in refused(dest, json.dumps(twice).encode())
    assert "was altered" in refused(dest, json.dumps(twice | {"digest": [1]}).encode())


def test_yesterdays_version_says_what_to_do(dest):
    for version in (1, FORMAT_VERSION - 1):
        said = refused(dest, json.dumps({"format_version": version, "train": {}}).encode())
        assert f"format version {version}, expected {FORMAT_VERSION}: convert the sources again" in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"3",
        b"{",
        b"{}",
        b"\xef\xbb\xbf{}",
        b"\x00" * 100,
        bytes(range(256)),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"format_version": 3, "wave": ' + b"9" * 100_000 + b"}",
        b'{"format_version": NaN}',
        b'{"format_version": 1e999}',
        b'{"format_version": "\\ud800"}',
        b'{"\\ud800": 1, "format_version": 3}',
    ],
    ids=lambda content: ascii(content[:30])[2:-1],
)
def test_what_is_no_manifest_is_one_line(content, dest):
    refused(dest, content)
    assert not verify_is_clean(dest)


def verify_is_clean(dest):
    try:
        return verify(dest) == []
    except UserError:
        return False


def test_a_key_that_is_there_twice_is_not_another_meaning(dest, original):
    text = (dest / MANIFEST).read_text()
    first = text.replace("{", '{"rows_per_shard": 999,', 1)
    (dest / MANIFEST).write_text(first)
    assert Manifest.load(dest).content() == Manifest.load(original).content()
    last = text.rstrip().removesuffix("}") + ', "rows_per_shard": 999}'
    assert "was altered" in refused(dest, last.encode())


def test_it_is_described_in_words(original):
    assert "60 spectra in 4 shards" in describe_shards(original)
