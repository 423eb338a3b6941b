"""Reading who is what: an answer that gives each of several people one of two roles. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARACTERS = 2000  # of an answer


def stated_roles(text: str, names: Sequence[str], roles: Sequence[str]) -> list[tuple[str, str]]:
    """Every "NAME is a ROLE" (or "NAME: ROLE") of a text, in order, as the names and roles are given.

    >>> stated_roles("Zoey is a knight. No: zoey is a Knave!", ["Zoey"], ["knight", "knave"])
    [('Zoey', 'knight'), ('Zoey', 'knave')]
    """
    who, role = ("|".join(re.escape(word) for word in words) for words in (names, roles))
    found = re.findall(rf"\b({who})\b\s*(?:is\b|:|=|-)\s*(?:an?\b\s*)?({role})\b", text, re.IGNORECASE)
    return [(_spelled(name, names), _spelled(role, roles)) for name, role in found]


def _spelled(found: str, words: Sequence[str]) -> str:
    """Which of the words was matched; not by lower case, which is another relation (the Turkish dotless i)."""
    return next(word for word in words if re.fullmatch(re.escape(word), found, re.IGNORECASE))


def parse_roles(text: str, names: Sequence[str], roles: Sequence[str]) -> list[bool]:
    """Who has the first role, by an answer that gives each person exactly one, in any order. Otherwise a ValueError.

    As Logic-RL reads answers (Xie et al. 2025, arXiv:2502.14768): as many role words as people, and each person named.

    >>> parse_roles("Oliver is a knight, Zoey: knave", ["Zoey", "Oliver"], ["knight", "knave"])
    [False, True]
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the answer is longer than {MAX_CHARACTERS} characters")
    role = "|".join(re.escape(word) for word in roles)
    words = re.findall(rf"\b(?:{role})s?\b", text, re.IGNORECASE)
    stated = stated_roles(text, names, roles)
    if len(words) != len(names) or len(stated) != len(names):
        raise ValueError(
            f"the answer must give {len(names)} people one role each; it has {len(words)} roles: {text[:80]!r}"
        )
    found = dict(stated)
    if len(found) != len(names):
        raise ValueError(f"the answer gives somebody two roles: {text[:80]!r}")
    return [found[name] == roles[0] for name in names]
