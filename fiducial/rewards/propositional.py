"""A checker of natural deduction in propositional logic. Standard library only.

A statement is `premises |- goal`, or a goal alone. A proof is numbered lines `n. formula  [rule lines]`. A line depends
on the assumptions it was made under, as in Lemmon's system: `assume` opens one, the rules that close one name its line.
The last line must be the goal and depend on premises alone.

    1. p -> q   [premise]
    2. ~q       [premise]
    3. p        [assume]
    4. q        [->E 1 3]
    5. False    [~E 4 2]
    6. ~p       [~I 3 5]

Formulas: atoms, True, False, ~ & | -> <-> (also the usual signs), binding in this order, -> to the right.

rules      lines they name                       what they give
premise    -                                     a premise of the statement
assume     -                                     any formula, depending on itself
R          A                                     A
&I &E      A B; A & B                            A & B; A or B
|I |E      A; A | B, A', C, B', C                A | B or B | A; C, closing the assumptions A' and B'
->I ->E    A', B; A -> B, A                      A -> B, closing the assumption A'; B
<->I <->E  A -> B, B -> A; A <-> B, A            A <-> B; B (or A from B)
~I ~E      A', False; A, ~A                      ~A, closing the assumption A'; False
RAA        ~A', False                            A, closing the assumption ~A'
DN         ~~A                                   A
FE TI LEM  False; -; -                           anything; True; A | ~A
MT DS      A -> B, ~B; A | B, ~A                 ~A; B (or A from ~B)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Formula = tuple  # ("atom", name), ("true",), ("false",), ("~", A), ("&" "|" "->" "<->", A, B)

MAX_CHARACTERS = 4000  # of a formula
MAX_DEPTH = 200
MAX_LINES = 2000

_SIGNS = {
    "¬": "~", "!": "~", "∧": "&", "/\\": "&", "&&": "&", "∨": "|", "\\/": "|", "||": "|", "→": "->", "⊃": "->",
    "=>": "->", "↔": "<->", "<=>": "<->", "⊥": "False", "⊤": "True", "_|_": "False",
}  # fmt: skip
_TOKEN = re.compile(r"\s*(<->|<=>|->|=>|/\\|\\/|&&|\|\||_\|_|[~¬!&∧|∨→⊃↔⊥⊤()]|[A-Za-z]\w*)")
_WORDS = {"not": "~", "and": "&", "or": "|", "implies": "->", "iff": "<->"}
_BINARY = ("<->", "->", "|", "&")  # loosest first
TRUE, FALSE = ("true",), ("false",)


class ProofError(ValueError):
    """What is wrong with a proof; `unreadable` where a line or a formula could not be read at all."""

    def __init__(self, message: str, unreadable: bool = False):
        super().__init__(message)
        self.unreadable = unreadable


def parse(text: str) -> Formula:
    """The formula that a text writes; ProofError where it writes none.

    >>> parse("p -> q -> ~p")
    ('->', ('atom', 'p'), ('->', ('atom', 'q'), ('~', ('atom', 'p'))))
    """
    if len(text) > MAX_CHARACTERS:
        raise ProofError(f"a formula of {len(text)} characters; at most {MAX_CHARACTERS} are read", True)
    tokens, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ProofError(f"{text[place : place + 20].strip()!r} is no part of a formula", True)
        token = _WORDS.get(match[1].lower(), match[1])
        tokens.append(_SIGNS.get(token, token))
        place = match.end()
    parser = _Parser(tokens)
    formula = parser.binary(0, 0)
    if parser.place < len(tokens):
        raise ProofError(f"{tokens[parser.place]!r} is left over after the formula", True)
    return formula


class _Parser:
    def __init__(self, tokens: Sequence[str]):
        self.tokens, self.place = tokens, 0

    def next(self) -> str:
        """The token here; empty at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def binary(self, level: int, depth: int) -> Formula:
        """A formula of signs that bind as tightly as `level` or tighter; -> to the right, the others to the left."""
        if depth > MAX_DEPTH:
            raise ProofError(f"a formula nested more than {MAX_DEPTH} deep", True)
        if level == len(_BINARY):
            return self.unary(depth)
        left = self.binary(level + 1, depth + 1)
        sign = _BINARY[level]
        while self.next() == sign:
            self.place += 1
            if sign == "->":
                return (sign, left, self.binary(level, depth + 1))
            depth += 1  # a chain nests to the left
            left = (sign, left, self.binary(level + 1, depth + 1))
        return left

    def unary(self, depth: int) -> Formula:
        """A negation, a parenthesis, an atom."""
        token = self.next()
        self.place += 1
        if token == "~":
            if depth > MAX_DEPTH:
                raise ProofError(f"a formula nested more than {MAX_DEPTH} deep", True)
            return ("~", self.unary(depth + 1))
        if token == "(":
            inner = self.binary(0, depth + 1)
            if self.next() != ")":
                raise ProofError("a parenthesis is not closed", True)
            self.place += 1
            return inner
        if token in ("True", "False"):
            return TRUE if token == "True" else FALSE
        if not token or not token[0].isalpha():
            raise ProofError(f"a formula is wanted, not {token!r}" if token else "a formula ends too early", True)
        return ("atom", token)


