"""Proofs: what the built-in checker accepts holds in every row of the truth table; what provers are asked is proved."""

import shutil
from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.rewards import build
from fiducial.rewards import propositional as logic
from fiducial.rewards.proof import Proof, proof_text
from fiducial.rewards.propositional import FALSE, TRUE, ProofError, parse, write
from fiducial.rewards.provers import coq_statement, strip_coq

# ---------------------------------------------------------------- propositional logic


def value(formula, world):
    """Truth by the table of each sign, written apart from the checker."""
    sign, *parts = formula
    if sign == "atom":
        return world[parts[0]]
    if sign in ("true", "false"):
        return sign == "true"
    values = [value(part, world) for part in parts]
    if sign == "~":
        return not values[0]
    return {
        "&": all(values),
        "|": any(values),
        "->": not values[0] or values[1],
        "<->": values[0] == values[1],
    }[sign]


ATOMS = "pqrstu"


def entails(premises, goal):
    worlds = [dict(zip(ATOMS, row, strict=True)) for row in product((False, True), repeat=len(ATOMS))]
    return all(value(goal, world) for world in worlds if all(value(p, world) for p in premises))


ACCEPTED = [
    ("p -> q, ~q |- ~p",
     "1. p -> q [premise]\n2. ~q [premise]\n3. p [assume]\n4. q [->E 1 3]\n5. False [~E 4 2]\n6. ~p [~I 3 5]"),
    ("p -> q, ~q ⊢ ¬p", "1) p → q by premise\n2) !q by premise\n3) not p by MT 1, 2."),
    ("p & q |- q & p", "1. p & q [premise]\n2. q [&E 1]\n3. p [&E 1]\n4. q & p [&I 2 3]"),
    ("p | q |- q | p",
     "1. p|q [premise]\n2. p [assume]\n3. q|p [|I 2]\n4. q [assume]\n5. q|p [|I 4]\n6. q|p [|E 1 2 3 4 5]"),
    ("|- p -> p", "1. p [assume]\n2. p -> p [->I 1 1]"),
    ("p -> (q -> p)", "1. p [assume]\n2. q [assume]\n3. q -> p [->I 2 1]\n4. p -> q -> p [->I 1 3]"),
    ("p | ~p", "1. p | ~p [LEM]"),
    ("~~p -> p", "1. ~~p [assume]\n2. ~p [assume]\n3. False [~E 1 2]\n4. p [RAA 2 3]\n5. ~~p -> p [->I 1 4]"),
    ("False |- q", "1. False [premise]\n2. q [FE 1]"),
    ("p <-> q, q |- p", "1. p <-> q [premise]\n2. q [premise]\n3. p [<->E 1 2]"),
    ("p -> q, q -> p |- p <-> q", "1. p -> q [premise]\n2. q -> p [premise]\n3. p <-> q [<->I 1 2]"),
    ("p | q, ~p |- q", "1. p | q [premise]\n2. ~p [premise]\n3. q [DS 1 2]"),
    ("~~p |- p", "1. ~~p [premise]\n2. p [DN 1]"),
    ("True", "1. True [TI]"),
    ("p |- p", "1. p [premise]\n2. p [R 1]"),
]  # fmt: skip

