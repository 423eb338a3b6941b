"""`fiducial prove`: a method's own loss, and the trainer itself, on problems whose answer is known.

The battery holds for every method, a user's own file included: its gradient is that of its value, and does not depend
on how a step is cut (micro-batches, row order, padding, what is not masked, equal rows merged by weight). A record that
names a `target` is also held to that closed form. Expectations are enumerated with their probabilities as weights;
nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.config import Optim, Run, Sampling
from fiducial.core.method import KL, Method
from fiducial.core.tokens import collate
from fiducial.core.total import count
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.optima import bradley_terry, expected_reward_gradient, grpo_factor, ipo_optimum, rlhf_optimum
from fiducial.exact.tables import ScoreTree, SoftmaxTable, TokenTree
from fiducial.train.learner import Learner
from fiducial.train.loop import Parts, State, make_optimizer, objective, prepare, steps
from fiducial.train.measure import Meter

CUT_BOUND = 1e-10  # float64: how a batch is cut
FIT_BOUND = 1e-6  # a trained table against its closed form, max-norm
BIAS_BOUND = 1e-10  # an enumerated estimator against the exact gradient


@dataclass(frozen=True)
class Check:
    """One statement: the error that was measured beside the bound it must keep."""

    method: str
    check: str
    error: float
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "passed": self.passed}


def prove(method: Method) -> list[Check]:
    """Every check that applies to a method. ValueError if its record names a target that does not exist."""
    if method.target is not None and method.target not in TARGETS:
        raise ValueError(f"{method.name} claims the target {method.target!r}; known are {', '.join(TARGETS)}")
    checks = list(battery(method))
    if method.target is not None:
        checks += TARGETS[method.target](method)
    return checks


# -- the trainer on enumerable problems --------------------------------------------------------------------------------


class FixedFeed:
    """The same enumerated batch at every step."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def batch(self, step: int, meter: Meter) -> Tokens:
        return replace(self.tokens, extra=dict(self.tokens.extra))


def exact_run(method: Method, kl: KL | None = None, n: int = 2, **changes: Any) -> Run:
    """A resolved run. KL is off unless asked for; hyperparameters are the method's own."""
    given = changes.pop("hparams", {})
    settings = {"hparams": method.settings(given), "per": method.per, "constant": 4.0, **changes}
    return Run(method=method.name, kl=kl or KL(), sampling=Sampling(n=n), **settings)


def make_parts(method: Method, model: nn.Module, feed: Any, ref: nn.Module | None) -> Parts:
    """The learner and its frozen reference, as the trainer takes them."""

    def frozen(batch: Tokens, want_logits: bool) -> dict[str, Tensor]:
        with torch.no_grad():
            return Learner(ref, "policy")(batch, want_logits)

    return Parts(Learner(model, method.learns), feed, frozen if ref is not None else None)


UNTIL_STILL = Optim(lr=0.1, schedule="cosine", clip=0.0, rows_per_pass=100_000, betas=(0.9, 0.99))


def solve(
    run: Run, method: Method, model: nn.Module, feed: Any, ref: nn.Module | None = None, optim: Optim = UNTIL_STILL
) -> None:
    """Run the real trainer on an exact expectation until it stands still."""
    run = replace(run, optim=optim)
    parts = make_parts(method, model, feed, ref)
    for _ in steps(run, method, parts, State(make_optimizer(run, parts.learner))):
        pass


def ready(run: Run, method: Method, model: nn.Module, tokens: Tokens, ref: nn.Module | None) -> tuple[Parts, Tokens]:
    """A batch as the trainer prepares it: reference, old log-probs and advantages filled in."""
    parts = make_parts(method, model, FixedFeed(tokens), ref)
    batch = parts.feed.batch(0, Meter())
    state = State(torch.optim.SGD(parts.learner.parameters(), lr=0.0))
    prepare(run, method, parts, state, batch, Meter())
    return parts, batch