def parse_statement(text: str) -> tuple[list[Formula], Formula]:
    """Premises and goal of `A, B |- C`, or of `C` alone. ProofError where it cannot be read."""
    before, turnstile, after = text.replace("⊢", "|-").rpartition("|-")
    premises = [parse(part) for part in before.split(",") if part.strip()] if turnstile else []
    return premises, parse(after)


@dataclass(frozen=True)
class Line:
    """A line that was checked: its formula and the numbers of the assumptions that it depends on."""

    formula: Formula
    depends: frozenset[str]
    assumed: bool = False


_NUMBER = re.compile(r"(\d+)\s*[.):]?\s+")


def _read_line(text: str) -> tuple[str, str, str]:
    """Number, formula and rule of `n. formula  [rule lines]`; the rule may also stand after `by`."""
    text = text.strip().rstrip(".")
    start = _NUMBER.match(text) if len(text) <= MAX_CHARACTERS else None
    opened, word = text.rfind("["), text.rfind(" by ")
    if start is None or not (text.endswith("]") and opened > start.end() or word > start.end()):
        raise ProofError(f"a line must read 'n. formula [rule lines]'; it reads {text[:60]!r}", True)
    if text.endswith("]"):
        return start[1], text[start.end() : opened], text[opened + 1 : -1]
    return start[1], text[start.end() : word], text[word + 4 :]


def check(statement: str, proof: str) -> None:
    """Nothing where the proof is one of the statement; otherwise a ProofError that says what is wrong, and where."""
    premises, goal = parse_statement(statement)
    lines: dict[str, Line] = {}
    last: Line | None = None
    texts = [text for text in proof.splitlines() if text.strip()]
    if len(texts) > MAX_LINES:
        raise ProofError(f"{len(texts)} lines; at most {MAX_LINES} are read", True)
    for text in texts:
        number, formula, rule = _read_line(text)
        if number in lines:
            raise ProofError(f"there are two lines {number}")
        try:
            last = lines[number] = _step(number, parse(formula), rule, premises, lines)
        except ProofError as error:
            raise ProofError(f"line {number}: {error}", error.unreadable) from None
    if last is None:
        raise ProofError("there is no line of a proof", True)
    if last.formula != goal:
        raise ProofError(f"the last line is {write(last.formula)}, not the goal {write(goal)}")
    if last.depends:
        raise ProofError(f"the goal still depends on the assumption of line {min(last.depends, key=int)}")


def _step(number: str, formula: Formula, rule: str, premises: Sequence[Formula], lines: dict[str, Line]) -> Line:
    words = re.findall(r"[^\s,;]+", rule)
    name = words[0].lower() if words else ""
    for sign, plain in _SIGNS.items():
        name = name.replace(sign, plain.lower())
    name = ALIASES.get(name, name)
    if name == "premise":
        if formula not in premises:
            raise ProofError(f"{write(formula)} is no premise")
        return Line(formula, frozenset())
    if name == "assume":
        return Line(formula, frozenset({number}), assumed=True)
    if name not in RULES:
        raise ProofError(f"there is no rule {words[0] if words else ''!r}")
    wanted, closes, holds = RULES[name]
    if len(words) - 1 != wanted:
        raise ProofError(f"{words[0]} names {wanted} lines; here it names {len(words) - 1}")
    cited = []
    for ref in words[1:]:
        if ref not in lines:
            raise ProofError(f"there is no earlier line {ref!r}")
        cited.append(lines[ref])
    for place in closes:
        if not cited[place].assumed:
            raise ProofError(f"line {words[1 + place]} is no assumption to close")
    if not holds(formula, *(line.formula for line in cited)):
        raise ProofError(f"{write(formula)} does not follow by {words[0]} from {', '.join(words[1:]) or 'nothing'}")
    return Line(formula, _depends(words[1:], cited, closes))


