"""Seeds derived from their purpose, so that every random draw is independent of all others and reproducible."""

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from a purpose and indices, identical in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
