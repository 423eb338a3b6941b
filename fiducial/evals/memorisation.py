"""Does a model reason about knights and knaves, or remember its puzzles? LiMem (Xie et al. 2024, arXiv:2410.23123).

Each puzzle is asked as it is and changed a little. LiMem = Acc (1 - CR), with CR the share of the solved puzzles that
are still solved when changed: 0 for who reasons, up to Acc for who remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Problem, Prompt, Sampler
from fiducial.data.tasks import kk
from fiducial.data.tasks.kk_perturbation import limem, perturb
from fiducial.evals.evaluate import evaluate

GREEDY = Decoding(max_new_tokens=512, temperature=0.0)


@dataclass(frozen=True)
class Memorisation:
    """`accuracy` on the puzzles, `perturbed` on their changed copies, `consistency` the share of the solved that stay
    solved (CR; 1 where none is solved), `limem`; `unchanged` puzzles have no such change and were left out."""

    kind: str
    n: int
    accuracy: float
    perturbed: float
    consistency: float
    limem: float
    unchanged: int


def memorisation(
    sampler: Sampler,
    encode_prompt: Callable[[Prompt], list[int]],
    problems: Sequence[Problem],
    kind: str,
    *,
    decoding: Decoding = GREEDY,
    seed: int = 0,
) -> Memorisation:
    """Ask `kk` problems and one changed copy of each (`kind` is one of `kk_perturbation.KINDS`), a completion for each.

    ValueError for an unknown kind, or when no puzzle can be changed so.
    """
    pairs = []
    for index, problem in enumerate(problems):
        try:
            pairs.append((problem, perturb(problem, kind, Random(mix(seed, "perturb", kind, index)))))
        except ValueError as error:
            if "gives this puzzle another single solution" not in str(error):
                raise
    if not pairs:
        raise ValueError(f"none of the {len(problems)} puzzles has a change of kind {kind!r}")
    solved, after = (
        evaluate(sampler, encode_prompt, side, kk.TASK.verify, decoding, k=1, seed=seed, greedy=False).per_problem[
            "pass@1"
        ]
        for side in zip(*pairs, strict=True)
    )
    kept = [b for a, b in zip(solved, after, strict=True) if a]
    return Memorisation(
        kind=kind,
        n=len(pairs),
        accuracy=sum(solved) / len(pairs),
        perturbed=sum(after) / len(pairs),
        consistency=sum(kept) / len(kept) if kept else 1.0,
        limem=limem([bool(x) for x in solved], [bool(x) for x in after]),
        unchanged=len(problems) - len(pairs),
    )
