"""The labs of online training on trees: their parts by hand, their verdicts, and that broken methods are found out.

Runs of several seconds are marked slow; the quick ones stand for the verdicts in the normal suite.
"""

import math
from dataclasses import replace

import pytest
import torch

from fiducial.data.tasks import kk
from fiducial.exact.divergences import kl
from fiducial.exact.tables import TokenTree
from fiducial.labs import (
    LABS,
    dapo,
    format_hacking,
    grpo_dynamics,
    grpo_objective,
    kl_rlhf_optimum,
    lookup,
    offpolicy,
    online_compare,
    online_length_bias,
    output,
    reference_reset,
    rm,
    safe_rlhf,
)
from fiducial.labs.online import Draws, Paths, adam, online
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run
from fiducial.rewards.logic import LogicReward
from fiducial.train.measure import Meter

D = torch.float64
QUICK = ("grpo_dynamics", "rm", "format_hacking", "online_length_bias")
SLOW = ("grpo_objective", "safe_rlhf", "kl_rlhf_optimum", "offpolicy", "reference_reset", "dapo", "online_compare")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_lab_finds_what_it_claims(name, tmp_path):
    lab = lookup(name)
    result = lab.run(0, True)
    assert result.verdict == "pass", [c for c in result.criteria if not c.passed]
    output.write(lab, result, tmp_path, 0, True)  # every figure draws


def failing(name: str) -> list[str]:
    return [c.name for c in lookup(name).run(0, True).criteria if c.verdict == "fail"]


# -- the sampler of trees ----------------------------------------------------------------------------------------------


def test_chances_of_all_responses_at_once():
    """The same numbers as the tree's own walk, which goes from token to token."""
    tree = TokenTree(3, 3, prompts=2, seed=4)
    found = Paths(tree).logprobs()
    for prompt in (0, 1):
        torch.testing.assert_close(found[prompt], tree.response_logprobs(prompt).detach(), atol=1e-12, rtol=0)


def test_draws_are_groups_with_the_rewards_of_their_responses():
    """Rewards are the numbers of the responses: each row must hold the tokens of the response that its reward names."""
    tree = TokenTree(3, 2, prompts=2, seed=4)
    responses = tree.responses()
    numbers = torch.arange(len(responses)).double().expand(2, -1)
    batch = Draws(tree, numbers, 5, 0).batch(0, Meter())
    assert batch.group.tolist() == [0] * 5 + [1] * 5
    for ids, mask, reward in zip(batch.input_ids, batch.mask, batch.extra["rewards"], strict=True):
        assert tuple(ids[mask].tolist()) == responses[int(reward)]


def test_a_stale_sampler_uses_old_weights_and_reports_its_own_chances():
    tree = TokenTree(3, 1, torch.zeros(1, 4, 3))
    feed = Draws(tree, torch.zeros(1, 3), 400, 0, stale=2)
    for step in range(4):
        batch = feed.batch(step, Meter())
        with torch.no_grad():
            tree.theta[:, 0, 1] += 1.0  # before step s the logit of answer 1 is s
    # at step 3 the weights of step 1 drew: e / (e + 2) = 0.576
    said = batch.extra["sampler_logprobs"][batch.input_ids[:, 1] == 1, 1].exp()
    assert said.tolist() == pytest.approx([math.e / (math.e + 2)] * len(said))
    assert abs(len(said) / 400 - 0.576) < 4 * math.sqrt(0.576 * 0.424 / 400)


def test_rewards_by_chance_are_drawn_evenly():
    tree = TokenTree(2, 1, torch.zeros(1, 3, 2))
    batch = Draws(tree, torch.tensor([[[0.0, 4.0], [0.0, 4.0]]]), 1000, 0).batch(0, Meter())
    assert abs(float(batch.extra["rewards"].mean()) - 2) < 4 * 2 / math.sqrt(1000)  # mean 2, deviation 2


