"""Losses against numbers worked out by hand. The working is in the comments."""

import math

import pytest
import torch

from fiducial.core import credit
from fiducial.core.tokens import collate, masked_logprobs, token_logprobs
from fiducial.core.total import Counts, count, total
from fiducial.core.types import Encoded
from fiducial.methods import METHODS

sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


# rho_w = (.5, -1, 1), rho_l = (-1, 1, .5), so h = (1.5, -2, .5)
CHOSEN, REJECTED = t(-10, -12, -8), t(-11, -9, -8)
REF_CHOSEN, REF_REJECTED = t(-10.5, -11, -9), t(-10, -10, -8.5)
PAIRS = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
H = (1.5, -2.0, 0.5)


def dpo(**options):
    return METHODS["dpo"].loss(*PAIRS, **options)


def test_dpo():
    # log(1 + exp(-0.15)) = 0.6209570478..., and so on with 0.1 h
    torch.testing.assert_close(dpo(), t(0.6209570478, 0.7981388694, 0.6684596480), atol=1e-10, rtol=0)
    assert float(dpo().mean()) == pytest.approx(0.6958518551, abs=1e-10)


def test_dpo_at_the_reference_is_log_two_with_half_weight():
    w = t(-3.0).requires_grad_()
    loss = METHODS["dpo"].loss(w, t(-4.0), t(-3.0), t(-4.0), beta=0.3)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-15)
    assert float(w.grad) == pytest.approx(-0.3 / 2, abs=1e-15)  # -beta sigmoid(-0)


def test_dpo_label_smoothing_and_robust():
    # conservative: .9 (-log s(x)) + .1 (-log s(-x)); robust: (.9 a - .1 b) / .8
    for i, h in enumerate(H):
        a, b = -math.log(sigmoid(0.1 * h)), -math.log(sigmoid(-0.1 * h))
        assert float(dpo(label_smoothing=0.1)[i]) == pytest.approx(0.9 * a + 0.1 * b, abs=1e-12)
        assert float(dpo(label_smoothing=0.1, robust=True)[i]) == pytest.approx((0.9 * a - 0.1 * b) / 0.8, abs=1e-12)


def test_robust_dpo_is_unbiased_under_flips():
    """Averaged over labels that flip at rate e, the robust loss is the clean one (Chowdhury et al. 2024, lemma 3.1)."""
    e = 0.2
    swapped = METHODS["dpo"].loss(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, label_smoothing=e, robust=True)
    mixture = (1 - e) * dpo(label_smoothing=e, robust=True) + e * swapped
    torch.testing.assert_close(mixture, dpo(), atol=1e-12, rtol=0)


def test_dpo_without_reference():
    # h = log pi(y_w) - log pi(y_l) = (1, -3, 0)
    torch.testing.assert_close(dpo(gamma_ref=0.0), t(*[-math.log(sigmoid(0.1 * h)) for h in (1, -3, 0)]))


def test_dpo_reference_shift_and_swap():
    """Adding c to both reference log-probs changes nothing; swapping sides negates h."""
    shifted = METHODS["dpo"].loss(CHOSEN, REJECTED, REF_CHOSEN + 7, REF_REJECTED + 7)
    torch.testing.assert_close(shifted, dpo(), atol=1e-12, rtol=0)
    swapped = METHODS["dpo"].loss(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, label_smoothing=0.3)
    torch.testing.assert_close(swapped, 0.7 * (0.1 * t(*H)).sigmoid().neg().log1p().neg() + 0.3 * dpo())


def test_dpo_gradient_in_ratio_coordinates():
    """Feng et al. 2024: with x = pi / ref, dL/dx1 = -b x2^b / (x1 (x1^b + x2^b)), |dL/dx1 / dL/dx2| = x2 / x1."""
    beta = 0.7
    x1, x2 = t(1.3).requires_grad_(), t(0.4).requires_grad_()
    METHODS["dpo"].loss(x1.log(), x2.log(), t(0.0), t(0.0), beta=beta).sum().backward()
    a, b = 1.3, 0.4
    assert float(x1.grad) == pytest.approx(-beta * b**beta / (a * (a**beta + b**beta)), rel=1e-10)
    assert float(x2.grad) == pytest.approx(beta * b ** (beta - 1) / (a**beta + b**beta), rel=1e-10)
    assert abs(float(x1.grad / x2.grad)) == pytest.approx(b / a, rel=1e-10)


