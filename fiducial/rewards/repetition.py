"""How much a text repeats itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

LONGEST_PERIOD = 12  # words


def repetition(words: Sequence[Hashable], n: int = 3) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1); 0 for a text that has none.

    >>> repetition("a b c a b c".split()), repetition("a a a a a".split())  # abc bca cab abc; aaa three times
    (0.25, 0.6666666666666667)
    """
    number = len(words) - n + 1
    if number < 1:
        return 0.0
    return 1 - len({tuple(words[i : i + n]) for i in range(number)}) / number


def repeated_in_a_row(words: Sequence[Hashable], times: int = 5) -> bool:
    """Whether some stretch of at most 12 words stands `times` times in a row, and makes eight words or more.

    >>> repeated_in_a_row("so it is so it is so it is so it is so it is".split()), repeated_in_a_row("no no no".split())
    (True, False)
    """
    for period in range(1, LONGEST_PERIOD + 1):
        run, wanted = 0, max((times - 1) * period, 8 - period)
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            if run >= wanted:
                return True
    return False
