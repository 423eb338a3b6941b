"""Proofs, checked: propositional logic without anything installed, Coq, Metamath."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from fiducial.core.types import Score
from fiducial.rewards.propositional import ProofError, check, parse_statement
from fiducial.rewards.verdicts import CHECK_MEMORY, outcome_score, score
from fiducial.rewards.worker import CHILD, Pool, Target

SYSTEMS = ("prop", "coq", "metamath")


class Proof:
    r"""Whether the completion proves the row's `statement`, in the row's `system`.

    prop      natural deduction (`propositional.py`); the statement is `p -> q, p |- q`
    coq       the statement is `Theorem name : type.`; the completion a script, or lemmas and a theorem of the name.
              The row's `header` are commands before it, `axioms` a list of those that may be used (none by default)
    metamath  the statement is `label $p |- ...`, after the row's `database`; the completion the labels

    The completion's last fenced block is the proof, else what stands between answer tags, else all of it. Placeholders
    (`sorry`, `admit`, `?`), new axioms and a theorem that only has the asked one's name are wrong. "skipped" where the
    prover is not installed or the statement itself is not accepted.

    >>> row = {"system": "prop", "statement": "p & q |- p"}
    >>> Proof()(["1. p & q [premise]\n2. p [&E 1]", "1. p [sorry]"], [row, row])[1].why
    "line 1: there is no rule 'sorry'"
    """

    name = "proof"

    def __init__(self, *, timeout: float = 10.0, workers: int | None = None):
        target = Target(str(CHILD.with_name("provers.py")), "prove", memory=CHECK_MEMORY)
        self.timeout = timeout  # the worker keeps it itself and then clears up; the pool kills what does not
        self.pool = Pool(target, timeout=timeout + 5, workers=workers or min(4, os.cpu_count() or 1))

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        scores: list[Score | None] = [None] * len(rows)
        calls, places = [], []
        for i, (completion, row) in enumerate(zip(completions, rows, strict=True)):
            text = proof_text(completion)
            trouble = row_trouble(row)
            if trouble:
                scores[i] = score("skipped", trouble)
            elif row["system"] == "prop":
                scores[i] = natural_deduction(row["statement"], text)
            else:
                places.append(i)
                calls.append(((row["system"], row["statement"], text, extras(row), self.timeout), {}))
        for i, outcome in zip(places, self.pool.map(calls), strict=True):
            scores[i] = outcome_score(outcome)
        return [found for found in scores if found is not None]


def row_trouble(row: dict[str, Any]) -> str | None:
    """What a row lacks."""
    if row.get("system") not in SYSTEMS:
        return f"the row's field 'system' must be one of {', '.join(SYSTEMS)}; it is {row.get('system')!r}"
    if not isinstance(row.get("statement"), str) or not row["statement"].strip():
        return "the row has no text in the field 'statement'"
    for name in ("header", "database"):
        if not isinstance(row.get(name) or "", str):
            return f"the row's field {name!r} must be a text"
    axioms = row.get("axioms") or []
    if not isinstance(axioms, Sequence) or isinstance(axioms, str) or not all(isinstance(x, str) for x in axioms):
        return "the row's field 'axioms' must be a list of names"
    return None


def extras(row: dict[str, Any]) -> dict[str, Any]:
    """What else the row says to its prover."""
    if row["system"] == "metamath":
        return {"database": row.get("database") or ""}
    return {"header": row.get("header") or "", "axioms": list(row.get("axioms") or [])}


def proof_text(completion: str) -> str:
    """The proof in a completion: the last fenced block, the answer, or all of it."""
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", completion, re.DOTALL | re.MULTILINE)
    if fences:
        return fences[-1]
    before, closed, _ = completion.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside if closed and opened else completion


def natural_deduction(statement: str, proof: str) -> Score:
    """The score of a proof in propositional logic."""
    try:
        parse_statement(statement)
    except ProofError as error:
        return score("skipped", f"the statement {statement[:60]!r} cannot be read: {error}")
    try:
        check(statement, proof)
    except ProofError as error:
        return score("unparseable" if error.unreadable else "wrong", str(error)[:240])
    return score("correct", "every line follows")