REFUSED = [
    ("p -> q, q |- p", "1. p -> q [premise]\n2. q [premise]\n3. p [->E 1 2]", "p does not follow by ->E from 1, 2"),
    ("p", "1. p [assume]", "still depends on the assumption of line 1"),
    ("p |- q", "1. q [premise]", "line 1: q is no premise"),
    ("p |- q", "1. p [premise]", "the last line is p, not the goal q"),
    ("p", "1. p [sorry]", "there is no rule 'sorry'"),
    ("p", "1. p [admit]", "there is no rule 'admit'"),
    ("p", "1. p [R 1]", "there is no earlier line '1'"),
    ("p |- p & q", "1. p [premise]\n2. q [assume]\n3. p & q [&I 1 2]", "depends on the assumption of line 2"),
    ("p |- q -> q", "1. p [premise]\n2. q -> q [->I 1 1]", "line 1 is no assumption to close"),
    # the assumption of line 2 is closed in the wrong branch: C of the second must not depend on it
    (
        "p | q |- p",
        "1. p|q [premise]\n2. p [assume]\n3. q [assume]\n4. p [|E 1 2 2 3 2]",
        "depends on the assumption of line 2",
    ),
    ("p", "1. p [premise]\n1. p [premise]", "p is no premise"),
    ("p |- p", "1. p [premise]\n1. p [premise]", "there are two lines 1"),
    ("p & q |- r", "1. p & q [premise]\n2. r [&E 1]", "r does not follow by &E from 1"),
    ("p & q |- p", "1. p & q [premise]\n2. p [&E]", "&E names 1 lines; here it names 0"),
    ("p -> q |- ~q -> ~p", "1. p -> q [premise]\n2. ~p -> ~q [R 1]", "does not follow by R from 1"),
]


@pytest.fixture(scope="module")
def proofs():
    reward = Proof(timeout=60, workers=1)
    yield reward
    reward.pool.close()


def judged(reward, statement, completion, system="prop", **fields):
    (score,) = reward([completion], [{"statement": statement, "system": system, **fields}])
    return score


@pytest.mark.parametrize(("statement", "proof"), ACCEPTED)
def test_proofs_that_are_right(proofs, statement, proof):
    assert judged(proofs, statement, proof).verdict == "correct"
    assert entails(*logic.parse_statement(statement))


@pytest.mark.parametrize(("statement", "proof", "why"), REFUSED)
def test_proofs_that_are_not(proofs, statement, proof, why):
    score = judged(proofs, statement, proof)
    assert score.verdict == "wrong" and why in score.why


def test_every_rule_is_used_above():
    text = " ".join(proof.lower().replace("→", "->") for _, proof in ACCEPTED)
    assert all(f"[{rule}" in text or f"by {rule}" in text for rule in logic.RULES)


def random_formula(rng, depth=2):
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([("atom", rng.choice(ATOMS[:4])), ("atom", rng.choice(ATOMS)), TRUE, FALSE])
    sign = rng.choice(("~", "&", "|", "->", "<->"))
    return (sign, *(random_formula(rng, depth - 1) for _ in range(1 if sign == "~" else 2)))


def draw_step(rng, lines):
    """A rule with lines for it and a conclusion: mostly one that its pattern fits, among many that are tried."""
    rule = rng.choice(["assume", "assume", *logic.RULES])
    if rule == "assume" or not lines:
        parts = [part for line in lines.values() if line.formula[0] == "|" for part in line.formula[1:]]
        return "assume", [], rng.choice([random_formula(rng), ("~", random_formula(rng, 1)), *parts])
    if rule == "|e" and (steps := by_cases(lines)):
        return rng.choice(steps)
    wanted, closes, fits = logic.RULES[rule]
    for _ in range(30):
        refs = [rng.choice(list(lines)) for _ in range(wanted)]
        cited = [lines[ref].formula for ref in refs]
        parts = [part for formula in cited for part in formula[1:] if isinstance(part, tuple)]
        pool = [*cited, *parts, *[p for part in parts for p in part[1:] if isinstance(p, tuple)], TRUE, FALSE]
        a, b = rng.choice(pool), rng.choice(pool)
        made = [a, ("~", a), ("&", a, b), ("|", a, b), ("->", a, b), ("<->", a, b), ("|", a, ("~", a))]
        for formula in rng.sample(made, len(made)):
            if fits(formula, *cited):
                return rule, refs, formula
    return rule, refs, formula


