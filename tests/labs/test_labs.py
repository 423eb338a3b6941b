"""The labs on tables: what a criterion decides, what is left behind, and that each lab finds what it claims.

Everything over some seconds is marked slow; the quick labs stand for the frame in the normal suite.
"""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from fiducial.cli import lab as verb
from fiducial.cli import main
from fiducial.evals.stats import Interval
from fiducial.exact.divergences import kl
from fiducial.exact.optima import spin_step
from fiducial.labs import (
    LABS,
    base,
    displacement,
    dpo_gradient_field,
    kto_majority,
    label_noise,
    lookup,
    misspecification,
    output,
    overoptimisation,
    spin,
    tabular,
    tree_vs_chain,
)
from fiducial.labs.base import Criterion, Lab, Plot, Result
from fiducial.methods import METHODS

# -- criteria and verdicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "relation", "bound", "interval", "verdict"),
    [
        (1.0, "<", 1.0, None, "fail"),
        (1.0, "<=", 1.0, None, "pass"),
        (2.0, ">", 1.0, None, "pass"),
        (2.0, ">=", 2.5, None, "fail"),
        (math.nan, "<=", 1.0, None, "fail"),
        (math.inf, ">", 1.0, None, "pass"),
        (2.0, ">", 1.0, (1.5, 2.5), "pass"),
        (2.0, ">", 1.0, (0.5, 3.5), "inconclusive"),
        (0.9, ">", 1.0, (0.5, 1.3), "inconclusive"),
        (0.5, ">", 1.0, (0.2, 0.8), "fail"),
        (0.5, "<", 1.0, (0.2, 0.8), "pass"),
    ],
)
def test_what_a_criterion_decides(value, relation, bound, interval, verdict):
    found = Criterion("x", value, relation, bound, Interval(value, *interval) if interval else None)
    assert found.verdict == verdict and found.passed == (verdict == "pass")
    assert found.to_json()["passed"] == (verdict == "pass")


def test_the_worst_criterion_is_the_verdict():
    holds, fails = Criterion("a", 0.0, "<", 1.0), Criterion("b", 2.0, "<", 1.0)
    open_ = base.above("c", Interval(1.0, -1.0, 3.0), 0.0)
    verdicts = [Result({}, {}, c).verdict for c in ([holds], [holds, open_], [holds, open_, fails])]
    assert verdicts == ["pass", "inconclusive", "fail"]


# -- what is left behind -----------------------------------------------------------------------------------------------


def a_lab(value: float = 0.5, id: str = "L98", name: str = "made_up") -> Lab:
    def run(seed: int, fast: bool) -> Result:
        series = {"curve": {"step": [1, 2], "loss": torch.tensor([value, math.inf]).double(), "kind": ["a", "b, c"]}}
        figures = {"curve": Plot(lambda left, right: left.plot([1, 2], [seed, value]), panels=2)}
        return Result(series, figures, [Criterion("value <|", value, "<", 1.0)], "a <note>", {"other": math.nan})

    return Lab(id, name, "made <up>", "value is below 1", "nowhere", run)


def left_behind(lab: Lab, out, seed: int = 0) -> list[str]:
    return output.write(lab, lab.run(seed, True), out, seed, True)


def test_files_of_a_lab(tmp_path):
    files = left_behind(a_lab(), tmp_path, seed=3)
    names = ["curve.csv", "curve.png", "metrics.json", "verdict.json"]
    assert files == [str(tmp_path / "made_up" / name) for name in names]
    rows = list(csv.reader((tmp_path / "made_up" / "curve.csv").read_text(encoding="utf-8").splitlines()))
    assert rows == [["step", "loss", "kind"], ["1", "0.5", "a"], ["2", "", "b, c"]]
    metrics = json.loads((tmp_path / "made_up" / "metrics.json").read_text())
    assert metrics["series"]["curve"]["loss"] == [0.5, None] and metrics["metrics"] == {"other": None}
    assert (metrics["seed"], metrics["fast"]) == (3, True)
    verdict = json.loads((tmp_path / "made_up" / "verdict.json").read_text())
    assert verdict["verdict"] == "pass" and verdict["files"] == names
    assert verdict["criteria"][0] == {
        **{"name": "value <|", "value": 0.5, "relation": "<", "bound": 1.0, "passed": True, "verdict": "pass"}
    }


def test_a_picture_has_its_size_and_its_ink(tmp_path):
    from PIL import Image

    left_behind(a_lab(), tmp_path)
    picture = Image.open(tmp_path / "made_up" / "curve.png")
    assert picture.size == (round(2 * 4.8 * output.DPI), round(3.5 * output.DPI))
    assert len(picture.convert("RGB").getcolors()) > 5


