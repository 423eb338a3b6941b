"""Answer extraction and number reading against worked cases and general properties."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fiducial.core.answers import (
    EXTRACTORS,
    MATH,
    MAX_SCAN,
    ORDER,
    extract_answer,
    gold_text,
    normalize_answer,
    parse_number,
    read_number,
    readings,
)

# text, answer, extractor
EXTRACTED = [
    ("<answer> 42 </answer>", "42", "tag"),
    ("<answer>1</answer> no, <answer>2</answer>", "2", "tag"),  # the last pair
    ("<answer>1</answer> and <answer>2", "1", "tag"),  # the last complete pair
    ("<answer><answer>3</answer>", "3", "tag"),
    (r"<answer>so $\boxed{7}$.</answer>", "7", "tag"),  # a box inside a tag
    (r"\boxed{5} <answer>6</answer>", "6", "tag"),  # the tag comes first in the order
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),  # nested braces
    (r"\boxed{1} then \boxed{2}", "2", "boxed"),  # two boxes: the last
    (r"\boxed{1} then \boxed{2", "1", "boxed"),  # the second is not balanced
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),  # escaped braces do not count
    (r"\boxed{\left\{x \mid x>1\right.}", r"\left\{x \mid x>1\right.", "boxed"),
    (r"\boxed {3}", "3", "boxed"),
    (r"\fbox{3}", "3", "boxed"),
    (r"stray } and { then \boxed{4}", "4", "boxed"),
    (r"the answer is 5, \boxed{6}", "6", "boxed"),
    (r"\boxed{6} so the total over 12 months is 72.", "6", "boxed"),  # text after it is not a new answer
    ("48 + 24 = 72\n#### 72", "72", "hash"),
    ("#### 1\n#### 1,080\nDone in 3 steps", "1,080", "hash"),
    ("#### $-3.50<|end|>", "-3.50", "hash"),
    ("#### Step 1\nThe answer is 9.", "9", "sentence"),  # a heading is no answer
    ("The answer is 3.5 m/s. I hope it is correct.", "3.5 m/s", "sentence"),
    ("The answer is 4. No, the answer is **5**.", "5", "sentence"),
    ("Final Answer: The final answer is $x+1$. I hope it is correct.", "x+1", "sentence"),
    ("**Answer:** Paris", "Paris", "sentence"),
    ("Answer:\n\n12", "12", "sentence"),
    ("She has 3 boxes of 4, so 3 * 4 = 12 eggs.", "12", "number"),
    ("It fell by -1,234.5%", "-1,234.5%", "number"),
    ("5-3", "3", "number"),  # a minus between two numbers is no sign
    ("about 1/2 of it", "1/2", "number"),
    ("He ran 15km.", "15", "number"),
    ("Take 3.0e8 of them", "3.0e8", "number"),
]


def extracted(text, order=ORDER):
    found = extract_answer(text, order)
    assert found is not None
    return found


@pytest.mark.parametrize(("text", "answer", "extractor"), EXTRACTED)
def test_extractors_in_their_order(text, answer, extractor):
    found = extracted(text)
    assert (found.text, found.extractor) == (answer, extractor)
    assert text[slice(*found.span)] == answer


@pytest.mark.parametrize(
    "text", ["", "   ", "no idea", "<answer></answer>", r"\boxed{}", "x2 and H2O", "the answer is ."]
)
def test_nothing_is_found_where_nothing_is_stated(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize("text, answer", [("x+2", "x+2"), (r"2\sqrt{3}", r"2\sqrt{3}"), ("2x", "2x")])
def test_a_bare_formula_is_taken_whole_by_math(text, answer):
    assert extracted(text, MATH).text == answer


def test_the_last_formula_counts_for_math_unless_a_number_follows():
    assert extracted(r"Hence we have $\frac{1}{2}$.", MATH).text == r"\frac{1}{2}"
    assert extracted(r"Hence we get \(a+b\) in the end.", MATH).text == "a+b"
    assert extracted("From $x$ we get 7 apples.", MATH).text == "7"
    assert extracted("It costs $5 and then $6.", MATH).text == "6"  # two prices are no formula


def test_long_texts_are_read_from_their_end_and_in_linear_time():
    far = "answer is 1 " + "z" * MAX_SCAN
    assert extract_answer(far) is None
    near = "z" * 2 * MAX_SCAN + r" \boxed{7}"
    assert near[slice(*extracted(near).span)] == "7"
    start = time.monotonic()
    for piece in (
        r"\boxed{",
        "<answer>",
        "#### 1,",
        "the answer is ",
        "1,000",
        "$",
        r"\(",
        "{",
        "-",
        "9",
        "1/",
        "\\",
        "(",
    ):
        extract_answer(piece * (MAX_SCAN // len(piece)), MATH)
    assert time.monotonic() - start < 10  # quadratic work on any of these takes minutes


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from(list("<>/answer boxed{}\\#$%.,0123456789-+eE\n*()[]^")), max_size=80))
@example(r"<answer>\boxed{")
def test_extractors_never_crash_and_spans_are_true(text):
    for name in (*ORDER, *EXTRACTORS):
        found = extract_answer(text, (name,))
        assert found is None or (text[slice(*found.span)] == found.text and found.text.strip())


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    extract_answer(text, MATH)
    read_number(text)
    gold_text(text)
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)
    kept = normalize_answer(text, ignore_case=False)
    assert normalize_answer(kept, ignore_case=False) == kept


# Each value by hand.
NUMBERS = [
    ("72", 72),
    ("-72", -72),
    ("−72", -72),  # unicode minus
    ("+7", 7),
    ("0.1", Fraction(1, 10)),
    (".5", Fraction(1, 2)),
    ("5.", 5),
    ("1,080", 1080),
    ("109,200,000", 109_200_000),
    ("1{,}000", 1000),
    (r"1\,000", 1000),
    ("$1,250.50", Fraction(250_100, 200)),
    (r"\$10", 10),
    ("-$5", -5),
    ("$-5", -5),
    ("3/4", Fraction(3, 4)),
    ("-1./3", Fraction(-1, 3)),
    (r"\frac{1}{2}", Fraction(1, 2)),
    (r"-\dfrac{3}{4}", Fraction(-3, 4)),
    (r"\frac12", Fraction(1, 2)),
    ("50%", Fraction(1, 2)),
    (r"12.5\%", Fraction(1, 8)),
    ("50 percent", Fraction(1, 2)),
    ("4.5e33", Fraction(45 * 10**32)),
    ("2E-3", Fraction(2, 1000)),
    (r"4.5 \times 10^{33}", Fraction(45 * 10**32)),
    ("3×10^-2", Fraction(3, 100)),
    ("10 dollars", 10),
    ("15km", 15),
    (r"5 \mathrm{~cm}", 5),
    (r"90^\circ", 90),
    ("025", 25),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers_are_read_exactly(text, value):
    assert parse_number(text) == value


NOT_A_NUMBER = ["", "x", "2x", "x2", "2m", "1 2", "1,00", "1.2.3", "1/0", "--5", "-$-5", "nan", "inf", "1e99999"]


@pytest.mark.parametrize("text", [*NOT_A_NUMBER, r"5\text{ million}", r"1\frac{1}{2}", "9" * 1000])
def test_what_is_not_one_number_is_none(text):
    assert parse_number(text) is None


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30))
def test_integers_round_trip_with_and_without_separators(n):
    assert parse_number(str(n)) == parse_number(f"{n:,}") == parse_number(f"${n:,}.") == n
    assert extracted(f"Work.\n#### {n:,}").text == f"{n:,}"
    assert parse_number(extracted(f"In total it makes {n}").text) == n


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_decimals_round_trip_exactly(d):
    assert parse_number(f"{d:f}") == Fraction(Decimal(d))


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6))
def test_fractions_round_trip(q):
    assert parse_number(f"{q.numerator}/{q.denominator}") == q
    sign = "-" if q < 0 else ""
    assert parse_number(rf"{sign}\frac{{{abs(q.numerator)}}}{{{q.denominator}}}") == q


def test_a_lone_number_is_read_out_of_prose():
    assert read_number("72 clips") == 72
    assert read_number("x = 3") == 3
    assert read_number("3 * 4 = 12 eggs") == 12
    assert read_number("50% of the well-known cake") == Fraction(1, 2)
    for text in ("3 or 4", "1, 2, 3", "x + 2", "2x", "3 pi", "2 million", "half of 3", "5!", "sqrt 2", "minus 3"):
        assert read_number(text) is None, text


def test_percent_may_mean_either():
    assert readings("50%") == (Fraction(1, 2), 50)
    assert readings("50%", percent="hundredth") == (Fraction(1, 2),)
    assert readings("50") == (50,)


def test_gold_answers():
    assert gold_text("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 1,072") == "1,072"
    assert gold_text(r"\[ x = \boxed{4.5e33} \mathrm{ergs} \]") == "4.5e33"
    assert gold_text(27.0) == "27" and gold_text(10**400) == str(10**400) and gold_text(0.5) == "0.5"
    assert gold_text("025") == "025"
    assert gold_text("x+2") == "x+2"  # a gold answer is not reduced to the last number in it
    assert [gold_text(x) for x in (None, True, [1], "", " \n")] == [None] * 5


def test_normalisation():
    assert normalize_answer(" **The  Eiffel Tower.** ") == "the eiffel tower"
    assert normalize_answer("1,080") == normalize_answer("$1080$") == "1080"
    assert normalize_answer(r"\text{Evelyn}") == "evelyn"
    assert normalize_answer("x²") != normalize_answer("x2")  # no compatibility folding: it would equate these
    assert normalize_answer("Éa") == normalize_answer("E\u0301A")
