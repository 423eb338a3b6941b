"""What every number in a log means: definition, unit, healthy range, and which way is better.

The report prints these beside its plots, `fiducial doctor` judges by them, and the docs list them. A name with <...> in
it stands for many: `rewards/<source>/mean` is the mean of each reward source.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """`healthy` is the range in which a run rarely has trouble, ends included; None where only the trend says anything.
    `better` is the direction that is an improvement in itself, None where neither is."""

    definition: str
    unit: str
    healthy: tuple[float, float] | None = None
    better: Literal["up", "down"] | None = None


METRICS: dict[str, Metric] = {
    # the update
    "loss": Metric(
        "The objective that is minimised, averaged as the method's record says.", "objective", better="down"
    ),
    "grad_norm": Metric("Norm of the whole gradient before clipping.", "", (0.0, 10.0)),
    "lr": Metric("Learning rate of the step.", ""),
    "epoch": Metric("Passes over the data so far.", "passes"),
    "skipped_updates": Metric(
        "Updates of the step that had nothing to learn from and were left out; not logged where there is none.",
        "updates",
        (0.0, 0.0),
    ),
    "nonfinite": Metric(
        "Numbers of the step that were NaN or infinite; they are logged as null.", "", (0.0, 0.0), "down"
    ),
    # imitation
    "perplexity": Metric("exp of the mean negative log-probability of the trained tokens.", "", better="down"),
    "mean_token_accuracy": Metric("Trained tokens that are the policy's most likely token.", "share", better="up"),
    "num_tokens": Metric("Tokens that were trained on, or sampled, in the step.", "tokens"),
    # preferences
    "accuracy": Metric("Pairs whose chosen side scores higher; a tie is one half.", "share", (0.55, 1.0), "up"),
    "accuracy/longer": Metric("The same among pairs whose chosen side is the longer one.", "share", better="up"),
    "accuracy/shorter": Metric(
        "The same among pairs whose chosen side is the shorter one; far below accuracy/longer: the model counts words.",
        "share",
        better="up",
    ),
    "margin": Metric("Score of the chosen side minus that of the rejected one.", "score", better="up"),
    "reward/mean": Metric("Mean score of the reward model over chosen and rejected completions.", "score"),
    "rewards/chosen": Metric(
        "Implicit reward beta (log pi - log pi_ref) of chosen completions; below 0 they have become less likely.",
        "beta x nats",
        (0.0, math.inf),
        "up",
    ),
    "rewards/rejected": Metric("Implicit reward of rejected completions.", "beta x nats", better="down"),
    "rewards/margins": Metric("rewards/chosen minus rewards/rejected.", "beta x nats", better="up"),
    "rewards/accuracies": Metric(
        "Pairs whose implicit reward is higher for the chosen side; a tie is one half.", "share", (0.55, 1.0), "up"
    ),
    "rewards/real": Metric("Implicit reward of the demonstrations.", "beta x nats", better="up"),
    "rewards/generated": Metric("Implicit reward of the policy's own completions.", "beta x nats", better="down"),
    "rewards/desirable": Metric("Implicit reward of wanted completions.", "beta x nats", better="up"),
    "rewards/undesirable": Metric("Implicit reward of unwanted completions.", "beta x nats", better="down"),
    "ranking_accuracy": Metric(
        "Pairs whose chosen completion is the likelier one under the policy alone; a tie is one half.",
        "share",
        better="up",
    ),
    "ranking_accuracy_len_norm": Metric("The same by log-probability per token.", "share", better="up"),
    "ranking_ties": Metric("Pairs whose two completions are exactly as likely.", "share"),
    "flips/correct_correct": Metric("Pairs that reference and policy both rank right by likelihood.", "share"),
    "flips/correct_wrong": Metric("Pairs that the reference ranks right and the policy wrong.", "share", better="down"),
    "flips/wrong_correct": Metric("Pairs that the reference ranks wrong and the policy right.", "share", better="up"),
    "flips/wrong_wrong": Metric("Pairs that both rank wrong.", "share"),
    "logps/chosen": Metric("Log-probability of chosen completions, summed over tokens.", "nats"),
    "logps/rejected": Metric("Log-probability of rejected completions, summed over tokens.", "nats"),
    "logps/ref_chosen": Metric("logps/chosen under the reference.", "nats"),
    "logps/ref_rejected": Metric("logps/rejected under the reference.", "nats"),
    "logps/desirable": Metric("Log-probability of wanted completions, summed over tokens.", "nats"),
    "logps/undesirable": Metric("Log-probability of unwanted completions, summed over tokens.", "nats"),
    "length/chosen": Metric("Tokens per chosen completion.", "tokens"),
    "length/rejected": Metric("Tokens per rejected completion.", "tokens"),
    "count/desirable": Metric("Weight of the wanted completions of the step.", "examples"),
    "count/undesirable": Metric("Weight of the unwanted completions of the step.", "examples"),
    "nll/chosen": Metric("Negative log-probability per token of chosen completions.", "nats/token", better="down"),
    "clamp_frac": Metric("Pairs with an exponent that is cut because it would overflow.", "share", (0.0, 0.05)),
    "clip_frac": Metric("Pairs whose margin is clipped at 2 r_max.", "share"),
    "dpop/penalty": Metric("lam times what chosen completions have lost against the reference.", "nats", better="down"),
    "dpop/active_frac": Metric("Pairs whose chosen completion is less likely than under the reference.", "share"),
    "c3dpo/displacement": Metric("What the constraint holds at 0: the change of both sides together.", "nats"),
    "orpo/log_odds_ratio": Metric("Log odds of the chosen side less those of the rejected one.", "nats", better="up"),
    "accuracy_decided": Metric("accuracy among pairs that are no tie.", "share", (0.55, 1.0), "up"),
    "ties/share": Metric("Pairs that were judged equally good.", "share"),
    "ties/expected": Metric("Chance of a tie by the model, mean over pairs.", "share"),
    "order_consistency": Metric(
        "Pairs of which the model prefers the same completion in both orders.", "share", (0.7, 1.0), "up"
    ),
    "position_bias": Metric("|p(first) + p(second) - 1| of the two orders, mean over pairs.", "share", better="down"),
    "cost/mean": Metric("Mean cost of both sides.", "cost"),
    "cost/pair_accuracy": Metric("Pairs whose more harmful side costs more; a tie is one half.", "share", better="up"),
    "cost/sign_accuracy": Metric(
        "Labelled completions whose cost is above 0 just if they do harm.", "share", better="up"
    ),
    "safe_frac": Metric("Completions that cost 0 or less.", "share"),
    "selection/examples": Metric("Examples that the selection made of the step's completions.", "examples"),
    "selection/unused": Metric("Prompts that gave no example.", "share"),
    "selection/distinct": Metric("Different completions among a prompt's completions.", "share"),
    "pair/score_gap": Metric("Reward of the chosen sample less that of the rejected one.", "reward"),
    # rewards
    "reward": Metric(
        "Mean reward of the completions that have one; [verdicts] says what unparseable ones earn.",
        "reward",
        better="up",
    ),
    "reward_std": Metric("Spread of the rewards of one prompt's completions, mean over prompts.", "reward"),
    "frac_reward_zero_std": Metric(
        "Prompts whose completions all have the same reward: they teach nothing.", "share", (0.0, 0.6)
    ),
    "rewards/<source>/mean": Metric("Mean of one reward source, before weighting.", "reward", better="up"),
    "hack/skip_think": Metric(
        "Completions without a thought, or with one of fewer than five words.", "share", (0.0, 0.1), "down"
    ),
    "hack/reason_in_answer": Metric(
        "Completions whose answer argues or is long, where only the answer is wanted.", "share", (0.0, 0.1), "down"
    ),
    "hack/repeat_guess": Metric(
        "Completions with several answers, or with both roles for one person.", "share", (0.0, 0.1), "down"
    ),
    "hack/irrelevant_padding": Metric(
        "Completions with text outside of the blocks, or with a thought that stutters or is mostly signs.",
        "share",
        (0.0, 0.1),
        "down",
    ),
    "hack/wrong_organisation": Metric(
        "Completions that hold the right answer where it cannot be read.", "share", (0.0, 0.1), "down"
    ),
    "hack/revisit_think": Metric(
        "Completions that think again after the answer has begun.", "share", (0.0, 0.1), "down"
    ),
    "hack/echo_prompt": Metric(
        "Completions whose thought copies the question or is a placeholder.", "share", (0.0, 0.1), "down"
    ),
    "verdict/correct": Metric("Completions that the verifier found correct.", "share", better="up"),
    "verdict/wrong": Metric("Completions that the verifier found wrong.", "share", better="down"),
    "verdict/unparseable": Metric("Completions without a readable answer.", "share", (0.0, 0.2), "down"),
    "verdict/timeout": Metric("Completions that the verifier ran out of time on.", "share", (0.0, 0.02), "down"),
    "verdict/crashed": Metric("Completions that the verifier failed on.", "share", (0.0, 0.02), "down"),
    "verdict/skipped": Metric("Completions whose row lacks what the verifier needs.", "share", (0.0, 0.02), "down"),
    # the policy and its anchors
    "kl": Metric(
        "Divergence from the reference on sampled tokens; the recipe names the estimator.", "nats/token", (-0.01, 0.5)
    ),
    "kl/clamped": Metric("Tokens whose k3 is cut in the loss because it would overflow.", "share", (0.0, 0.01)),
    "kl/batch": Metric(
        "What the loss takes for the KL: mean log-ratio of mismatched completions, at least 0.", "nats/completion"
    ),
    "kl/k1": Metric("Mean of log policy / reference over held-out samples: unbiased, noisy.", "nats/completion"),
    "kl/k2": Metric("Half its square, token by token: at least 0, biased.", "nats/completion"),
    "kl/k3": Metric("ratio - 1 - log ratio, token by token: at least 0, unbiased.", "nats/completion"),
    "kl/exact": Metric(
        "Divergence of the whole next-token distributions along held-out samples: unbiased, the least noisy.",
        "nats/completion",
    ),
    "kl/sequence": Metric("kl summed over a completion's tokens, mean over completions.", "nats/completion"),
    "kl/weight": Metric("Weight of the KL in this step, where kl.target steers it.", ""),
    "entropy/weight": Metric("Weight of the entropy in this step, where entropy.target steers it.", ""),
    "loss/value": Metric("Loss of the critic that forecasts rewards.", "", better="down"),
    "loss/cost_value": Metric("Loss of the critic that forecasts costs.", "", better="down"),
    "loss/mix": Metric("Negative log-likelihood of the demonstrations mixed in.", "nats/token", better="down"),
    "grad_norm/value": Metric("Norm of the critic's gradient before clipping.", ""),
    "grad_norm/cost_value": Metric("Norm of the cost critic's gradient before clipping.", ""),
    "value/explained_variance": Metric(
        "1 - var(return - forecast) / var(return): 1 is a perfect critic, below 0 it is worse than a constant.",
        "",
        (0.0, 1.0),
        "up",
    ),
    "cost_value/explained_variance": Metric("The same of the cost critic.", "", (0.0, 1.0), "up"),
    "value/clipfrac": Metric("Tokens whose forecast has moved further than clip_value in the step.", "share"),
    "cost_value/clipfrac": Metric("The same of the cost critic.", "share"),
    "cost": Metric("Mean cost of the completions.", "cost", better="down"),
    "cost/violation_rate": Metric("Completions that cost more than 0.", "share", better="down"),
    "lambda": Metric("Multiplier that weighs costs against rewards.", ""),
    "stopped_early": Metric("Steps whose updates ended at optim.target_kl.", "steps"),
    "ref/resets": Metric("Whether the reference became the policy before this step.", ""),
    "staleness/mean": Metric("Versions of the weights since a sampled token was written.", "versions"),
    "staleness/begun_anew": Metric("Unfinished prompts that were too old and were begun anew.", "prompts"),
    "partial/carried": Metric("Prompts whose completions go on in later steps.", "prompts"),
    "dynamic/kept_fraction": Metric("Prompts of the first round whose completions do not agree.", "share"),
    "dynamic/frac_all_equal": Metric("Prompts of the first round whose completions agree.", "share"),
    "dynamic/refills": Metric("Rounds of further prompts.", "rounds"),
    "dynamic/full": Metric("How much of the step could be filled with groups that do not agree.", "share", (0.9, 1.0)),
    "is/ess": Metric("Effective share of the weighted tokens: 1 if all weigh the same.", "share", (0.5, 1.0), "up"),
    "is/frac_truncated": Metric("Tokens whose weight is cut or masked.", "share", (0.0, 0.2), "down"),
    "sampling/importance_ratio/mean": Metric("Mean weight, policy over sampler, before any cut.", "", (0.9, 1.1)),
    "sampling/importance_ratio/max": Metric("Largest weight before any cut.", ""),
    "sampling/importance_ratio/min": Metric("Smallest weight before any cut.", ""),
    "reward/shaped": Metric("Mean reward after the recipe's [shaping], which is what trains.", "reward"),
    "weights_distance": Metric("L2 distance of the trained weights from where the run began.", ""),
    "weights_distance/relative": Metric("The same over the norm of the weights where the run began.", ""),
    "entropy": Metric("Mean of -log-prob over sampled tokens: how undecided the policy is.", "nats/token"),
    "ratio/mean": Metric("Probability of a sampled token now over when it was sampled.", "", (0.9, 1.1)),
    "ratio/max": Metric("The largest such ratio of the step.", "", (0.0, 10.0)),
    "clip_ratio/low": Metric("Tokens of negative advantage that are clipped from below.", "share", (0.0, 0.2)),
    "clip_ratio/high": Metric("Tokens of positive advantage that are clipped from above.", "share", (0.0, 0.2)),
    "policy/approxkl": Metric(
        "Divergence of the new from the old policy within the step (k3).", "nats/token", (0.0, 0.05)
    ),
    "sampling/logp_difference/mean": Metric(
        "Distance of the sampler's from the trainer's log-prob of a token, at the same weights.",
        "nats",
        (0.0, 0.02),
        "down",
    ),
    "sampling/logp_difference/max": Metric("The largest such distance of the step.", "nats", (0.0, 1.0), "down"),
    "sampling/dropped_tokens": Metric(
        "Tokens left out of training because the sampler's log-prob is not finite.", "tokens", (0.0, 0.0), "down"
    ),
    # completions
    "completions/mean_length": Metric("Tokens per completion.", "tokens"),
    "completions/min_length": Metric("Tokens of the shortest completion.", "tokens"),
    "completions/max_length": Metric("Tokens of the longest completion.", "tokens"),
    "completions/clipped_ratio": Metric("Completions cut at sampling.max_new_tokens.", "share", (0.0, 0.1), "down"),
    "completions/mean_terminated_length": Metric("Tokens per completion that ended by itself.", "tokens"),
    # two models or two completions compared: `fiducial eval --against`, `fiducial data`
    "win_rate": Metric(
        "Comparisons that the first model wins, a tie being half, mean over prompts.", "share", better="up"
    ),
    "win_rate_bootstrap": Metric("The same number; its interval is the bootstrap's.", "share", better="up"),
    "against/mean_length": Metric("Tokens per completion of the second model.", "tokens"),
    "unjudged": Metric("Comparisons, or completions, without a verdict.", "share", (0.0, 0.02), "down"),
    "rubric/clipped": Metric("Ratings of a rubric beyond their range, clipped.", "share", (0.0, 0.05), "down"),
    "rubric/missing": Metric("Criteria of a rubric without a rating.", "share", (0.0, 0.05), "down"),
    "spec/compliance": Metric(
        "How well outputs keep to the specification, as its judge sees it.", "score", better="up"
    ),
    "spec/overrefusal": Metric(
        "Outputs that refuse, by their first words, where the row's should_refuse is false.", "share", better="down"
    ),
    "spec/citation_rate": Metric("Completions with thoughts whose thoughts speak of the specification.", "share"),
    "spec/kept": Metric("Completions drawn with the specification that became rows.", "share", better="up"),
    "judge/parse_rate": Metric("A judge's answers that hold a verdict.", "share", (0.9, 1.0), "up"),
    "judge/agreement": Metric(
        "Two of a judge's answers to one question (votes; of a comparison also the two orders) that say the same.",
        "share",
        better="up",
    ),
    "judge/clipped": Metric("Ratings beyond their scale, which count as its end.", "share", (0.0, 0.05), "down"),
    "judge/first_wins": Metric("Comparisons, in either order, that what was shown first wins; fair is 1/2.", "share"),
    "judge/position_bias": Metric(
        "|p(first) + p(second) - 1| of a judge's two orders, mean over comparisons.", "share", (0.0, 0.5), "down"
    ),
    "judge/parse_fail_frac": Metric("Answers of a judge that hold no verdict.", "share", (0.0, 0.1), "down"),
    "judge/agreement_with_human": Metric(
        "Pairs on which the judge takes the side that people took; a tie is one half.", "share", (0.55, 1.0), "up"
    ),
    "judge/option_mass": Metric(
        "Probability that the judge gives its two options together; little: it does not answer the question.",
        "share",
        (0.01, 1.0),
        "up",
    ),
    "tree/leaves": Metric("Whole responses of all trees.", "responses"),
    "tree/tokens": Metric("Tokens that were sampled for the trees.", "tokens"),
    "tree/chain_tokens": Metric("Tokens that as many separate responses would have taken.", "tokens"),
    "tree/duplicates": Metric("Responses that another of their tree equals.", "responses", better="down"),
    "tree/ended_early": Metric("Responses that ended before the deepest level.", "share"),
    "tree/cut": Metric("Responses cut at their limit of tokens.", "share", (0.0, 0.1), "down"),
    "tree/pairs_level_<level>": Metric("Pairs whose responses part at this level.", "pairs"),
    "kappa": Metric("Agreement of raters beyond chance (Fleiss 1971); 1 is all, 0 none.", "", better="up"),
    "majority/<rater>": Metric("Pairs on which this rater is with the majority.", "share"),
    # speed
    "seconds": Metric("Wall time of the step.", "s", better="down"),
    "seconds/sample": Metric("Time to sample the step's completions.", "s", better="down"),
    "seconds/reward": Metric("Time to verify the step's completions.", "s", better="down"),
    "seconds/score": Metric("Time for reference and old log-probabilities.", "s", better="down"),
    "seconds/eval": Metric("Time of an evaluation.", "s", better="down"),
    "seconds/train": Metric("Time in forward, backward and optimizer.", "s", better="down"),
    "tokens_per_second": Metric("num_tokens over the step's wall time.", "tokens/s", better="up"),
    # on problems or rows that are not trained on; other eval/ names mean what they mean in training
    "eval/pass@1": Metric("Chance that one sample is correct.", "share", better="up"),
    "eval/pass@<k>": Metric(
        "Chance that at least one of k samples is correct (unbiased: Chen et al. 2021).", "share", better="up"
    ),
    "eval/maj@<k>": Metric("Chance that the most frequent answer of k samples is correct.", "share", better="up"),
    "eval/greedy": Metric("Problems solved at temperature 0.", "share", better="up"),
    "eval/unjudged": Metric(
        "Completions that the verifier failed on: timeout, crashed, skipped.", "share", (0.0, 0.02), "down"
    ),
    "eval/gold": Metric("Mean of a reward that nothing trained on, over held-out samples.", "reward", better="up"),
    "eval/gold/unjudged": Metric("Samples that the gold reward failed on.", "share", (0.0, 0.02), "down"),
    "eval/distinct_<n>": Metric("Different n-grams over all n-grams of a problem's samples.", "share"),
    "eval/self_bleu": Metric("BLEU of a sample against the others of its problem; 1: all the same.", "", (0.0, 0.98)),
    "eval/distinct_answers": Metric("Different answers among a problem's samples.", "answers"),
    "eval/answer_entropy": Metric("Entropy of the answers of a problem's samples.", "nats"),
    "eval/<metric>/low": Metric("Lower end of the 95 % interval, over problems.", "as the metric"),
    "eval/<metric>/high": Metric("Upper end of the 95 % interval, over problems.", "as the metric"),
}


def describe(name: str) -> Metric | None:
    """What a logged name means: its own entry, else the first pattern that fits, else that of the name without eval/ or
    gold/ (what the gold reward tells of itself).

    >>> [describe(name).unit for name in ("eval/pass@8", "rewards/math/mean", "eval/entropy")], describe("step")
    (['share', 'reward', 'nats/token'], None)
    """
    if name in METRICS:
        return METRICS[name]
    for pattern, metric in METRICS.items():
        if "<" in pattern and _fits(pattern, name):
            return metric
    prefix, slash, rest = name.partition("/")
    return describe(rest) if slash and prefix in ("eval", "gold") else None


def _fits(pattern: str, name: str) -> bool:
    parts = re.split(r"<\w+>", pattern)
    return re.fullmatch(".+".join(map(re.escape, parts)), name) is not None


def is_healthy(name: str, value: float) -> bool:
    """Whether a value lies in its metric's healthy range; True where there is none."""
    metric = describe(name)
    if metric is None or metric.healthy is None:
        return True
    low, high = metric.healthy
    return low <= value <= high
