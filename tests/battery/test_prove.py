"""`prove` holds for every method of the catalogue, and fails on methods that are wrong in the ways methods go wrong."""

from dataclasses import replace

import pytest
import torch

from fiducial.core import credit
from fiducial.core.method import KL, method_from_file
from fiducial.exact.optima import grpo_factor
from fiducial.exact.tables import ScoreTree, TokenTree
from fiducial.methods import METHODS, sft
from fiducial.prove import TARGETS, prove
from fiducial.prove.gradients import TREE_REWARDS, expected_gradient, objective_gradient
from fiducial.prove.problems import UNTIL_STILL, FixedFeed, exact_run, preference_pairs, solve

SIMPO = '''"""SimPO (Meng et al. 2024, arXiv:2405.14734), eq. 6: length-averaged log-probs and a target margin."""

from torch.nn.functional import logsigmoid

from fiducial.core.method import Method


def simpo(chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths, *, beta=2.0, gamma=1.0):
    margin = chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths
    return -logsigmoid(beta * margin - gamma)


METHOD = Method(paper="arXiv:2405.14734", feed="pairs", loss=simpo, per="row")
'''
IPO = '''"""IPO (Azar et al. 2023, arXiv:2310.12036)."""

from fiducial.core.method import Method


def ipo(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, *, beta: float = 0.1):
    h = (chosen_logprobs - rejected_logprobs) - (ref_chosen_logprobs - ref_rejected_logprobs)
    return (h - 1 / (2 * beta)) ** 2


METHOD = Method(paper="arXiv:2310.12036", feed="pairs", loss=ipo, per="row", target="ipo_optimum")
'''


@pytest.mark.parametrize("name", METHODS)
def test_every_method_proves(name):
    failed = [check for check in prove(METHODS[name]) if not check.passed]
    assert not failed


def test_a_users_file_proves_by_path(tmp_path):
    for text, number in ((SIMPO, 9), (IPO, 11)):
        path = tmp_path / "mine.py"
        path.write_text(text)
        checks = prove(method_from_file(path))
        assert len(checks) >= number and all(check.passed for check in checks)


def failing(method) -> set[str]:
    return {check.check for check in prove(method) if not check.passed}


def test_a_loss_that_averages_by_itself_is_caught():
    def mine(logprobs):
        return -(logprobs - logprobs.mean())

    assert "micro-batches of 1 add up" in failing(replace(METHODS["sft"], loss=mine, target=None))


def test_a_loss_that_reads_unmasked_tokens_is_caught():
    def mine(logprobs, old_logprobs, advantages):
        return -logprobs * advantages.sum(-1, keepdim=True)

    method = replace(METHODS["rloo"], loss=mine, target=None)
    assert "what is not masked does not matter" in failing(method)


def test_a_detached_loss_is_caught():
    def mine(logprobs, advantages):
        return -advantages * logprobs.detach() * torch.exp(logprobs)

    assert "gradient is that of the value" in failing(replace(METHODS["reinforce_lm"], loss=mine, target=None))


def test_a_flipped_sign_is_caught():
    def mine(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, *, beta=0.1):
        return METHODS["dpo"].loss(rejected_logprobs, chosen_logprobs, ref_rejected_logprobs, ref_chosen_logprobs)

    assert "from a tie the chosen side rises" in failing(
        replace(METHODS["dpo"], loss=mine, target=None, idle={}, ranges={})
    )


def test_a_wrong_closed_form_is_caught():
    """Cross-entropy on twice the margin still looks like DPO, but ends at beta / 2's optimum."""

    def mine(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, *, beta: float = 0.1):
        args = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
        return METHODS["dpo"].loss(*args, beta=2 * beta)

    assert "trained table = ref exp(r/beta)/Z, beta = 0.5" in failing(
        replace(METHODS["dpo"], loss=mine, idle={}, ranges={})
    )


def test_a_biased_estimator_is_caught():
    """The plain group mean includes the completion itself and shrinks the gradient by 1 - 1/G."""
    method = replace(METHODS["rloo"], credit=lambda rewards, group: rewards - credit.group_mean(rewards, group))
    assert "enumerated bias, 2 completions" in failing(method)


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="claims the target 'moon'.*empirical_frequency"):
        prove(replace(sft.METHOD, target="moon"))
    assert {m.target for m in METHODS.values()} - {None} <= set(TARGETS)


# -- factors that the spec gives exactly -------------------------------------------------------------------------------


def factor_error(method, factor, n, per="sequence_sum", kl=None, **hparams):
    tree = TokenTree(3, 2, seed=5)
    run = exact_run(method, kl, n=n, per=per, hparams=hparams)
    found = expected_gradient(run, method, tree, TREE_REWARDS, None)
    return float((found + factor * objective_gradient(tree, TREE_REWARDS)).abs().max())


def test_batch_mean_baseline_shrinks_by_one_over_n():
    for n in (2, 3):
        assert factor_error(METHODS["reinforce_lm"], 1 - 1 / n, n, baseline="batch_mean") < 1e-10
        assert factor_error(METHODS["reinforce_lm"], 1.0, n, baseline="batch_mean") > 1e-3


@pytest.mark.parametrize("baseline", ["none", "running", "group_loo"])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_other_baselines_are_unbiased(baseline, level):
    assert factor_error(METHODS["reinforce_lm"], 1.0, 2, baseline=baseline, action_level=level) < 1e-10


def test_mean_only_grpo_shrinks_by_one_over_g():
    for n in (2, 3):
        assert factor_error(METHODS["grpo"], 1 - 1 / n, n, std="none") < 1e-10