def by_cases(lines):
    """All steps by |E: a disjunction, its two sides assumed, and a formula that stands twice."""
    either = [n for n, line in lines.items() if line.formula[0] == "|"]
    sides = {n: [[m for m in lines if lines[m].formula == part] for part in lines[n].formula[1:]] for n in either}
    same = [(x, y) for x in lines for y in lines if lines[x].formula == lines[y].formula]
    return [
        ("|e", [n, a, x, b, y], lines[x].formula)
        for n in either
        for a in sides[n][0]
        for b in sides[n][1]
        for x, y in same
    ]


def random_lines(rng, premises):
    """What the checker makes of random steps: those it takes, with their rules."""
    lines = {str(-i): logic.Line(p, frozenset()) for i, p in enumerate(premises, start=1)}
    for number in map(str, range(1, 30)):
        rule, refs, formula = draw_step(rng, lines)
        try:
            lines[number] = logic._step(number, formula, " ".join([rule, *refs]), premises, lines)
        except ProofError:
            continue
        yield rule, lines[number], lines


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**63))
def test_whatever_is_accepted_is_valid(seed):
    """Wherever the premises and what a line still assumes hold, the line holds: all rows of the table are looked at."""
    rng = Random(seed)
    premises = [random_formula(rng) for _ in range(rng.randint(0, 2))]
    for rule, line, lines in random_lines(rng, premises):
        assert entails([*premises, *(lines[n].formula for n in line.depends)], line.formula), rule


def test_the_random_steps_use_every_rule():
    """The test above has teeth: each rule, the ones that close assumptions too, is taken many times."""
    taken = Counter(rule for seed in range(200) for rule, *_ in random_lines(Random(seed), []))
    assert min(taken[rule] for rule in logic.RULES) >= 2, taken


@given(st.integers(0, 2**63))
def test_formulas_are_read_as_they_are_written(seed):
    formula = random_formula(Random(seed), depth=4)
    assert parse(write(formula)) == formula


def test_how_signs_bind():
    assert parse("~p & q | r -> s <-> t") == parse("((((~p) & q) | r) -> s) <-> t")
    assert parse("p -> q -> r") == parse("p -> (q -> r)") != parse("(p -> q) -> r")
    assert parse("p | q | r") == parse("(p | q) | r")


@pytest.mark.parametrize(
    ("proof", "verdict"),
    [
        ("", "unparseable"),
        ("because it is obvious", "unparseable"),
        ("1. p &", "unparseable"),
        ("1. p & [assume]", "unparseable"),
        ("1. (p [assume]", "unparseable"),
        ("1. p q [assume]", "unparseable"),
        ("1. " + "~" * 3000 + "p [assume]", "unparseable"),
        ("1. " + "(" * 3000 + "p [assume]", "unparseable"),
        ("1. " + "p -> " * 700 + "p [assume]", "unparseable"),
        ("1. p [assume]\n" * 3000, "unparseable"),
        ("1. " + "by " * 50_000 + "]", "unparseable"),
        ("9" * 3000 + ". p [assume]", "wrong"),
        ("\x00\ud800", "unparseable"),
    ],
)
def test_hostile_texts_have_a_verdict(proofs, proof, verdict):
    score = judged(proofs, "p", proof)
    assert score.verdict == verdict and len(score.why) <= 240 and score.seconds < 5


def test_rows_that_cannot_be_judged_are_skipped():
    reward = build("proof")
    for row, words in (
        ({"statement": "p"}, "the row's field 'system' must be one of prop, coq, metamath"),
        ({"system": "prop"}, "no text in the field 'statement'"),
        ({"system": "prop", "statement": "p &"}, "the statement 'p &' cannot be read"),
        ({"system": "coq", "statement": "1 = 1", "axioms": "classic"}, "'axioms' must be a list of names"),
        ({"system": "coq", "statement": "1 = 1", "header": 3}, "'header' must be a text"),
    ):
        (score,) = reward(["1. p [assume]"], [row])
        assert score.verdict == "skipped" and words in score.why


