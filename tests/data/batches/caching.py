"""What the tests of the node cache share."""

from scaling.data.batches.cachefolder import Mark
from scaling.data.batches.noise import FixedNoise

NOISE = FixedNoise(seed=3, level=1.0)


def folder_of(root):
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def stamps(root):
    kept = (path for path in root.rglob("*") if path.is_file() and path.name not in ("lock", "in-use"))
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def lengths(root):
    return {path.stem: path.stat().st_size for path in root.rglob("*.f32")}


def marks(root):
    """The numbers of the shards that are complete, of each array."""
    found = {}
    for path in sorted(root.rglob("marks/*.json")):
        for name in Mark.read(path).digests:
            found.setdefault(name, []).append(int(path.stem))
    return found


def rows_in(root):
    """Complete rows of each array of the only split."""
    folder = folder_of(root)
    found = {}
    for name, shards in marks(root).items():
        found[name] = sum(Mark.read(Mark.path(folder, shard)).rows for shard in shards)
    return {name: rows for name, rows in found.items() if name != "params"}


def flip(path, at):
    """Alter a byte."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))