def test_rows_of_one_prompt_do_not_touch_another():
    """The second prompt's rewards change nothing about the first, to the bit."""
    ends = []
    for second in (0.0, 5.0):
        tree = TokenTree(3, 1, prompts=2, seed=1)
        rewards = torch.tensor([[1.0, 0.0, 2.0], [second, 1.0, 0.0]], dtype=D)
        for _ in online("rloo", tree, Draws(tree, rewards, 8, 0), 5, optim=adam(0.1), n=8):
            pass
        ends.append(tree.theta.detach().clone())
    assert torch.equal(ends[0][0], ends[1][0]) and not torch.equal(ends[0][1], ends[1][1])


# -- exact labs by hand ------------------------------------------------------------------------------------------------


def test_an_iteration_of_grpo_by_hand():
    """p = 1/5, epsilon 0: weights .8 / .4 = 2 and .2 / .4 = 1/2, so the odds 1/4 grow by exp(2.5 / beta)."""
    p = torch.tensor(0.2, dtype=D)
    assert [float(w) for w in grpo_dynamics.weights(p, 0.0)] == pytest.approx([2.0, 0.5])
    odds = 0.25 * math.exp(2.5 / 5)
    assert float(grpo_dynamics.h(p, p, 5.0, 0.0)) == pytest.approx(odds / (1 + odds))
    step = 1e-6
    rise = grpo_dynamics.h(p + step, p, 5.0) - grpo_dynamics.h(p - step, p, 5.0)
    assert float(grpo_dynamics.slope(p, p, 5.0)) == pytest.approx(float(rise) / (2 * step), rel=1e-6)


def test_grpo_without_scaling_is_found_out(monkeypatch):
    """Advantages that are only centred take p elsewhere, and have another factor."""
    monkeypatch.setattr(grpo_dynamics, "group_normalized", lambda r, g, **_: r - r.mean())
    assert failing("grpo_dynamics") == ["|p of the trained loss - h(p)|, the greatest"]
    centred = replace(METHODS["grpo"], credit=METHODS["dr_grpo"].credit)
    monkeypatch.setitem(METHODS, "grpo", centred)
    monkeypatch.setitem(grpo_objective.WAYS, "std", ("grpo", {}))
    assert grpo_objective.factor("std", 0.3, 2) == pytest.approx(0.5)  # 1 - 1/G, not 1


def test_a_factor_by_hand():
    """G = 2: only groups of one success count, with advantages 1 and -1: 2 p (1 - p) x 1/2 x 1 = p (1 - p), so c = 1.
    G = 4, p = 1/2: (2 x 4 sqrt(3)/4 + 6 / 2) / 16 / (1/4) = (2 sqrt 3 + 3) / 4 = 1.616."""
    assert grpo_objective.factor("std", 0.3, 2) == pytest.approx(1.0, abs=1e-12)
    assert grpo_objective.factor("std", 0.5, 4) == pytest.approx((2 * math.sqrt(3) + 3) / 4, abs=1e-12)


def test_the_frontier_by_hand():
    """Rewards 1 and 0, even odds: the optimum at beta 1 has p = e / (1 + e), no policy of its KL has more."""
    even, rewards = torch.tensor([0.5, 0.5], dtype=D), torch.tensor([1.0, 0.0], dtype=D)
    p = math.e / (1 + math.e)
    divergence, value = kl_rlhf_optimum.optimum(even, rewards, 1.0)
    assert value == pytest.approx(p) and divergence == pytest.approx(
        math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    )
    assert kl_rlhf_optimum.best_at(even, rewards, divergence) == pytest.approx(p)


def test_shares_of_what_can_be_gained():
    """0 at the reference, 1 at ref exp(r / beta) / Z."""
    ref = torch.tensor([[0.2, 0.3, 0.5]], dtype=D).log()
    rewards = torch.tensor([[1.0, 0.0, 0.5]], dtype=D)
    best = (ref + rewards / offpolicy.BETA).log_softmax(-1)
    assert float(offpolicy.share_gained(ref, ref, rewards)) == pytest.approx(0)
    assert float(offpolicy.share_gained(best, ref, rewards)) == pytest.approx(1)