def test_where_the_proof_is_in_a_completion():
    assert proof_text("x\n```coq\na\n```\ny\n```\nb\n```\n") == "b\n"
    assert proof_text("<think>x</think><answer>a</answer>") == "a"
    assert proof_text("a b") == "a b"


# ---------------------------------------------------------------- Coq


def test_coq_statements_and_comments():
    assert coq_statement("Lemma a' (n m : nat) {x : A} : f (x := 1) n = m.") == (
        "a'",
        "forall (n m : nat) {x : A}, f (x := 1) n = m",
    )
    assert coq_statement("Theorem t : forall x : nat, x = x.\nProof.") == ("t", "forall x : nat, x = x")
    assert coq_statement("Goal 1 = 1.") == ("asked_for", "1 = 1")
    assert strip_coq('a (* b (* c *) "*)" d *) e "f (* g" h').split() == ["a", "e", "h"]
    assert strip_coq("a (* b") == "a "


COQ = "Theorem add_comm' (n m : nat) : n + m = m + n."
LIA = "From Coq Require Import Lia."
STATED = "Theorem add_comm' : forall n m : nat, n + m = m + n. Proof."
COQ_CASES = [
    ("intros n m. lia.", "correct", "without axioms"),
    ("Proof. intros. lia. Qed.", "correct", ""),
    ("(* Admitted *) intros. lia.", "correct", ""),
    (f"```coq\nLemma h : 1 = 1. reflexivity. Qed.\n{STATED} intros; lia. Qed.\n```", "correct", ""),
    ("intros n m. auto.", "wrong", "incomplete proof"),
    ("intros. admit.", "wrong", "placeholder"),
    ("intros. Admitted.", "wrong", "placeholder"),
    (f"Axiom X : forall n m : nat, n + m = m + n. {STATED} exact X. Qed.", "wrong", "Axiom"),
    (f"Variable X : forall n m : nat, n + m = m + n. {STATED} exact X. Qed.", "wrong", "rests on"),
    (f"Context (X : forall n m : nat, n + m = m + n). {STATED} exact X. Qed.", "wrong", "rests on"),
    (f"Section S. Variable X : bool. {STATED} lia. Qed. End S.", "correct", ""),
    (f"Section S. Variable X : False. {STATED} destruct X. Qed. End S.", "wrong", "not the one that was asked for"),
    ("Theorem add_comm' : 1 = 1. Proof. auto. Qed.", "wrong", "not the one that was asked for"),
    (f'Notation "a + b" := 0. {STATED} auto. Qed.', "wrong", "not the one that was asked for"),
    (f"Definition nat := unit. {STATED} auto. Qed.", "wrong", "not accepted"),
    ("Module M. Theorem add_comm' : 1 = 1. auto. Qed. End M.", "wrong", "not the one"),
    (
        f"Fixpoint f (n : nat) : False := f n. {STATED} destruct (f 0). Qed.",
        "wrong",
        "not accepted",
    ),
    (f"#[bypass_check(guard)] Fixpoint f (n : nat) : False := f n. {STATED} destruct (f 0). Qed.", "wrong", "bypass"),
    ('Redirect "x" Print nat. intros. lia.', "wrong", "Redirect is not allowed"),
    ('Extraction "/tmp/x" nat. intros. lia.', "wrong", "Extraction is not allowed"),
    ("", "unparseable", "no proof"),
]


@pytest.mark.slow
def test_coq(proofs):
    if not shutil.which("coqc"):
        pytest.skip("Coq is not installed")
    rows = [{"system": "coq", "statement": COQ, "header": LIA}] * len(COQ_CASES)
    scores = proofs([text for text, *_ in COQ_CASES], rows)
    for (text, verdict, why), score in zip(COQ_CASES, scores, strict=True):
        assert score.verdict == verdict and why in score.why, (text, score)