def value_and_gradient(run: Run, method: Method, parts: Parts, batch: Tokens, size: int) -> tuple[float, Tensor]:
    """The scalar that one step minimises and its gradient, flat, accumulated over passes of `size` examples."""
    counts, value = count(batch), 0.0
    parts.learner.zero_grad()
    whole = size >= batch.num_units  # then as it is: `select` would cut padding off
    for units in torch.arange(batch.num_units).split(size):
        loss, _, _ = objective(run, method, parts, batch if whole else batch.select(units), counts)
        if not loss.requires_grad:
            raise ValueError(f"{method.name}'s loss has no gradient: it must depend on the policy's tensors")
        loss.backward()
        value += float(loss.detach())
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parts.learner.parameters()]
    return value, torch.cat([g.flatten() for g in gradients])


# -- the battery -------------------------------------------------------------------------------------------------------


def random_batch(method: Method, seed: int = 0, units: int = 6) -> Tokens:
    """Ragged rows on a tree of 4 tokens and depth 3, with holes in the mask and uneven weights, all float64."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    rows = []
    for i in range(units * (2 if method.feed == "pairs" else 1)):
        length = 2 + i % 3
        tokens = [0, *torch.randint(0, 4, (length - 1,), generator=draw).tolist()]
        mask = [False, *(True if t == 1 or length < 4 else bool(t % 2) for t in range(1, length))]
        rows.append(Encoded(tokens, mask))
    pairs = method.feed == "pairs"
    batch = collate(rows, group=[i // 2 for i in range(len(rows))], pairs=pairs, dtype=torch.float64)
    weight = 0.5 + uniform(units)
    batch.weight = torch.cat([weight, weight]) if pairs else weight
    if method.feed == "groups":  # a group that agrees would hide mistakes
        batch.extra["rewards"] = uniform(len(rows))
        batch.weight = torch.ones_like(weight)
    for name in ("old_logprobs", "sampler_logprobs"):
        batch.extra[name] = -1.3 + 0.3 * uniform(*batch.mask.shape)
    batch.extra["margin"] = 0.1 * uniform(len(rows))
    batch.extra["desirable"] = torch.arange(len(rows)) % 2 == 0
    return batch


def toy(method: Method, seed: int) -> nn.Module:
    """A random tree of the kind that the method trains."""
    kind = ScoreTree if method.learns == "reward_model" else TokenTree
    return kind(vocab=4, depth=3, seed=seed)


def battery(method: Method) -> Iterator[Check]:
    """What must hold of any method."""
    model, ref = toy(method, 1), toy(method, 2)
    kl = KL(0.1, "k3", "loss") if method.learns == "policy" else KL()
    run = exact_run(method, kl)
    parts, batch = ready(run, method, model, random_batch(method), ref)
    everything = batch.num_units
    value, gradient = value_and_gradient(run, method, parts, batch, everything)

    def same(name: str, other: Tokens, size: int = everything) -> Check:
        other_value, other_gradient = value_and_gradient(run, method, parts, other, size)
        gaps = torch.cat([(gradient - other_gradient).abs(), torch.tensor([value - other_value]).abs()])
        error = float(gaps.max())  # NaN where anything is NaN
        return Check(method.name, name, error, CUT_BOUND)

    yield Check(method.name, "gradient is that of the value", *_differences(run, method, parts, batch, gradient))
    yield same("micro-batches of 1 add up", batch, 1)
    yield same("micro-batches of 4 add up", batch, 4)
    yield same("row order does not matter", batch.select(torch.arange(everything).flip(0)))
    yield same("padding does not matter", padded(batch))
    yield same("what is not masked does not matter", poisoned(batch))
    if method.feed != "groups":
        yield same("a row of weight 2 is two rows", doubled(batch), everything)
    yield Check(method.name, "finite for log-probs to -1e4 in float32", _overflow(method, run), 0.0)
    if method.feed == "pairs":
        yield Check(method.name, "from a tie the chosen side rises", _falls(method, run), 0.0)
    if method.per != "row" and "logprobs" in method.needs:
        name = "a rewarded token rises, a punished one falls" if method.feed == "groups" else "an imitated token rises"
        yield Check(method.name, name, _wrong_way(method, run), 0.0)


def _differences(run: Run, method: Method, parts: Parts, batch: Tokens, gradient: Tensor) -> tuple[float, float]:
    """Largest gap between the gradient and central differences of the value, and the bound: h^2 truncation, float64."""
    (parameter,) = parts.learner.parameters()
    flat, h, worst = parameter.data.view(-1), 1e-5, 0.0
    if not bool(gradient.isfinite().all()):
        return float("nan"), 1e-7
    slopes = (gradient != 0) | (torch.arange(len(gradient)) % 7 == 0)  # and some that claim to be flat
    for i in slopes.nonzero()[:, 0].tolist():
        sides = []
        for shift in (h, -2 * h):
            flat[i] += shift
            sides.append(value_and_gradient(run, method, parts, batch, batch.num_units)[0])
        flat[i] += h
        worst = max(worst, abs((sides[0] - sides[1]) / (2 * h) - float(gradient[i])))
    return worst, 1e-7


def padded(batch: Tokens) -> Tokens:
    """Two more columns, of tokens that mean nothing."""
    pad = torch.nn.functional.pad
    shape = batch.input_ids.shape
    extra = {name: pad(x, (0, 2)) if x.shape == shape else x for name, x in batch.extra.items()}
    return replace(batch, input_ids=pad(batch.input_ids, (0, 2), value=3), mask=pad(batch.mask, (0, 2)), extra=extra)


def poisoned(batch: Tokens) -> Tokens:
    """NaN at every position that does not train, in everything that is per token."""
    extra = {}
    for name, x in batch.extra.items():
        per_token = x.shape == batch.mask.shape and x.is_floating_point()
        extra[name] = torch.where(batch.mask, x, torch.nan) if per_token else x
    return replace(batch, extra=extra)


def doubled(batch: Tokens) -> Tokens:
    """Every example twice at half its weight."""
    units = torch.arange(batch.num_units).repeat(2)
    twice = batch.select(units)
    twice.weight = twice.weight / 2
    return twice


def _overflow(method: Method, run: Run) -> float:
    """How many values or slopes of the loss are not finite for extreme log-probs (scores) in float32."""
    levels = torch.tensor([-1e4, -30.0, -1.0, -1e-3, 0.0])
    grid = torch.cartesian_prod(*[levels] * 2)
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(method.needs):
        x = grid[:, i % 2].clone()
        x = x if method.per == "row" else x[:, None]
        special = {"mask": torch.ones_like(x).bool(), "desirable": torch.arange(len(x)) % 2 == 0}
        lengths = {n: torch.full((len(x),), 7) for n in ("chosen_lengths", "rejected_lengths")}
        x = {**special, **lengths}.get(name, x)
        tensors[name] = x.requires_grad_() if x.is_floating_point() and not name.startswith("ref_") else x
    loss = method.call_loss(tensors, run.hparams)
    loss.sum().backward()
    slopes = [x.grad for x in tensors.values() if x.grad is not None]
    return float(sum((~torch.isfinite(x)).sum() for x in (loss, *slopes)))


def _falls(method: Method, run: Run) -> float:
    """By how much the loss would, from equal log-probs (scores), push the chosen side down against the rejected."""
    tensors = {}
    for name in method.needs:
        x = torch.full((1,), 5.0 if name.endswith("lengths") else 0.0 if "margin" in name else -3.0).double()
        tensors[name] = x if name.startswith("ref_") else x.requires_grad_()
    method.call_loss(tensors, run.hparams).sum().backward()
    up = sum(-x.grad for name, x in tensors.items() if name.startswith("chosen_") and x.grad is not None)
    down = sum(x.grad for name, x in tensors.items() if name.startswith("rejected_") and x.grad is not None)
    push = float(up + down)
    return push if math.isnan(push) else max(0.0, -push) if push != 0 else 1.0


def _wrong_way(method: Method, run: Run) -> float:
    """How much a per-token loss pushes a token the wrong way, on policy, for advantages of 1 and -1."""
    wrong = 0.0
    for sign in (1.0, -1.0) if method.feed == "groups" else (1.0,):
        tensors = {name: torch.full((1, 1), -1.5).double() for name in method.needs}
        tensors |= {"mask": torch.ones(1, 1).bool(), "advantages": torch.full((1, 1), sign).double()}
        tensors["logprobs"] = torch.full((1, 1), -1.5, dtype=torch.float64, requires_grad=True)
        if "logits" in tensors or "ref_logits" in tensors:
            return 0.0  # a whole distribution has no such direction
        method.call_loss(tensors, run.hparams).sum().backward()
        slope = tensors["logprobs"].grad
        push = 0.0 if slope is None else -sign * float(slope)
        wrong = max(wrong, push if math.isnan(push) else 1.0 if push == 0 else -push)
    return wrong


# -- closed forms ------------------------------------------------------------------------------------------------------


def empirical_frequency(method: Method) -> list[Check]:
    """Imitation: the table that fits weighted demonstrations is their frequency, and its loss is their entropy."""
    frequency = torch.tensor([[4.0, 2, 1, 1], [1, 1, 1, 5]]).double()
    rows = [Encoded([s, a], [False, True]) for s in range(2) for a in range(4)]
    tokens = collate(rows)
    tokens.weight = frequency.flatten()
    model = SoftmaxTable(torch.zeros(2, 4))
    solve(exact_run(method, steps=1500), method, model, FixedFeed(tokens))
    goal = frequency / frequency.sum(-1, keepdim=True)
    error = float((model.probabilities() - goal).abs().max())
    return [Check(method.name, "trained table = empirical frequency", error, FIT_BOUND)]


REWARDS = torch.tensor([[1.0, 0.3, -0.2, 0.0, -1.0], [0.0, 2.0, 0.5, -0.5, 0.1], [0.2, 0.1, 0.0, -0.1, -0.2]]).double()


def preference_pairs(preference: Tensor, law: Tensor) -> Tokens:
    """Every ordered pair (i, j) of each prompt with weight law_i law_j P(i beats j): an exact expectation.

    preference [S, A, A], law [S, A].
    """
    chosen, rejected, weight = [], [], []
    prompts, answers = law.shape
    for s, i, j in product(range(prompts), range(answers), range(answers)):
        if i != j:
            chosen.append(Encoded([s, i], [False, True]))
            rejected.append(Encoded([s, j], [False, True]))
            weight.append(float(law[s, i] * law[s, j] * preference[s, i, j]))
    tokens = collate(chosen + rejected, pairs=True)
    tokens.weight = torch.tensor(weight * 2, dtype=torch.float64)
    tokens.extra["margin"] = torch.zeros(len(weight) * 2, dtype=torch.float64)
    return tokens


def _random_table(seed: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bt_rewards(method: Method) -> list[Check]:
    """Exact Bradley-Terry pairs: the fitted scores are the true rewards up to a constant per prompt."""
    law = _random_table(3).softmax(-1)
    model = ScoreTree(vocab=5, depth=1, prompts=3)
    solve(exact_run(method, steps=2500), method, model, FixedFeed(preference_pairs(bradley_terry(REWARDS), law)))
    fitted = model.table()
    centred = (fitted - fitted.mean(-1, keepdim=True)) - (REWARDS - REWARDS.mean(-1, keepdim=True))
    return [Check(method.name, "fitted scores = rewards + constant", float(centred.abs().max()), FIT_BOUND)]


def rlhf(method: Method) -> list[Check]:
    """Exact Bradley-Terry pairs under any full-support law: the trained table is ref exp(r / beta) / Z."""
    return _preference_fit(
        method,
        "trained table = ref exp(r/beta)/Z",
        bradley_terry(REWARDS),
        lambda ref, law, beta: rlhf_optimum(ref, REWARDS, beta),
    )


def ipo(method: Method) -> list[Check]:
    """Any preferences, intransitive ones too: the trained table is ref exp(P(y beats law) / beta) / Z."""
    cycle = torch.tensor([[0.5, 0.9, 0.2, 0.6, 0.7], [0.1, 0.5, 0.7, 0.5, 0.3], [0.8, 0.3, 0.5, 0.9, 0.4]])
    cycle = torch.cat([cycle, torch.tensor([[0.4, 0.5, 0.1, 0.5, 0.8], [0.3, 0.7, 0.6, 0.2, 0.5]])]).double()
    preference = cycle.expand(3, 5, 5)
    return _preference_fit(
        method,
        "trained table = ref exp(P law/beta)/Z",
        preference,
        lambda ref, law, beta: torch.stack([ipo_optimum(ref[s], cycle, law[s], beta) for s in range(3)]),
    )


def _preference_fit(
    method: Method, name: str, preference: Tensor, optimum: Callable[[Tensor, Tensor, float], Tensor]
) -> list[Check]:
    checks = []
    law, start = _random_table(3).softmax(-1), _random_table(4)
    for beta in (0.5, 1.0):
        model, ref = SoftmaxTable(start), SoftmaxTable(start)
        run = exact_run(method, steps=2500, hparams={"beta": beta})
        solve(run, method, model, FixedFeed(preference_pairs(preference, law)), ref)
        error = float((model.probabilities() - optimum(ref.probabilities(), law, beta)).abs().max())
        checks.append(Check(method.name, f"{name}, beta = {beta:g}", error, FIT_BOUND))
    return checks


# -- policy gradients --------------------------------------------------------------------------------------------------


def rollout_tokens(tree: TokenTree, members: tuple[int, ...], rewards: Tensor) -> Tokens:
    """One group: the responses numbered `members`, with their rewards [Y]."""
    responses = tree.responses()
    rows = [Encoded([0, *responses[y]], [False] + [True] * len(responses[y])) for y in members]
    tokens = collate(rows, group=[0] * len(rows), dtype=torch.float64)
    tokens.extra["rewards"] = rewards[list(members)]
    return tokens


def expected_gradient(
    run: Run, method: Method, tree: TokenTree, rewards: Tensor, ref: TokenTree | None, rows: int | None = None
) -> Tensor:
    """The trainer's gradient averaged over every ordered group of `sampling.n` responses, by their exact chances."""
    chances = tree.response_logprobs().detach().exp()
    expected = torch.zeros_like(tree.theta).flatten()
    for members in product(range(len(chances)), repeat=run.sampling.n):
        parts, batch = ready(run, method, tree, rollout_tokens(tree, members, rewards), ref)
        _, gradient = value_and_gradient(run, method, parts, batch, rows or len(members))
        expected += chances[list(members)].prod() * gradient
    return expected