def test_enumerated_pairs_have_their_chances():
    tree = TokenTree(reference_reset.ANSWERS, 1, prompts=reference_reset.PROMPTS, seed=2)
    batch = reference_reset.Pairs(tree, torch.zeros(reference_reset.PROMPTS, reference_reset.ANSWERS)).batch(0, Meter())
    chances = tree.theta.detach()[:, 0].softmax(-1)
    for row in (0, 7, 100):  # rows 2 g and 2 g + 1 are a group
        a, b = batch.input_ids[2 * row, 1], batch.input_ids[2 * row + 1, 1]
        prompt = int(batch.input_ids[2 * row, 0])
        assert float(batch.weight[2 * row]) == pytest.approx(float(chances[prompt, a] * chances[prompt, b]))
    assert float(batch.weight.sum()) == pytest.approx(2 * reference_reset.PROMPTS)


@pytest.mark.slow
def test_a_reference_that_does_not_move_is_found_out(monkeypatch):
    still = {"ref": lambda step, steps, *, reset_every=0: 0.0}
    monkeypatch.setitem(METHODS, "prorl", replace(METHODS["prorl"], anchors=still))
    assert len(failing("reference_reset")) == 3


@pytest.mark.slow
def test_swapped_costs_are_found_out(monkeypatch):
    monkeypatch.setattr(safe_rlhf, "COSTS", -safe_rlhf.COSTS)
    assert "|mean reward - 2/3|, second half" in failing("safe_rlhf")


# -- lengths, judges, ways to cheat ------------------------------------------------------------------------------------


def test_lengths_of_a_chain():
    """Every filler token has the chance s = sigmoid(1): k of them s^k (1 - s), the rest at the end."""
    chances = online_length_bias.Chain().lengths()[0, 0]
    s = 1 / (1 + math.exp(-1))
    assert chances[:3].tolist() == pytest.approx([1 - s, s * (1 - s), s * s * (1 - s)])
    assert float(chances[-1]) == pytest.approx(s**online_length_bias.LONGEST) and float(chances.sum()) == pytest.approx(
        1
    )


def test_a_chain_says_what_it_draws():
    """The log-prob of a row is that of its start (1/2), its filler and its stop."""
    chain = online_length_bias.Chain()
    batch = online_length_bias.Starts(chain, 3).batch(0, Meter())
    logprobs = chain(batch.input_ids).log_softmax(-1)[:, :-1].gather(2, batch.input_ids[:, 1:, None])[..., 0]
    said = torch.where(batch.mask[:, 1:], logprobs, 0.0).sum(-1)
    filler = (batch.input_ids[:, 1:] == online_length_bias.FILLER).sum(-1)
    start = batch.input_ids[:, 1] - online_length_bias.RIGHT
    wanted = chain.lengths()[batch.input_ids[:, 0], start, filler].log() - math.log(2)
    torch.testing.assert_close(said.detach(), wanted, atol=1e-9, rtol=0)
    assert torch.equal(batch.extra["rewards"], (start == 0).double())


def test_a_constant_in_place_of_the_average_is_found_out(monkeypatch):
    monkeypatch.setitem(METHODS, "grpo", replace(METHODS["grpo"], per="constant"))
    assert exact_run(METHODS["grpo"]).per == "constant"
    found = LABS["L47"].run(0, True)
    assert not any(c.passed for c in found.criteria)


def test_every_way_to_cheat_is_flagged_as_what_it_is():
    """Each text raises its own flag, the honest one none; only the flag of a misplaced answer needs the right one."""
    puzzle = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
    row = {**puzzle.fields, "prompt": puzzle.prompt}
    for kind in format_hacking.KINDS:
        (score,) = LogicReward()([format_hacking.written(kind, puzzle, True)], [row])
        raised = {name.removeprefix("hack/") for name, found in score.flags.items() if found}
        assert (not raised) if kind == "honest" else (kind in raised), (kind, raised)


def test_the_three_rules_by_hand():
    puzzle = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
    text = {kind: format_hacking.written(kind, puzzle, False) for kind in format_hacking.KINDS}
    assert format_hacking.lax(text["repeat_guess"], puzzle) == 3 and format_hacking.lax(text["honest"], puzzle) == -0.5
    assert format_hacking.published(text["repeat_guess"], puzzle) == -3
    argued = format_hacking.written("reason_in_answer", puzzle, True)
    assert (format_hacking.published(argued, puzzle), format_hacking.strict(argued, puzzle)) == (3, -3)


