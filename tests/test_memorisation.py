"""LiMem of policies whose memory is known: one that reasons, one that remembers, one that guesses."""

from random import Random

import pytest

from fiducial.core.seeds import mix
from fiducial.core.types import Rollout
from fiducial.data.tasks import kk, problems
from fiducial.data.tasks.kk_perturbation import KINDS, perturb
from fiducial.evals.memorisation import memorisation

PUZZLES = problems(kk.TASK, 120, "train", 0, n_people=3)


class Answers:
    """A sampler that writes what `answer(prompt)` says."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, requests, decoding):
        return [
            Rollout(r.prompt, f"<answer>{self.answer(r.prompt)}</answer>", [1, 2], [False, True], [0, 0], group=r.group)
            for r in requests
        ]

    def update(self, weights, version): ...


def measured(answer, kind, puzzles=PUZZLES):
    return memorisation(Answers(answer), lambda prompt: [1], puzzles, kind)


known = {problem.prompt: problem.fields["answer"] for problem in PUZZLES}


@pytest.mark.parametrize("kind", ["statement", "leaf"])
def test_who_remembers_has_its_accuracy_and_who_reasons_none(kind):
    changed = {}

    def reasons(prompt):  # looks the changed puzzles up as well: it is always right
        return {**known, **changed}[prompt]

    for index, problem in enumerate(PUZZLES):
        try:
            other = perturb(problem, kind, Random(mix(0, "perturb", kind, index)))
            changed[other.prompt] = other.fields["answer"]
        except ValueError:
            pass
    found = measured(reasons, kind)
    assert (found.accuracy, found.perturbed, found.consistency, found.limem) == (1, 1, 1, 0)
    assert found.n + found.unchanged == len(PUZZLES)
    people = {problem.prompt.splitlines()[0]: problem.fields["answer"] for problem in PUZZLES}

    def remembers(prompt):  # by who is in the puzzle: the old answer, which is never right after a change
        return people[prompt.splitlines()[0]]

    single = [p for p in PUZZLES if people[p.prompt.splitlines()[0]] == p.fields["answer"]]
    found = measured(remembers, kind, single)
    assert (found.accuracy, found.perturbed, found.consistency, found.limem) == (1, 0, 0, found.accuracy)


def test_who_guesses_has_the_accuracy_of_a_coin_per_person():
    rng = Random(0)

    def guesses(prompt):
        names = [line.partition(" says: ")[0] for line in prompt.splitlines() if " says: " in line]
        return kk.render([rng.random() < 0.5 for _ in names], names)

    many = problems(kk.TASK, 2000, "train", 1, n_people=3)
    found = measured(guesses, "reorder", many)
    # Acc = CR = 1/8, LiMem = 1/8 (1 - 1/8); four standard errors: 0.030 of 2000, 0.084 of the 250 solved, 0.028 of 2000
    assert abs(found.accuracy - 1 / 8) < 0.030 and abs(found.consistency - 1 / 8) < 0.084
    assert abs(found.limem - 7 / 64) < 0.028


def test_who_solves_nothing_and_what_cannot_be_asked():
    found = measured(lambda prompt: "I do not know", "reorder")
    assert (found.accuracy, found.consistency, found.limem) == (0, 1, 0)
    with pytest.raises(ValueError, match="kind must be one of statement"):
        measured(known.get, "rename")
    assert set(KINDS) == {"statement", "leaf", "reorder", "random_pair", "uncommon_name", "flip_role"}