def test_the_same_seed_leaves_the_same_bytes(tmp_path):
    one, two = (left_behind(a_lab(), tmp_path / which, seed=5) for which in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        with open(a, "rb") as x, open(b, "rb") as y:
            assert x.read() == y.read()


def test_columns_of_unequal_length_are_a_mistake(tmp_path):
    lab = replace(a_lab(), run=lambda seed, fast: Result({"t": {"a": [1], "b": [1, 2]}}, {}, []))
    with pytest.raises(AssertionError, match="columns of t differ"):
        left_behind(lab, tmp_path)


def test_the_gallery_shows_every_lab_of_the_folder_and_needs_no_other_file(tmp_path):
    left_behind(a_lab(), tmp_path)
    left_behind(a_lab(2.0, "L9", "ninth"), tmp_path)
    html = output.write_gallery(tmp_path).read_text()
    assert html.index('id="L9"') < html.index('id="L98"')  # by number
    assert html.count("data:image/png;base64,") == 2 and 'src="data' in html and "http" not in html
    assert "made &lt;up&gt;" in html and "a &lt;note&gt;" in html and "fiducial lab L98 --seed 0 --fast" in html
    assert html.count(">fail<") == 3 and html.count(">pass<") == 3  # in the contents, the title and the criterion


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_labs(monkeypatch):
    labs = {"L98": a_lab(), "L99": a_lab(2.0, "L99", "failing")}
    monkeypatch.setattr(verb, "LABS", labs)
    monkeypatch.setattr("fiducial.labs.LABS", labs)


def test_the_command_answers_in_json_and_by_its_exit_code(two_labs, tmp_path, capsys):
    assert main(["lab", "L98", "--json", "--fast", "--out", str(tmp_path)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["lab"] == "L98" and entry["verdict"] == "pass"
    assert {"name", "value", "bound", "passed"} <= set(entry["criteria"][0])
    assert all((tmp_path / "made_up" / file.rsplit("/", 1)[1]).exists() for file in entry["files"])
    assert main(["lab", "--all", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "index.html" in said and "fail" in said
    assert json.loads((tmp_path / "failing" / "verdict.json").read_text())["fast"] is False


def test_the_command_lists_and_refuses(two_labs, tmp_path, capsys):
    assert main(["lab", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["lab"] for entry in listed] == ["L98", "L99"] and listed[0]["claim"] == "value is below 1"
    assert main(["lab", "L7"]) == 2
    assert "no lab is called 'L7'; there are L98 made_up, L99 failing" in capsys.readouterr().err
    assert main(["lab", "L98", "--seed", "-1"]) == 2
    (tmp_path / "file").touch()
    assert main(["lab", "L98", "--out", str(tmp_path / "file")]) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["lab"])


def test_names_and_ids():
    spellings = ("L2", "l2", "dpo_vs_ipo_deterministic", "lab_dpo_vs_ipo_deterministic")
    assert {lookup(name).id for name in spellings} == {"L2"}
    assert [lab.number for lab in LABS.values()] == sorted(lab.number for lab in LABS.values())
    assert all(lab.id == key and (lab.claim and lab.source) for key, lab in LABS.items())


# -- each lab ----------------------------------------------------------------------------------------------------------

QUICK = ("L1", "L3", "L10", "L17", "L26", "L27", "L28", "L30", "L31")
SLOW = ("L2", "L4", "L5", "L7", "L8", "L9", "L14", "L15", "L33")


@pytest.mark.parametrize("id", [*QUICK, *(pytest.param(id, marks=pytest.mark.slow) for id in SLOW)])
def test_a_lab_finds_what_it_claims(id, tmp_path):
    lab = LABS[id]
    result = lab.run(0, True)
    assert result.verdict == "pass", [c for c in result.criteria if not c.passed]
    output.write(lab, result, tmp_path, 0, True)  # every figure draws


@pytest.mark.slow
def test_over_optimisation_leaves_the_depth_of_the_fall_open(tmp_path):
    """Below half of the peak is stated of 100 draws, where it is undecided, and does not hold over all of them."""
    result = LABS["L16"].run(0, True)
    undecided = [c for c in result.criteria if not c.passed]
    assert [c.name for c in undecided] == ["gold at the strongest - half of its peak, 100 draws"]
    assert undecided[0].verdict == "inconclusive"
    assert result.metrics["gold at the strongest - half of its peak, all draws"] > 0
    output.write(LABS["L16"], result, tmp_path, 0, True)


def failing(lab: Lab) -> list[str]:
    return [c.name for c in lab.run(0, True).criteria if not c.passed]


def test_a_wrong_loss_is_found_out(monkeypatch):
    """DPO that takes the rejected one for the chosen."""

    def swapped(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, *, beta=0.1):
        args = (rejected_logprobs, chosen_logprobs, ref_rejected_logprobs, ref_chosen_logprobs)
        return right.loss(*args, beta=beta)

    right = METHODS["dpo"]
    wrong = replace(right, loss=swapped, idle={})
    monkeypatch.setitem(METHODS, "dpo", wrong)
    assert len(failing(LABS["L3"])) == 6  # both slopes; their ratio is the same
    assert "pairs and steps at which the flip rule fails" in failing(LABS["L10"])


@pytest.mark.slow
def test_a_wrong_reference_schedule_is_found_out(monkeypatch):
    late = replace(METHODS["tr_dpo"], anchors={"ref": lambda step, steps, *, alpha=0.6, sync_steps=512: 0.0})
    monkeypatch.setitem(METHODS, "tr_dpo", late)
    assert len(failing(LABS["L9"])) == 4


# -- parts by hand -----------------------------------------------------------------------------------------------------

D = torch.float64


def test_pair_losses_pick_the_right_entries():
    """DPO at beta 1, row 0: h = log(.6/.3) - log(.5/.5) = log 2, loss log(1 + 1/2); row 1: h = -log 4, log(1 + 4)."""
    policy = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.0, 0.8]], dtype=D).clamp(min=1e-9).log()
    ref = torch.full((2, 3), 1 / 3, dtype=D).log()
    found = tabular.pair_loss(METHODS["dpo"], policy, ref, 0, torch.tensor([1, 2]), beta=1.0)
    assert found.tolist() == pytest.approx([math.log(1.5), math.log(5)])


def test_expected_pair_losses_are_an_average_over_different_pairs():
    """Two responses, law (.25, .75): one pair, however likely; P = .8 gives the mean of .8 and .2 of both orders."""
    policy, ref = torch.tensor([0.6, 0.4], dtype=D).log(), torch.tensor([0.5, 0.5], dtype=D).log()
    preference, law = torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=D), torch.tensor([0.25, 0.75], dtype=D)
    found = tabular.expected_pair_loss(METHODS["dpo"], policy, ref, preference, law, beta=1.0)
    assert float(found) == pytest.approx(0.8 * math.log(1 + 2 / 3) + 0.2 * math.log(1 + 3 / 2))


def test_descent_on_a_parabola():
    """x <- x - 0.25 * 2 x halves x each step."""
    path = tabular.descend(lambda x: x.square().sum(), torch.tensor([8.0]), 0.25, 3)
    assert path[:, 0].tolist() == [8, 4, 2, 1]


def test_slopes_of_dpo_by_hand():
    """beta 1, x = (1, 3): -log(x1 / (x1 + x2)) has slopes -x2 / (x1 (x1 + x2)) = -3/4 and 1 / (x1 + x2) = 1/4."""
    x = torch.ones(1, dtype=D)
    loss, first, second = dpo_gradient_field.slopes(x, 3 * x, 1.0)
    assert [float(v) for v in (loss, first, second)] == pytest.approx([math.log(4), -0.75, 0.25])


def test_displacement_by_hand():
    """At theta 1: logits .5, 0, 2, so log pi/ref of the chosen is .5 - log((e^.5 + 1 + e^2) / 3) = .5 - 1.2078. At 0,
    DPO's slope in theta is -beta/2 x .5 = -.025 and that of the likelihood term alpha (2.5/3 - .5) = alpha / 3."""
    ratios = displacement.log_ratios(torch.ones((), dtype=D))
    shift = math.log((math.exp(0.5) + 1 + math.exp(2)) / 3)
    assert ratios.tolist() == pytest.approx([0.5 - shift, -shift, 2 - shift])
    assert displacement.critical_alpha() == pytest.approx(0.075, abs=1e-12)


def test_rounds_of_spin_against_the_closed_form():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=D)
    data = torch.tensor([0.2, 0.2, 0.6], dtype=D)
    for beta in (0.6, 2.0):
        found = spin.round_of(policy.log(), data, beta)
        torch.testing.assert_close(found.exp(), spin_step(policy, data, beta), atol=1e-8, rtol=0)


