"""Randomness as a function of where it is used, so that nothing about it has to be saved to resume exactly."""

from __future__ import annotations

import hashlib


def mix(*parts: int | str) -> int:
    """One 63-bit seed from a run's seed and the place it is used at, such as (seed, "sample", step, prompt, copy).

    Stable over processes and versions, unlike `hash`.

    >>> mix(0, "sample", 3) == mix(0, "sample", 3), mix(0, "sample", 3) == mix(0, "sample", 4)
    (True, False)
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