def objective_gradient(
    tree: TokenTree, rewards: Tensor, kl_weight: float = 0.0, ref: TokenTree | None = None
) -> Tensor:
    """Exact gradient of E[R - kl_weight log(pi / ref)], flat."""

    def expectation() -> Tensor:
        logprobs = tree.response_logprobs()
        gain = rewards
        if ref is not None:
            gain = rewards - kl_weight * (logprobs - ref.response_logprobs().detach())
        return (logprobs.exp() * gain).sum()

    return expected_reward_gradient(tree.theta, expectation).flatten()


TREE_REWARDS = torch.tensor([1.0, 0.2, -0.5, 0.7, 0.0, 2.0, -1.0]).double()  # the 7 responses of 3 tokens, depth 2


def policy_gradient(method: Method) -> list[Check]:
    """Unbiased: averaged over all groups the gradient is that of the expected reward, with a KL in it too."""
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=6)
    goal = -objective_gradient(tree, TREE_REWARDS)
    checks = []
    for n in (2, 3):
        found = expected_gradient(exact_run(method, n=n), method, tree, TREE_REWARDS, None)
        error = float((found - goal).abs().max())
        checks.append(Check(method.name, f"enumerated bias, {n} completions", error, BIAS_BOUND))
    kl = KL(0.3, "k1", "reward")
    found = expected_gradient(exact_run(method, kl, n=2), method, tree, TREE_REWARDS, ref)
    error = float((found + objective_gradient(tree, TREE_REWARDS, 0.3, ref)).abs().max())
    checks.append(Check(method.name, "enumerated bias with the KL in the reward", error, BIAS_BOUND))
    return [*checks, *_ascent(method)]