def test_what_a_comparison_leaves_unknown():
    """Two leaves of variance 1: the difference has variance 2, and after a look with noise 1, 2 - 4/(2 + 1) = 2/3."""
    assert tree_vs_chain.unknown(torch.eye(2, dtype=D), [(0, 1)]) == pytest.approx([2, 2 / 3])


def test_leaves_share_what_their_prefixes_share():
    """Leaf 0 (path 000) with variances 4, 2, 1 by level: itself 7, a sibling 6, a cousin 4, the other side 0."""
    covariance = tree_vs_chain.prior((4.0, 2.0, 1.0))
    assert covariance.shape == (64, 64)
    assert [float(covariance[0, i]) for i in (0, 1, 4, 16)] == [7, 6, 4, 0]


def test_noise_is_students_t_with_two_degrees():
    """P(|T| < 1) = 1 / sqrt 3: with 200 000 draws the share is off by less than 4 x 0.0011. The median of T^2 is 2."""
    _, noise = overoptimisation.draw(0, 400)
    inside = float((noise.abs() < 1).double().mean())
    assert inside == pytest.approx(3**-0.5, abs=4 * 0.0011)
    assert float(noise.square().median()) == pytest.approx(2 / 3, abs=0.02)  # F(t) = 1/2 + t / (2 sqrt(2 + t^2)) = 3/4