def test_bt_reward_model():
    loss = METHODS["bt_reward_model"].loss
    zero = t(0.0)
    assert float(loss(zero, zero, zero)) == pytest.approx(math.log(2))
    r = t(1.0).requires_grad_()
    # -log s(1 - 0.4 - 0.5) = log(1 + e^-0.1); slope -s(-(0.1))
    value = loss(r, t(0.4), t(0.5))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(math.log(1 + math.exp(-0.1)), abs=1e-12)
    assert float(r.grad) == pytest.approx(-sigmoid(-0.1), abs=1e-12)
    # centring: + 0.01 (1 + 0.4)^2 = 0.0196
    centred = loss(t(1.0), t(0.4), t(0.5), center_coef=0.01)
    assert float(centred) == pytest.approx(math.log(1 + math.exp(-0.1)) + 0.0196, abs=1e-12)


def test_grpo_zones():
    """A > 0: the slope is A below 1 + high and 0 above; A < 0: A above 1 - low and 0 below. rho = exp(d)."""
    for advantage, ratio, slope in (
        (2.0, 0.5, 2.0), (2.0, 1.1, 2.0), (2.0, 1.3, 0.0), (-2.0, 0.5, 0.0), (-2.0, 0.9, -2.0), (-2.0, 1.5, -2.0),
    ):  # fmt: skip
        logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
        loss = METHODS["grpo"].loss(logprobs, torch.zeros(1, 1).double(), torch.tensor([[advantage]]).double())
        loss.sum().backward()
        # d(-rho A)/d(log rho) = -rho A
        assert float(logprobs.grad) == pytest.approx(-ratio * slope, abs=1e-12), (advantage, ratio)