def test_rloo_with_four_completions():
    tree = TokenTree(2, 2, seed=3)  # 3 responses, 81 groups of 4
    rewards = TREE_REWARDS[:3]
    found = expected_gradient(exact_run(METHODS["rloo"], n=4), METHODS["rloo"], tree, rewards, None)
    assert float((found + objective_gradient(tree, rewards)).abs().max()) < 1e-10


def test_the_causal_kl_has_the_expectation_of_the_full_one():
    """Token-level reward-to-go leaves out KL terms of the past, which have no expectation (spec C1)."""
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=6)
    run = exact_run(METHODS["reinforce_lm"], KL(0.3, "k1", "reward"), n=2, hparams={"action_level": "token"})
    found = expected_gradient(run, METHODS["reinforce_lm"], tree, TREE_REWARDS, ref)
    assert float((found + objective_gradient(tree, TREE_REWARDS, 0.3, ref)).abs().max()) < 1e-10


def test_length_bias_of_per_sequence_averaging():
    """Spec C10 (e): with per = "sequence" a token weighs 1 / |y|; with "token" or "constant" all weigh the same."""
    from fiducial.core.tokens import collate
    from fiducial.core.total import count, total
    from fiducial.core.types import Encoded

    batch = collate([Encoded([0, 1], [False, True]), Encoded([0, 1, 1, 1, 1], [False] + [True] * 4)])
    for per, ratio in (("sequence", 4.0), ("token", 1.0), ("constant", 1.0), ("sequence_sum", 1.0)):
        loss = torch.ones(2, 5, requires_grad=True)
        total(loss, batch.mask, batch.weight, per, count(batch), 8.0).backward()
        assert float(loss.grad[0, 1] / loss.grad[1, 1]) == pytest.approx(ratio)


@pytest.mark.parametrize(("p", "g"), [(0.2, 64), (0.5, 64), (0.7, 256)])
def test_grpo_factor_tends_to_the_arcsine_law(p, g):
    """c_G(p) -> 1 / sqrt(p (1 - p)): GRPO climbs 2 arcsin sqrt(p)."""
    assert grpo_factor(p, g) == pytest.approx((p * (1 - p)) ** -0.5, rel=0.02)


# -- what pairs cannot say ---------------------------------------------------------------------------------------------


def test_a_cycle_cannot_be_scored():
    """Three raters, 2/3 each around the cycle: the best scores are equal and the loss is log 2 (spec 1.4, 1.9)."""
    cycle = torch.tensor([[0.5, 2 / 3, 1 / 3], [1 / 3, 0.5, 2 / 3], [2 / 3, 1 / 3, 0.5]]).double()[None]
    law = torch.full((1, 3), 1 / 3).double()
    method, model = METHODS["bt_reward_model"], ScoreTree(3, 1)
    model.scores.data[0, 1:4] = torch.tensor([1.0, -2.0, 0.5])
    run = exact_run(method, steps=1500)
    solve(run, method, model, FixedFeed(preference_pairs(cycle, law)))
    table = model.table()[0]
    assert float((table - table.mean()).abs().max()) < 1e-6
    from fiducial.prove.problems import ready, value_and_gradient

    parts, batch = ready(run, method, model, preference_pairs(cycle, law), None)
    assert value_and_gradient(run, method, parts, batch, 100)[0] == pytest.approx(0.6931471806, abs=1e-9)


def separable_gap(num_steps: int, center_coef: float = 0.0, weight_decay: float = 0.0) -> tuple[float, float]:
    """Difference and sum of the two scores after training on a pair that never flips."""
    sure = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).double()[None]
    method, model = METHODS["bt_reward_model"], ScoreTree(2, 1)
    model.scores.data[0, 1:3] = torch.tensor([1.3, 0.5])
    run = exact_run(method, steps=num_steps, hparams={"center_coef": center_coef})
    feed = FixedFeed(preference_pairs(sure, torch.full((1, 2), 0.5).double()))
    optim = replace(UNTIL_STILL, schedule="constant", lr=0.05, weight_decay=weight_decay)
    solve(run, method, model, feed, optim=optim)
    good, bad = model.table()[0].tolist()
    return good - bad, good + bad


def test_separable_pairs_grow_without_bound_unless_decayed():
    """A sure preference has no finite best score. Weight decay bounds it; centring only fixes the sum at 0."""
    assert separable_gap(800)[0] > separable_gap(200)[0] + 1
    centred = separable_gap(800, center_coef=0.1)
    assert centred[0] > separable_gap(200, center_coef=0.1)[0] + 1
    assert abs(centred[1]) < 0.01 < abs(separable_gap(800)[1])
    # AdamW moves a score by at most lr a step and decay takes lr x 0.5 of it back: each stays within 1 / 0.5
    assert separable_gap(1600, weight_decay=0.5)[0] <= 4 < separable_gap(800)[0]


def test_flipped_signs_and_nan_slopes_are_caught():
    def uphill(logprobs, advantages):
        return logprobs * advantages

    def unlearn(logprobs):
        return logprobs

    def broken(logprobs):
        return -logprobs + 0 * (logprobs - logprobs).sqrt()  # the slope of sqrt at 0 is infinite: 0 x inf

    groups = replace(METHODS["reinforce_lm"], loss=uphill, target=None)
    assert "a rewarded token rises, a punished one falls" in failing(groups)
    assert "an imitated token rises" in failing(replace(METHODS["sft"], loss=unlearn, target=None))
    assert "gradient is that of the value" in failing(replace(METHODS["sft"], loss=broken, target=None))
