"""Problems that can be enumerated, and the trainer on them."""

from __future__ import annotations

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
from fiducial.exact.tables import ScoreTree, TokenTree, ValueTree
from fiducial.train.anchors import Anchor
from fiducial.train.learner import Learner
from fiducial.train.loop import critic_objective, objective, steps
from fiducial.train.measure import Meter
from fiducial.train.parts import Parts, State
from fiducial.train.prepare import prepare

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


class FixedFeed:
    """The same enumerated batch at every step."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def batch(self, step: int, meter: Meter) -> Tokens:
        return replace(self.tokens, extra=dict(self.tokens.extra))


def exact_run(method: Method, kl: KL | None = None, n: int = 2, **changes: Any) -> Run:
    """A resolved run. KL is off unless asked for; hyperparameters are the method's own."""
    given = changes.pop("hparams", {})
    settings = {"hparams": method.settings({**method.trial, **given}), "per": method.per, "constant": 4.0, **changes}
    return Run(method=method.name, kl=kl or KL(), sampling=Sampling(n=n), **settings)


def make_parts(method: Method, model: nn.Module, feed: Any, ref: nn.Module | None) -> Parts:
    """The learner, its frozen reference and its critics (random forecasts on a tree), as the trainer takes them."""
    anchors = {"ref": Anchor(Learner(ref), "ref" in method.anchors)} if ref is not None else {}
    critics = {}
    for seed, name in enumerate(method.critics):
        assert isinstance(model, TokenTree)
        critics[name] = Learner(ValueTree(model.vocab, model.depth, seed=seed), "critic")
    return Parts(Learner(model, method.learns), feed, anchors, critics)


UNTIL_STILL = Optim(lr=0.1, schedule="cosine", clip=0.0, rows_per_pass=100_000, betas=(0.9, 0.99))


def solve(
    run: Run, method: Method, model: nn.Module, feed: Any, ref: nn.Module | None = None, optim: Optim = UNTIL_STILL
) -> None:
    """Run the real trainer on an exact expectation until it stands still."""
    run = replace(run, optim=optim)
    parts = make_parts(method, model, feed, ref)
    for _ in steps(run, method, parts, State.begin(run, parts)):
        pass


def ready(run: Run, method: Method, model: nn.Module, tokens: Tokens, ref: nn.Module | None) -> tuple[Parts, Tokens]:
    """A batch as the trainer prepares it: reference, old log-probs and advantages filled in."""
    parts = make_parts(method, model, FixedFeed(tokens), ref)
    batch = parts.feed.batch(0, Meter())
    state = State(torch.optim.SGD(parts.learner.parameters(), lr=0.0))
    prepare(run, method, parts, state, batch, Meter())
    return parts, batch


def value_and_gradient(
    run: Run, method: Method, parts: Parts, batch: Tokens, size: int, network: str = "policy"
) -> tuple[float, Tensor]:
    """The scalar that one step minimises and its gradient, flat, accumulated over passes of `size` examples: the
    policy's, or that of the critic named `network`."""
    counts, value = count(batch), 0.0
    learner = parts.learner if network == "policy" else parts.critics[network]
    learner.zero_grad()
    whole = size >= batch.num_units  # then as it is: `select` would cut padding off
    for units in torch.arange(batch.num_units).split(size):
        micro = batch if whole else batch.select(units)
        if network == "policy":
            loss, _, _ = objective(run, method, parts, micro, counts)
        else:
            loss, _ = critic_objective(run, method, network, learner, micro, counts)
        if not loss.requires_grad:
            raise ValueError(f"{method.name}'s loss has no gradient: it must depend on the {network}'s tensors")
        loss.backward()
        value += float(loss.detach())
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learner.parameters()]
    return value, torch.cat([g.flatten() for g in gradients])


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
        batch.extra |= {name: uniform(len(rows)) for name in ("rewards", "costs", "greedy_rewards")}
        batch.weight = torch.ones_like(weight)
    for name in ("old_logprobs", "sampler_logprobs"):
        batch.extra[name] = -1.3 + 0.3 * uniform(*batch.mask.shape)
    batch.extra["margin"] = 0.1 * uniform(len(rows))
    batch.extra["pref_prob"] = 0.6 + 0.3 * uniform(len(rows))
    batch.extra["tied"] = torch.arange(len(rows)) % 3 == 0
    batch.extra["chosen_harm"] = torch.where(uniform(len(rows)) < 0.5, 1.0, -1.0).double()
    batch.extra["rejected_harm"] = -batch.extra["chosen_harm"]
    batch.extra["desirable"] = torch.arange(len(rows)) % 2 == 0
    batch.extra["batch_kl"] = torch.tensor(0.2, dtype=torch.float64)
    return batch


def toy(method: Method, seed: int) -> nn.Module:
    """A random tree of the kind that the method trains."""
    kind = ScoreTree if method.learns == "reward_model" else TokenTree
    return kind(vocab=4, depth=3, seed=seed)


def preference_pairs(preference: Tensor, law: Tensor) -> Tokens:
    """Every ordered pair (i, j) of each prompt with weight law_i law_j P(i beats j): an exact expectation.

    preference [S, A, A], law [S, A].
    """
    return pairs_of(law[:, :, None] * law[:, None, :] * preference, preference)


def pairs_of(weight: Tensor, preference: Tensor | None = None) -> Tokens:
    """Every ordered pair (i, j), i chosen, of each prompt with its weight [S, A, A]; i = j would teach nothing."""
    prompts, answers, _ = weight.shape
    where = [(s, i, j) for s, i, j in product(range(prompts), range(answers), range(answers)) if i != j]
    rows = [Encoded([s, y], [False, True]) for s, y in [(s, i) for s, i, _ in where] + [(s, j) for s, _, j in where]]
    tokens = collate(rows, pairs=True)
    tokens.weight = torch.tensor([float(weight[at]) for at in where] * 2, dtype=torch.float64)
    sure = [1.0 if preference is None else float(preference[at]) for at in where]
    tokens.extra["pref_prob"] = torch.tensor(sure * 2, dtype=torch.float64)
    tokens.extra["margin"] = torch.zeros(len(rows), dtype=torch.float64)
    return tokens


def random_table(seed: int) -> Tensor:
    """Logits [3, 5] of 3 prompts and 5 answers."""
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
