"""How a person's judgement in degrees becomes something to learn from (the guidelines of Ouyang et al. 2022,
arXiv:2203.02155): several criteria to one rating, and a rating to a probability, a margin or a tie."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fiducial.data.view import BadRow, describe, read_boolean, read_number

RATINGS = ("hard", "soft", "margin", "filter_slight")
TIES = ("drop", "half", "keep")
LARGE, SLIGHT = 2.0, 1.0  # |rating| of "A is better" and of "A is slightly better"


@dataclass(frozen=True)
class Grading:
    """What a rating from +2 (A is better) over +1 (slightly) and 0 (a tie) to -2 becomes.

    | `ratings`       | probability that A is better                      | margin            |
    |-----------------|---------------------------------------------------|-------------------|
    | "hard"          | 1 above 0, 0 below                                | 0                 |
    | "soft"          | sigmoid(scale x rating), 1/2 at 0                 | 0                 |
    | "margin"        | as "hard"                                         | scale x \\|rating\\| |
    | "filter_slight" | as "hard"; a rating of +1 or -1 is not used       | 0                 |

    `scale` has no usual value and must be given where it is used. A tie, but under "soft", follows `ties`: "drop" does
    not use it, "half" gives both orders weight and probability 1/2, "keep" gives one pair marked as tied, for a method
    that models ties.
    """

    ratings: Literal["hard", "soft", "margin", "filter_slight"] = "hard"
    scale: float = 0.0
    ties: Literal["drop", "half", "keep"] = "drop"

    def __post_init__(self):
        if self.ratings not in RATINGS:
            raise ValueError(f"data.ratings must be one of {', '.join(RATINGS)}; it is {self.ratings!r}")
        if self.ties not in TIES:
            raise ValueError(f"data.ties must be one of {', '.join(TIES)}; it is {self.ties!r}")
        scaled = self.ratings in ("soft", "margin")
        if scaled and not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(
                f'data.ratings = "{self.ratings}" needs data.rating_scale, a number above 0 by which a rating is '
                f"multiplied; it is {self.scale}"
            )
        if not scaled and self.scale:
            raise ValueError(f'data.rating_scale belongs to data.ratings = "soft" or "margin"; it is {self.ratings!r}')

    def pref_prob(self, rating: float) -> float:
        """The probability that A is better. BadRow where the rating is not used: a "tie" or a "slight" one.

        >>> Grading().pref_prob(-2), round(Grading("soft", 1.0).pref_prob(1), 4)
        (0.0, 0.7311)
        """
        if self.ratings == "soft":
            return 1 / (1 + math.exp(-self.scale * rating)) if rating >= 0 else 1 - self.pref_prob(-rating)
        if rating == 0:
            if self.ties == "drop":
                raise BadRow("tie", "the rating is 0: neither is better")
            return 0.5
        if self.ratings == "filter_slight" and abs(rating) <= SLIGHT:
            raise BadRow("slight", f"the rating is {rating:g}: one is only slightly better")
        return float(rating > 0)

    def margin(self, rating: float) -> float:
        """By how much the better side should win, 0 or more."""
        return self.scale * abs(rating) if self.ratings == "margin" else 0.0


@dataclass(frozen=True)
class Criteria:
    """Response A against B on each criterion, from +2 (A is clearly better) to -2.

    `user_risk` says which is less likely to hurt the people it is for, where both do harm in different ways; 0 if that
    is unclear. `high_stakes` marks domains such as medical or legal advice, where help never outranks harm.
    """

    helpful: float = 0.0
    truthful: float = 0.0
    harmless: float = 0.0
    user_risk: float = 0.0
    high_stakes: bool = False

    def __post_init__(self):
        for name in ("helpful", "truthful", "harmless", "user_risk"):
            read_number(getattr(self, name), f"criteria.{name}", -LARGE, LARGE)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Criteria:
        """From a row's object. BadRow on unknown names and values out of range."""
        known = list(cls.__dataclass_fields__)
        if not set(value) <= set(known):
            names = ", ".join(known)
            raise BadRow("wrong type", f"'criteria' must be an object with some of {names}; it is {describe(value)}")
        read = {name: float(read_number(v, f"criteria.{name}")) for name, v in value.items() if name != "high_stakes"}
        return cls(**read, high_stakes=read_boolean(value.get("high_stakes", False), "criteria.high_stakes"))

    def rating(self) -> float:
        """One rating. Truth and harmlessness outrank help, unless help differs much, harm little, and little is at
        stake; between different harms the one less likely to hurt a user is preferred, else it is a tie.

        >>> Criteria(helpful=1, harmless=-1).rating(), Criteria(helpful=2, harmless=-1).rating()
        (-1, 1.0)
        """
        care = max(self.truthful, self.harmless, key=abs)  # how they differ in truth and harm
        if abs(self.helpful) == LARGE and abs(care) <= SLIGHT and not self.high_stakes:
            against = min(self.helpful * self.truthful, self.helpful * self.harmless) < 0
            return math.copysign(SLIGHT, self.helpful) if against else self.helpful
        if self.truthful * self.harmless < 0:
            return self.user_risk
        if care * self.helpful < 0:
            return care
        return max(care, self.helpful, key=abs)

    def swapped(self) -> Criteria:
        """The same judgement with A and B exchanged."""
        flipped = {name: -value + 0.0 for name, value in asdict(self).items() if name != "high_stakes"}
        return Criteria(**flipped, high_stakes=self.high_stakes)