def test_a_strict_rule_that_forgives_is_found_out(monkeypatch):
    monkeypatch.setitem(format_hacking.RULES, "strict", format_hacking.lax)
    assert "share of cheating completions at the end, strict" in failing("format_hacking")


def test_labels_by_bradley_terry():
    """Response 0 beats each other with chance .9, and pairs are even: 2/5 of all pairs hold it."""
    chance = torch.full((1, 5, 5), 0.5, dtype=D)
    chance[0, 0, 1:], chance[0, 1:, 0] = 0.9, 0.1
    counts = rm.judged(chance, 20_000, 0)[0]
    held = counts[0].sum() + counts[:, 0].sum()
    assert float(held) / 20_000 == pytest.approx(0.4, abs=0.02)
    assert float(counts[0].sum() / held) == pytest.approx(0.9, abs=0.02) and float(counts.diagonal().sum()) == 0


def test_a_reward_model_that_learns_the_wrong_order_is_found_out(monkeypatch):
    right = METHODS["bt_reward_model"]

    def swapped(chosen_scores, rejected_scores, margin, *, center_coef=0.0):
        return right.loss(rejected_scores, chosen_scores, margin, center_coef=center_coef)

    monkeypatch.setitem(
        METHODS, "bt_reward_model", replace(right, loss=swapped, idle={}, ranges={}, choices={}, trial={})
    )
    assert "|log-odds - true log-odds| at 20 000 pairs, mean" in failing("rm")


def test_the_greedy_response_is_the_likeliest_token_each_time():
    """Token by token, not the likeliest response: .4 stops at once; after 1, likeliest with .6, 2 has .4 of 1."""
    tree = TokenTree(3, 2, torch.full((1, 16, 3), 0.0))
    tree.theta.data[0, 0] = torch.tensor([0.4, 0.6, 1e-9]).log()
    tree.theta.data[0, 2] = torch.tensor([0.3, 0.3, 0.4]).log()  # after token 1; 0.6 x 0.4 < 0.4
    numbers = torch.arange(len(tree.responses())).double()[None]
    batch = online_compare.WithGreedy(tree, numbers, 4, 0).batch(0, Meter())
    assert batch.extra["greedy_rewards"].tolist() == [float(tree.responses().index((1, 2)))] * 4


def test_a_critic_is_held_too():
    """theta: 32 trees x 125 prefixes x 4; the critic 32 x 125 more: 5/4."""
    assert online_compare.held("rloo") == 3 * 32 * 125 * 4
    assert online_compare.held("ppo_lm") / online_compare.held("rloo") == 1.25


@pytest.mark.slow
def test_a_policy_gradient_with_the_wrong_sign_is_found_out(monkeypatch):
    right = METHODS["rloo"].credit

    def flipped(rewards, group):
        return -right(rewards, group)

    monkeypatch.setitem(METHODS, "rloo", replace(METHODS["rloo"], credit=flipped))
    monkeypatch.setattr(online_compare, "NAMES", ("rloo", "grpo"))
    assert "rise of the least (rloo)" in failing("online_compare")


def test_which_groups_teach():
    """Two groups of two: one agrees."""
    batch = dapo.Quiz(torch.tensor([0.5, 0.5], dtype=D))
    assert len(batch) == 2
    feed = Draws(TokenTree(2, 1, prompts=2, seed=0), torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=D), 64, 0)
    assert dapo.spread(feed.batch(0, Meter())) == (1, 2)


def test_without_refills_batches_are_not_full():
    """Half of the problems are solved or hopeless, so that about half of what is drawn teaches nothing."""
    found = dapo.fed("filter_groups", 3, 0)
    assert max(found["full"]) < 1 and max(found["agree"]) == 0
    assert max(dapo.fed("as drawn", 3, 0)["agree"]) > 0.2


def test_the_divergence_of_even_odds():
    """Used by several of the labs: KL of (3/4, 1/4) to even odds is log 2 - H(1/4)."""
    found = float(kl(torch.tensor([0.75, 0.25], dtype=D), torch.tensor([0.5, 0.5], dtype=D)))
    assert found == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
