"""Seeds derived from what they are for, so that a draw depends on nothing but its name."""

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from a purpose and its indices, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
