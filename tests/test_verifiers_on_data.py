"""The table of docs/verifiers.md in small: perturbed gold answers, and what verifiers make of them."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import pytest

from fiducial.core.answers import parse_number
from fiducial.rewards import VERIFIERS, build

REPO = Path(__file__).resolve().parents[1]
DATA = REPO.parent / "shared" / "data"
spec = importlib.util.spec_from_file_location("benchmark_verifiers", REPO / "benchmarks" / "verifiers.py")
assert spec and spec.loader
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def changed(changes, name, gold):
    return changes[name](gold, parse_number(gold))


def test_perturbations_by_hand():
    assert changed(table.SAME, "decimal 7.0", "7") == "7.0"
    assert changed(table.SAME, "thousands 1,000", "1080") == "1,080"
    assert changed(table.SAME, "fraction 14/2", "7") == r"\frac{14}{2}"
    assert changed(table.SAME, "formula + 0", "x^2") == "(x^2) + 0"
    assert changed(table.OTHER, "+ 1", "7") == "8" and changed(table.OTHER, "sign", "7") == "-7"
    assert changed(table.OTHER, "swapped fraction", "2/3") == r"\frac{3}{2}"
    assert changed(table.OTHER, "last digit lost", "108") == "10"
    assert changed(table.OTHER, "two candidates", "7") == "7, 8"
    for name, gold in (("sign", "0"), ("swapped fraction", "1"), ("last digit lost", "7"), ("+ 1", "x^2")):
        assert changed(table.OTHER, name, gold) is None  # nothing would change, or nothing can
    assert table.number(Fraction(-3, 4)) == r"\frac{-3}{4}"


@pytest.mark.parametrize("verifier", ["numeric", "flex", "math"])
def test_no_perturbed_answer_of_gsm8k_is_taken_for_the_gold(verifier):
    file = DATA / "gsm8k_train.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is absent: the real data sets lie beside the checkout, not in it")
    for line in table.confusion(build(verifier), table.golds(file)[::300]):
        assert line["correct"] == (line["n"] if line["wanted"] == "correct" else 0), line


def test_the_page_names_every_verifier():
    page = (REPO / "docs" / "verifiers.md").read_text(encoding="utf-8")
    for name, entry in VERIFIERS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") >= 5)
        for option in entry.options:
            assert f"`{option}`" in row or "sandbox.md" in row, (name, option)