def test_grpo_clip_higher():
    """DAPO: from probability 0.01 the surrogate keeps rising until 0.0128 with clip_high 0.28."""
    for p, live in ((0.0127, True), (0.0129, False)):
        logprobs = torch.tensor([[math.log(p)]], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([[math.log(0.01)]], dtype=torch.float64)
        METHODS["grpo"].loss(logprobs, old, torch.ones(1, 1).double(), clip_high=0.28).sum().backward()
        assert (float(logprobs.grad) != 0) == live


def test_grpo_ratio_levels():
    # log-ratios (0.1, 0.3): token exp(0.1), exp(0.3); sequence exp(0.4); geometric mean exp(0.2); advantage 1, no clip
    new = torch.tensor([[-1.0, -0.7]], dtype=torch.float64)
    old = torch.tensor([[-1.1, -1.0]], dtype=torch.float64)
    ones, mask = torch.ones(1, 2).double(), torch.ones(1, 2).bool()
    for level, expected in (("token", (0.1, 0.3)), ("sequence", (0.4, 0.4)), ("sequence_geomean", (0.2, 0.2))):
        loss = METHODS["grpo"].loss(new, old, ones, mask, ratio_level=level, clip_high=9.0)
        torch.testing.assert_close(loss, -torch.tensor([expected]).double().exp())
    one = [x[:, :1] for x in (new, old, ones, mask)]  # one token: all three are the same
    assert len({float(METHODS["grpo"].loss(*one, ratio_level=level)) for level in ("token", "sequence")}) == 1


def test_rloo_and_reinforce():
    logprobs, advantages = torch.tensor([[-0.5, -2.0]]), torch.tensor([[2.0, -1.0]])
    expected = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(METHODS["reinforce_lm"].loss(logprobs, advantages), expected)
    torch.testing.assert_close(METHODS["rloo"].loss(logprobs, logprobs, advantages), expected)
    # clip 0.2, ratio e^0.5 = 1.65, A = 2: min(3.30, 1.2 * 2)
    clipped = METHODS["rloo"].loss(torch.tensor([[0.0]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]), clip=0.2)
    assert float(clipped) == pytest.approx(-2.4)


def test_rloo_clips_one_ratio_of_a_completion():
    """Log-ratios 0.3 and -0.2, and one that is masked: e^0.1 = 1.105 for the completion, within 0.2 of 1, although
    e^0.3 and e^-0.2 are not. With A = 2 its two tokens share -2 e^0.1, and their sum is the loss of the one action;
    with log-ratios 0.3 and 0.1 it is clipped at 1.2."""
    old, mask = torch.zeros(1, 3).double(), torch.tensor([[False, True, True]])
    advantages = torch.full((1, 3), 2.0).double()
    for ratios, expected in (((0.3, -0.2), 2 * math.exp(0.1)), ((0.3, 0.1), 2.4)):
        new = torch.tensor([[5.0, *ratios]]).double()
        loss = METHODS["rloo"].loss(new, old, advantages, mask, clip=0.2, ratio_level="sequence")
        assert (loss * mask).sum().item() == pytest.approx(-expected)
        assert loss[0, 1] == loss[0, 2]


# -- credit ------------------------------------------------------------------------------------------------------------


def test_leave_one_out():
    # group 0: 1, 0, 0.5 -> 1 - 0.25, 0 - 0.75, 0.5 - 0.5; group 1 alone: nothing to compare with
    rewards, group = t(1, 0, 0.5, 3), torch.tensor([0, 0, 0, 1])
    torch.testing.assert_close(credit.leave_one_out(rewards, group), t(0.75, -0.75, 0.0, 0.0))
    pair = credit.leave_one_out(t(3.0, 1.0), torch.tensor([5, 5]))  # k = 2: +-(R1 - R2)
    torch.testing.assert_close(pair, t(2.0, -2.0))


@pytest.mark.parametrize("wins", range(1, 8))
def test_group_normalised_binary(wins):
    """Success share p: A+ = sqrt((1 - p) / p), A- = -sqrt(p / (1 - p)); zero mean, unit variance."""
    rewards = t(*[1.0] * wins, *[0.0] * (8 - wins))
    a = credit.group_normalized(rewards, torch.zeros(8, dtype=torch.long), std_epsilon=0.0)
    p = wins / 8
    assert float(a[0]) == pytest.approx(math.sqrt((1 - p) / p), abs=1e-12)
    assert float(a[-1]) == pytest.approx(-math.sqrt(p / (1 - p)), abs=1e-12)
    assert float(a.mean()) == pytest.approx(0, abs=1e-12) and float(a.square().mean()) == pytest.approx(1, abs=1e-12)
    affine = credit.group_normalized(3 * rewards - 7, torch.zeros(8, dtype=torch.long), std_epsilon=0.0)
    torch.testing.assert_close(a, affine)
    # the sample deviation is larger by sqrt(8 / 7)
    sample = credit.group_normalized(rewards, torch.zeros(8, dtype=torch.long), std="sample", std_epsilon=0.0)
    torch.testing.assert_close(sample, a * math.sqrt(7 / 8))


def test_groups_that_agree_teach_nothing():
    for std in ("population", "sample", "none"):
        a = credit.group_normalized(t(0.1, 0.1, 0.1), torch.zeros(3, dtype=torch.long), std=std)
        assert a.abs().max() < 1e-15
    # over the batch: rewards (0, 0, 1, 1) have deviation 0.5, but each group is centred to 0
    batch = credit.group_normalized(t(0, 0, 1, 1), torch.tensor([0, 0, 1, 1]), std="batch")
    assert batch.tolist() == [0, 0, 0, 0]


def test_reinforce_baselines():
    rewards, group = t(1, 0, 4, 3), torch.tensor([0, 0, 1, 1])
    to_go = torch.zeros(4, 3).double()
    to_go[:, 2] = rewards
    update, state = credit.reinforce.update, credit.reinforce.init()

    def advantages(name):
        return update(state, rewards, to_go, group, baseline=name)[0]

    torch.testing.assert_close(advantages("none"), rewards)
    torch.testing.assert_close(advantages("batch_mean"), rewards - 2)
    torch.testing.assert_close(advantages("group_loo"), t(1, -1, 1, -1))
    # running: nothing before the first step; then the mean 2; then .9 * 2 + .1 * 2, always subtracted before updating
    first, state = update(state, rewards, to_go, group, baseline="running")
    torch.testing.assert_close(first, rewards)
    second, state = update(state, rewards + 1, to_go, group, baseline="running")
    torch.testing.assert_close(second, rewards - 1)
    assert state["mean"] == pytest.approx(0.9 * 2 + 0.1 * 3)


def test_reinforce_by_token_sums_what_is_still_to_come():
    # token rewards (-.1, -.2, 1 - .3): to go 0.4, 0.5, 0.7
    tokens = torch.tensor([[-0.1, -0.2, 0.7]]).double()
    found, _ = credit.reinforce.update(
        {"mean": 0.0, "steps": 0.0}, tokens.sum(-1), tokens, torch.tensor([0]), baseline="none", action_level="token"
    )
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.5, 0.7]]).double())