class TreeFeed:
    """Every group of two responses with its chance under the tree as it is now: the exact on-policy expectation."""

    def __init__(self, tree: TokenTree, rewards: Tensor):
        members = list(product(range(len(rewards)), repeat=2))
        groups = [rollout_tokens(tree, pair, rewards) for pair in members]
        self.tree, self.members = tree, torch.tensor(members)
        width = max(g.input_ids.shape[1] for g in groups)
        pad = torch.nn.functional.pad
        self.tokens = Tokens(
            input_ids=torch.cat([pad(g.input_ids, (0, width - g.input_ids.shape[1])) for g in groups]),
            mask=torch.cat([pad(g.mask, (0, width - g.mask.shape[1])) for g in groups]),
            weight=torch.ones(2 * len(groups), dtype=torch.float64),
            group=torch.arange(len(groups)).repeat_interleave(2),
            extra={name: torch.cat([g.extra[name] for g in groups]) for name in ("lengths", "rewards")},
        )

    def batch(self, step: int, meter: Meter) -> Tokens:
        chances = self.tree.response_logprobs().detach().exp()[self.members].prod(-1)
        return replace(self.tokens, weight=chances.repeat_interleave(2), extra=dict(self.tokens.extra))


def _ascent(method: Method) -> list[Check]:
    """The trainer on exact expectations ends at the optimum of reward minus KL: ref exp(R / beta) / Z."""
    beta, checks = 0.5, []
    tree, ref = TokenTree(3, 2, seed=5), TokenTree(3, 2, seed=5)
    run = exact_run(method, KL(beta, "k1", "reward"), steps=800)
    solve(run, method, tree, TreeFeed(tree, TREE_REWARDS), ref)
    goal = (ref.response_logprobs().detach() + TREE_REWARDS / beta).softmax(-1)
    error = float((tree.response_logprobs().detach().exp() - goal).abs().sum() / 2)
    checks.append(Check(method.name, "trained tree = ref exp(R/beta)/Z, total variation", error, 1e-4))
    return checks