def test_best_of_n_and_the_penalised_optimum_by_hand():
    """Best of 2 of 500 equal chances, gold 1 for the best by proxy and else 0: 1 - (499/500)^2 = .003996. Without
    proxy to follow, the penalised optimum is uniform, its KL 0."""
    proxy = torch.arange(500).double()[None]
    gold = (proxy == 499).double()
    curve = overoptimisation.best(gold, proxy)
    assert float(curve.gold[1, 0]) == pytest.approx(1 - (499 / 500) ** 2)
    assert float(curve.gold[0, 0]) == pytest.approx(1 / 500) and float(curve.kl[0, 0]) == pytest.approx(0, abs=1e-12)
    flat = overoptimisation.penalised(gold, torch.zeros_like(proxy))
    assert float(flat.kl.abs().max()) < 1e-12 and float(flat.gold[7, 0]) == pytest.approx(1 / 500)


def test_kto_keeps_to_the_majority_and_dpo_to_the_odds():
    """ref (.05, .95), 60 % want the first, beta 1: DPO ends at odds .05/.95 x 1.5 = .0789, KTO above .99."""
    ref = torch.tensor([[0.05, 0.95]], dtype=D).log()
    dpo = float(kto_majority._paired("dpo", ref, 0.6)[0])
    assert dpo / (1 - dpo) == pytest.approx(0.05 / 0.95 * 1.5, rel=1e-6)
    assert float(kto_majority._kto(ref, 0.6)[0]) > 0.99


def test_values_of_human_aware_losses():
    """From 0 to 1: log s 0.3799 (log 2 - log(1 + 1/e)), s 0.2311, clip 1.2 of 1; from 0 to -1, clip takes 1.5."""
    curves = kto_majority.value_curves()
    at = {z: int((curves["z"] - z).abs().argmin()) for z in (-1.0, 1.0)}
    names = [name for name in curves if name != "z"]
    gains = {name: float(curves[name][at[1.0]]) for name in names}
    assert gains["log σ (DPO)"] == pytest.approx(math.log(2) - math.log1p(math.exp(-1)))
    assert gains["σ (KTO)"] == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)
    clip = next(name for name in names if name.startswith("clip"))
    assert gains[clip] == pytest.approx(1.2) and float(curves[clip][at[-1.0]]) == pytest.approx(-1.5)


def test_robust_dpo_without_the_right_rate_is_not_unbiased():
    """On labels that flip at .3, robust DPO told .3 ends where DPO ends on clean ones; told .1 it does not."""
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=D).log()
    clean = torch.tensor([[0.5, 0.8, 0.9], [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]], dtype=D)
    noisy = 0.7 * clean + 0.3 * (1 - clean)
    goal = label_noise._paired("dpo", ref, clean, ref.exp())
    told = [label_noise._paired("dpo", ref, noisy, ref.exp(), label_smoothing=e, robust=True) for e in (0.3, 0.1)]
    assert float((told[0] - goal).abs().max()) < 1e-8 < 1e-3 < float((told[1] - goal).abs().max())
    assert float(kl(told[1], ref.exp())) < float(kl(goal, ref.exp()))  # what is left of the noise holds it back


def test_the_truth_lies_in_the_classes_that_the_case_says():
    """Whether rewards (policies) of the class reach the true rewards (their optimum), by least squares."""

    def reaches(features, rewards):
        columns = torch.cat([features, torch.ones(3, 1, dtype=D)], 1)
        rest = rewards[:, None] - columns @ torch.linalg.lstsq(columns, rewards[:, None]).solution
        return float(rest.abs().max()) < 1e-9

    right = {"both right": (True, True), "policy class wrong": (True, False), "reward class wrong": (False, True)}
    for case in misspecification.CASES:
        rewards, one, other = misspecification.instance(case, 3)
        assert (reaches(one, rewards), reaches(other, rewards)) == right.get(case, (False, False)), case