# -- sums and counts ---------------------------------------------------------------------------------------------------


def test_total_modes_agree_for_equal_lengths():
    """Spec 0.3 (i): with |y| = T for all rows, token = sequence = sequence_sum / T, and constant = sequence_sum / c."""
    loss = torch.arange(12.0).view(3, 4).double()
    mask = torch.ones(3, 4).bool()
    counts = Counts(12, 3, 3)
    value = {per: float(total(loss, mask, torch.ones(3), per, counts, 8.0)) for per in
             ("token", "sequence", "sequence_sum", "constant")}  # fmt: skip
    assert value["token"] == value["sequence"] == value["sequence_sum"] / 4 == 5.5
    assert value["constant"] == value["sequence_sum"] / 8


def test_total_weighs_long_rows_as_the_paper_says():
    # rows of 1 and 3 tokens, losses 6 and (1, 1, 1): token 9/4, sequence (6 + 1)/2, sequence_sum (6 + 3)/2
    loss = torch.tensor([[0, 6.0, 0, 0], [0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1]]).bool()
    counts = Counts(4, 2, 2)
    found = [float(total(loss, mask, torch.ones(2), per, counts)) for per in ("token", "sequence", "sequence_sum")]
    assert found == [2.25, 3.5, 4.5]


def test_counts_leave_out_rows_without_a_token_that_trains():
    batch = collate([Encoded([1, 2, 3], [False, True, True]), Encoded([1, 2], [False, False])], weight=[2.0, 5.0])
    assert count(batch) == Counts(tokens=4.0, sequences=2.0, rows=7.0)


# -- the only shift ----------------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand():
    # after token 0 the logits are (0, log 3): P(1) = 3/4; after token 1 they are (log 4, 0): P(0) = 4/5
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [9.0, 9.0]]], dtype=torch.float64)
    ids = torch.tensor([[0, 1, 0]])
    torch.testing.assert_close(token_logprobs(logits, ids), torch.tensor([[0, math.log(0.75), math.log(0.8)]]).double())
    # at temperature 2: odds sqrt(3) : 1 and 2 : 1
    hot = token_logprobs(logits, ids, temperature=2.0)
    expected = torch.tensor([[0, math.log(3**0.5 / (1 + 3**0.5)), math.log(2 / 3)]]).double()
    torch.testing.assert_close(hot, expected)


def test_masked_logprobs_are_token_logprobs_where_they_are_wanted():
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 6, 5).double(), torch.randn(7, 5).double()
    ids, mask = torch.randint(0, 7, (3, 6)), torch.rand(3, 6) < 0.5
    mask[:, 0] = False
    logits = hidden @ weight.T
    out = masked_logprobs(hidden, lambda h: h @ weight.T, ids, mask, temperature=1.7, spread=True)
    expected = torch.where(mask, token_logprobs(logits, ids, 1.7), 0.0)
    torch.testing.assert_close(out["logprobs"], expected)
    best = torch.nn.functional.pad(logits[:, :-1].argmax(-1) == ids[:, 1:], (1, 0))
    assert (out["hits"] == (best & mask)).all()
    chances = (logits[:, :-1] / 1.7).softmax(-1)
    spread = torch.nn.functional.pad(-(chances * chances.log()).sum(-1), (1, 0))
    torch.testing.assert_close(out["entropy"], torch.where(mask, spread, 0.0))


@pytest.mark.parametrize("value", [0.1, 7.3, 100.3, 1234.5678, -0.7])
@pytest.mark.parametrize("std", ["population", "sample", "batch", "none"])
def test_equal_rewards_in_float32_give_exactly_zero(value, std):
    """The mean of seven 7.3s is none of them in float32: its rounding must not be divided by itself."""
    rewards, group = torch.full((7,), value), torch.zeros(7, dtype=torch.long)
    assert credit.group_normalized(rewards, group, std=std, std_epsilon=1e-6).tolist() == [0.0] * 7
    assert credit.leave_one_out(rewards, group).abs().max() < 1e-12


def test_a_row_loss_of_the_wrong_shape_is_refused():
    """[3, 1] times [3] would broadcast to nine terms."""
    with pytest.raises(ValueError, match="one number per row"):
        total(torch.ones(3, 1), torch.ones(3, 2).bool(), torch.ones(3), "row", Counts(3, 3, 3))
