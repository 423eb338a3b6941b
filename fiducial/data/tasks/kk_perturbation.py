"""Puzzles changed a little, and the memorisation score LiMem (Xie et al. 2024, arXiv:2410.23123).

A model that reasons solves the changed puzzle as well as the one it was trained on; one that remembers does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from fiducial.core.types import Problem
from fiducial.data.tasks import kk_logic as logic
from fiducial.data.tasks.kk import build
from fiducial.data.tasks.kk_logic import Formula

KINDS = ("statement", "leaf", "reorder", "random_pair", "uncommon_name", "flip_role")
UNCOMMON = "Zephyr Elowen Osric Isolde Thaddeus Ondine Caspian Briar Leocadia Evander Sidra Quillon".split()
PAIRS = (("saint", "sinner"), ("hero", "villain"), ("angel", "devil"), ("altruist", "egoist"), ("sage", "fool"))


def perturb(problem: Problem, kind: str, rng: Random) -> Problem:
    """A changed copy of a `kk` problem, with exactly one solution again.

    statement  one person says something else, and the solution is another
    leaf       one 'X is a knight' inside a statement is another, and the solution is another
    reorder    the people come in another order; the others change words only:
    random_pair (the role words), uncommon_name, flip_role (knights lie and knaves tell the truth)

    Raises a ValueError when there is no such change, as for a few small puzzles and `leaf`.
    """
    names, statements, roles = (problem.fields[name] for name in ("names", "statements", "roles"))
    if kind in ("statement", "leaf"):
        changes = _other_statements(statements, rng) if kind == "statement" else _other_leaves(statements, rng)
        for changed in changes:
            found = logic.solutions(changed)
            if len(found) == 1 and found[0] != problem.fields["solution"]:
                return build(names, changed, roles)
        raise ValueError(f"no change of one {kind} gives this puzzle another single solution")
    if kind == "reorder":
        order = list(range(len(names)))
        while order == sorted(order):
            rng.shuffle(order)
        place = [order.index(person) for person in range(len(names))]
        return build([names[i] for i in order], [logic.renumbered(statements[i], place) for i in order], roles)
    if kind == "random_pair":
        return build(names, statements, rng.choice([pair for pair in PAIRS if list(pair) != list(roles)]))
    if kind == "uncommon_name":
        return build(rng.sample(UNCOMMON, len(names)), statements, roles)
    if kind == "flip_role":
        return build(names, statements, roles[::-1])
    raise ValueError(f"kind must be one of {', '.join(KINDS)}; it is {kind!r}")


def _other_statements(statements: Sequence[Formula], rng: Random) -> Iterator[list[Formula]]:
    for _ in range(1000):
        person = rng.randrange(len(statements))
        new = logic.random_formula(rng, range(len(statements)), max_depth=2, max_width=2, n_operators=1)
        yield [new if i == person else old for i, old in enumerate(statements)]


def _other_leaves(statements: Sequence[Formula], rng: Random) -> Iterator[list[Formula]]:
    places = [(person, path) for person, statement in enumerate(statements) for path in logic.leaf_paths(statement)]
    leaves: list[Formula] = [[role, person] for role in logic.LEAVES for person in range(len(statements))]
    for person, path in rng.sample(places, len(places)):
        for leaf in rng.sample(leaves, len(leaves)):
            yield [logic.replaced(old, path, leaf) if i == person else old for i, old in enumerate(statements)]


def limem(solved: Sequence[bool], solved_perturbed: Sequence[bool]) -> float:
    """Acc * (1 - CR), in [0, 1]: accuracy times the share of the solved puzzles that are lost when they are changed.

    One changed copy per puzzle, in the same order.

    >>> limem([True, True, True, False], [True, False, False, True])  # Acc 3/4, CR 1/3
    0.5
    """
    if len(solved) != len(solved_perturbed) or not solved:
        raise ValueError(f"limem needs one changed copy per puzzle; it got {len(solved)} and {len(solved_perturbed)}")
    lost = sum(1 for before, after in zip(solved, solved_perturbed, strict=True) if before and not after)
    return lost / len(solved)