def test_coq_accepts_one_and_refuses_one(proofs):
    if not shutil.which("coqc"):
        pytest.skip("Coq is not installed")
    assert judged(proofs, "1 + 1 = 2", "reflexivity.", "coq").verdict == "correct"
    assert judged(proofs, "Theorem t : 1 + 1 = 2.", "Theorem t : 1 = 1. reflexivity. Qed.", "coq").verdict == "wrong"
    assert judged(proofs, "1 + = 2", "reflexivity.", "coq").verdict == "skipped"


@pytest.mark.slow
def test_coq_axioms_are_allowed_by_name_and_time_is_limited():
    if not shutil.which("coqc"):
        pytest.skip("Coq is not installed")
    reward = Proof(timeout=20, workers=1)
    row = {"system": "coq", "statement": "Theorem em (P : Prop) : P \\/ ~ P.", "header": "Require Import Classical."}
    (without,) = reward(["intros. apply classic."], [row])
    assert without.verdict == "wrong" and "rests on Classical_Prop.classic" in without.why
    assert reward(["intros. apply classic."], [{**row, "axioms": ["classic"]}])[0].verdict == "correct"
    quick = Proof(timeout=3, workers=1)
    deep = "Definition f := fix f n := match n with 0 => 0 | S n => f n + f n end. assert (f 60 = 0). vm_compute. auto."
    (late,) = quick([deep], [{"system": "coq", "statement": "1 = 1"}])
    assert late.verdict == "timeout" and late.seconds < 8
    reward.pool.close()
    quick.pool.close()


# ---------------------------------------------------------------- Metamath

# Metamath's first example (Megill, the Metamath book, 2.2.2): t = t from two axioms and modus ponens.
DATABASE = """
$c 0 + = -> ( ) term wff |- $.  $v t r s P Q $.
tt $f term t $.  tr $f term r $.  ts $f term s $.  wp $f wff P $.  wq $f wff Q $.
tze $a term 0 $.  tpl $a term ( t + r ) $.  weq $a wff t = r $.  wim $a wff ( P -> Q ) $.
a1 $a |- ( t = r -> ( t = s -> r = s ) ) $.  a2 $a |- ( t + 0 ) = t $.
${ min $e |- P $.  maj $e |- ( P -> Q ) $.  mp $a |- Q $. $}
"""
TH1 = (
    "tt tze tpl tt weq tt tt weq tt a2 tt tze tpl tt weq tt tze tpl tt weq tt tt weq wim tt a2 tt tze tpl tt tt a1"
    " mp mp"
)


def test_metamath(proofs):
    if not shutil.which("metamath"):
        pytest.skip("Metamath is not installed")
    cases = [
        ("th1 $p |- t = t", TH1, "correct"),
        ("th1 $p |- t = t $=", f"```\n{TH1} $.\n```", "correct"),
        ("${ h $e |- P $. same $p |- P", "h", "correct"),
        ("th1 $p |- t = t", TH1.removesuffix(" mp"), "wrong"),
        ("th1 $p |- t = r", TH1, "wrong"),
        ("th1 $p |- t = t", TH1.replace("a2", "?"), "wrong"),
        ("th1 $p |- t = t", "th1", "wrong"),
        ("th1 $p |- t = t", "a3 $. bad $a |- t = t $. x $p |- t = t $= bad $.", "wrong"),
        ("th1 $p |- t = t", "( ) A", "wrong"),
        ("th1 $p |- t = t", "\x00\ud800", "wrong"),
        ("th1 $p |- t = t", "", "unparseable"),
        ("t = t", TH1, "skipped"),
        ("th1 $p |- t = unknown", TH1, "skipped"),
    ]
    rows = [{"system": "metamath", "statement": statement, "database": DATABASE} for statement, *_ in cases]
    scores = proofs([proof for _, proof, _ in cases], rows)
    for (statement, proof, verdict), score in zip(cases, scores, strict=True):
        assert score.verdict == verdict, (statement, proof, score)