def success_gradient(method: Method) -> list[Check]:
    """Binary rewards: averaged over all groups the gradient is c_G(p) times that of the success probability p."""
    checks = []
    epsilon = method.hparams.get("std_epsilon", 0.0)
    std = method.hparams.get("std", "population")
    for depth, per, sizes in ((1, method.per, (2, 3, 4)), (2, "sequence_sum", (2, 3))):
        tree = TokenTree(3, depth, seed=7)
        rewards = torch.tensor([float(y % 2) for y in range(len(tree.responses()))]).double()
        success = float((tree.response_logprobs().detach().exp() * rewards).sum())
        slope = objective_gradient(tree, rewards)
        for n in sizes:
            found = expected_gradient(exact_run(method, n=n, per=per), method, tree, rewards, None)
            error = float((found + grpo_factor(success, n, epsilon, std) * slope).abs().max())
            name = f"enumerated gradient = c_G(p) grad p, G = {n}, up to {depth} token{'s' * (depth > 1)}"
            checks.append(Check(method.name, name, error, BIAS_BOUND))
    return checks


TARGETS: dict[str, Callable[[Method], list[Check]]] = {
    "empirical_frequency": empirical_frequency,
    "bt_rewards": bt_rewards,
    "rlhf_optimum": rlhf,
    "ipo_optimum": ipo,
    "policy_gradient": policy_gradient,
    "success_gradient": success_gradient,
}
