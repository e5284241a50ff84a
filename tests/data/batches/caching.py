"""What the tests of the node cache share."""

from scaling.data.batches.noise import FixedNoise

NOISE = FixedNoise(seed=3, level=1.0)
ROW_BYTES = 4 * 1024


def folder_of(root):
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def stamps(root):
    kept = (path for path in root.rglob("*") if path.is_file() and path.name not in ("lock", "in-use"))
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def sizes(root):
    return {path.name: path.stat().st_size for path in root.rglob("*.f32")}