def _depends(refs: Sequence[str], cited: Sequence[Line], closes: dict[int, int]) -> frozenset[str]:
    """What a conclusion depends on: all that its lines do, less an assumption in the line that is closed under it."""
    depends: frozenset[str] = frozenset()
    under = {body: assumption for assumption, body in closes.items()}
    for place, line in enumerate(cited):
        if place not in closes:
            closed = {refs[under[place]]} if place in under else set()
            depends |= line.depends - closed
    return depends


def _is(formula: Formula, sign: str) -> bool:
    return formula[0] == sign


# rule -> (lines named, {place of an assumption: place of the line it is closed under}, whether the conclusion follows)
RULES: dict[str, tuple[int, dict[int, int], Callable[..., bool]]] = {
    "r": (1, {}, lambda c, a: c == a),
    "&i": (2, {}, lambda c, a, b: c == ("&", a, b)),
    "&e": (1, {}, lambda c, a: _is(a, "&") and c in a[1:]),
    "|i": (1, {}, lambda c, a: _is(c, "|") and a in c[1:]),
    "|e": (5, {1: 2, 3: 4}, lambda c, o, a, ca, b, cb: o == ("|", a, b) and c == ca == cb),
    "->i": (2, {0: 1}, lambda c, a, b: c == ("->", a, b)),
    "->e": (2, {}, lambda c, a, b: a == ("->", b, c) or b == ("->", a, c)),
    "<->i": (2, {}, lambda c, a, b: _is(c, "<->") and {a, b} == {("->", c[1], c[2]), ("->", c[2], c[1])}),
    "<->e": (2, {}, lambda c, a, b: a in (("<->", b, c), ("<->", c, b)) or b in (("<->", a, c), ("<->", c, a))),
    "~i": (2, {0: 1}, lambda c, a, f: f == FALSE and c == ("~", a)),
    "~e": (2, {}, lambda c, a, b: c == FALSE and (b == ("~", a) or a == ("~", b))),
    "raa": (2, {0: 1}, lambda c, a, f: f == FALSE and a == ("~", c)),
    "dn": (1, {}, lambda c, a: a == ("~", ("~", c))),
    "fe": (1, {}, lambda c, f: f == FALSE),
    "ti": (0, {}, lambda c: c == TRUE),
    "lem": (0, {}, lambda c: _is(c, "|") and c[2] == ("~", c[1])),
    "mt": (2, {}, lambda c, a, b: any(_denied(c, x, y) for x, y in ((a, b), (b, a)))),
    "ds": (2, {}, lambda c, a, b: any(_disjunct(c, x, y) for x, y in ((a, b), (b, a)))),
}  # fmt: skip
ALIASES = {
    "assumption": "assume", "hypothesis": "assume", "hyp": "assume", "given": "premise", "mp": "->e", "cp": "->i",
    "reit": "r", "falsee": "fe", "efq": "fe", "truei": "ti", "~~e": "dn", "dne": "dn", "pbc": "raa",
}  # fmt: skip


def _denied(c: Formula, implies: Formula, negated: Formula) -> bool:
    return _is(implies, "->") and negated == ("~", implies[2]) and c == ("~", implies[1])


def _disjunct(c: Formula, either: Formula, negated: Formula) -> bool:
    return _is(either, "|") and any(negated == ("~", either[k]) and c == either[3 - k] for k in (1, 2))


def write(formula: Formula) -> str:
    """A formula as text that `parse` reads as the same formula.

    >>> write(parse("(p and q) -> ~r"))
    '(p & q) -> ~r'
    """
    sign = formula[0]
    if sign in ("true", "false"):
        return sign.capitalize()
    if sign == "atom":
        return formula[1]
    inner = [write(part) if part[0] not in _BINARY else f"({write(part)})" for part in formula[1:]]
    return f"~{inner[0]}" if sign == "~" else f"{inner[0]} {sign} {inner[1]}"
