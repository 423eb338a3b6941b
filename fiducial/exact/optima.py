"""Closed forms that trained policies are held to. All float64; distributions are compared in max-norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fiducial.exact.minimise import exact_minimise


def rlhf_optimum(ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """argmax of E r - beta KL(pi || ref): ref exp(r / beta) / Z, rows of [..., A].

    >>> rlhf_optimum(torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 0.0, -1.0]).double(), 0.5)
    tensor([0.9187, 0.0746, 0.0067], dtype=torch.float64)
    """
    return (ref.log() + rewards / beta).softmax(-1)


def ipo_optimum(ref: Tensor, preference: Tensor, law: Tensor, beta: float) -> Tensor:
    """argmax of E P(y beats law) - beta KL(pi || ref) (Azar et al. 2023): ref exp(P law / beta) / Z.

    preference [A, A], P[i, j] = P(i beats j); law [A] is what opponents are drawn from.
    """
    return (ref.log() + preference @ law / beta).softmax(-1)


def bradley_terry(rewards: Tensor) -> Tensor:
    """P[..., i, j] = sigmoid(r_i - r_j): [..., A] -> [..., A, A]."""
    return torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])


def bradley_terry_fit(preference: Tensor, law: Tensor) -> Tensor:
    """Rewards [A], mean 0, of greatest likelihood when pairs are drawn from `law` [A] and labelled by P [A, A].

    Minimises -sum_ij law_i law_j P_ij log sigmoid(r_i - r_j) (Bradley & Terry 1952); unique when every response is
    drawn and no set of them always beats the rest. P need not be Bradley-Terry; on a cycle of 2/3 the fit is constant.

    >>> r = bradley_terry_fit(bradley_terry(torch.tensor([1.0, 0.0, -1.0]).double()), torch.ones(3).double() / 3)
    >>> [round(x, 6) + 0.0 for x in r.tolist()]
    [1.0, 0.0, -1.0]
    """
    weight = law[:, None] * law[None, :]
    beats = (preference > 0).double() + torch.eye(len(law), dtype=torch.float64)
    connected = (torch.matrix_power(beats, len(law)) > 0).all()  # Ford (1957): wins lead from each to every other
    if not (connected and (law > 0).all() and (preference >= 0).all()):
        raise ValueError(
            "a Bradley-Terry fit is finite only if every response is drawn and no set of them always wins; "
            "leave out the responses that never lose or never win, or smooth the labels"
        )

    def loss(rewards: Tensor) -> Tensor:
        return -(weight * preference * torch.nn.functional.logsigmoid(rewards[:, None] - rewards[None, :])).sum()

    rewards = exact_minimise(loss, torch.zeros_like(law))
    return rewards - rewards.mean()


def dpo_optimum(ref: Tensor, preference: Tensor, law: Tensor, beta: float) -> Tensor:
    """What DPO reaches on pairs from `law` [A] with labels from any P [A, A]: ref exp(r / beta) / Z, r the BT fit.

    With P of Bradley-Terry this is `rlhf_optimum`, whatever the law (Rafailov et al. 2023). For smoothed and robust
    DPO hand in `smoothed_preference(P, epsilon, kind)`.
    """
    return rlhf_optimum(ref, bradley_terry_fit(preference, law), beta)


def smoothed_preference(preference: Tensor, epsilon: float, kind: str = "conservative") -> Tensor:
    """The labels that a smoothed loss behaves as if it had seen, for epsilon in [0, 1/2).

    "conservative" mixes the labels, (1 - e) P + e (1 - P), which is also what raters who err with probability e give;
    "robust" (Chowdhury et al. 2024, arXiv:2403.00409) undoes that, (P - e) / (1 - 2 e).

    >>> noisy = smoothed_preference(torch.tensor([0.9]), 0.2)
    >>> noisy, smoothed_preference(noisy, 0.2, "robust")  # 0.8 x 0.9 + 0.2 x 0.1, and back
    (tensor([0.7400]), tensor([0.9000]))
    """
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"label smoothing must lie in [0, 0.5); it is {epsilon}")
    if kind == "conservative":
        return (1 - epsilon) * preference + epsilon * (1 - preference)
    if kind == "robust":
        return (preference - epsilon) / (1 - 2 * epsilon)
    raise ValueError(f"the kind of label smoothing must be 'conservative' or 'robust'; it is {kind!r}")


def pair_margin(share: float, beta: float, loss: str = "dpo") -> float:
    """Where a loss leaves h = log pi(a)/ref(a) - log pi(b)/ref(b) when a share p of raters prefers a to b.

    dpo: logit(p) / beta, infinite when all agree; ipo: (2 p - 1) / (2 beta); hinge (SLiC with a reference): the
    majority's side of 1 / beta, whatever its size.

    >>> pair_margin(0.75, 0.5), pair_margin(0.75, 0.5, "ipo"), pair_margin(0.75, 0.5, "hinge")  # 2 log 3, 1/2, 2
    (2.197224577336219, 0.5, 2.0)
    """
    if loss == "dpo":
        return math.inf * (2 * share - 1) if share in (0, 1) else (math.log(share) - math.log1p(-share)) / beta
    if loss == "ipo":
        return (2 * share - 1) / (2 * beta)
    if loss == "hinge":
        return math.copysign(1 / beta, 2 * share - 1) if share != 0.5 else 0.0
    raise ValueError(f"the loss must be 'dpo', 'ipo' or 'hinge'; it is {loss!r}")


def psi_optimum(
    ref: Tensor, preference: Tensor, law: Tensor, beta: float, psi: str | Callable[[Tensor], Tensor] = "identity"
) -> Tensor:
    """argmax of E psi(P(y beats law)) - beta KL(pi || ref) (Azar et al. 2023): ref exp(s / beta) / Z, s = psi(P) law.

    psi is "identity" (IPO), "logit" (RLHF and DPO, if P is Bradley-Terry), "log" or a non-decreasing function.
    ValueError where a certain preference makes s infinite: then the optimum leaves the reference at any beta.
    """
    if isinstance(psi, str) and psi not in PSI:
        raise ValueError(f"psi must be one of {', '.join(PSI)} or a function; it is {psi!r}")
    transform = PSI[psi] if isinstance(psi, str) else psi
    scores = torch.where(law > 0, law * transform(preference), 0.0).sum(-1)
    if not torch.isfinite(scores).all():
        raise ValueError(
            f"psi = {psi!r} is infinite on a preference of 0 or 1, and beta cannot hold the policy near the reference; "
            "use psi = 'identity' (IPO) or smooth the preferences"
        )
    return (ref.log() + scores / beta).softmax(-1)


PSI: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda p: p, "logit": torch.logit, "log": torch.log}


def spin_step(policy: Tensor, data: Tensor, beta: float) -> Tensor:
    """One exact round of SPIN (Chen et al. 2024, arXiv:2401.01335): policy (data / policy)^(1 / beta) / Z, [..., A].

    log(data / policy), centred, shrinks by |1 - 1 / beta| a round: beta = 1 lands on the data, below 1/2 it diverges.
    """
    return (policy.log() + (data.log() - policy.log()) / beta).softmax(-1)


def moving_reference_optimum(ref: Tensor, rewards: Tensor, beta: float, rounds: int, share: float = 1.0) -> Tensor:
    """The policy after `rounds` exact solves, when between two of them the reference moves (TR-DPO, arXiv:2404.09656).

    The reference's logits become share x policy + (1 - share) x reference; each solve adds r / beta to them, so the
    policy is ref exp((1 + (n - 1) share) r / beta) / Z: with hard updates (share 1), beta is spent n times.
    """
    if rounds == 0:
        return ref
    return rlhf_optimum(ref, rewards, beta / (1 + (rounds - 1) * share))


def davidson(first: Tensor, second: Tensor, nu: float) -> Tensor:
    """P(first wins), P(second wins), P(tie) of Davidson (1970): rewards [...] -> [..., 3].

    Proportional to exp(r1), exp(r2), nu exp((r1 + r2) / 2). nu = 0 is Bradley-Terry; equals tie in nu / (2 + nu).

    >>> davidson(torch.tensor(1.0), torch.tensor(1.0), 2.0)
    tensor([0.2500, 0.2500, 0.5000])
    """
    if nu < 0:
        raise ValueError(f"nu, the weight of ties, must be 0 or more; it is {nu}")
    first, second = torch.broadcast_tensors(first, second)
    tie = (first + second) / 2 + (math.log(nu) if nu else -math.inf)
    return torch.stack([first, second, tie], -1).softmax(-1)


def idealised_ranking_accuracy(
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    agreement: Tensor,
    beta: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> float:
    """Share of pairs [B] that exact DPO on each pair alone would rank right (Chen et al. 2024, arXiv:2405.19534).

    agreement a [B] is the share of raters who prefer the chosen: right when ref(chosen) / ref(rejected) x
    (a / (1 - a))^(1 / beta) > 1, a tie counting half. With lengths, ref^(1 / length) stands for ref.

    >>> ref_c, ref_r = torch.tensor([0.05]).log(), torch.tensor([0.95]).log()
    >>> [idealised_ranking_accuracy(ref_c, ref_r, torch.tensor([0.6]), beta) for beta in (0.1, 1.0)]
    [1.0, 0.0]
    """
    if chosen_lengths is not None and rejected_lengths is not None:
        ref_chosen_logprobs = ref_chosen_logprobs / chosen_lengths
        ref_rejected_logprobs = ref_rejected_logprobs / rejected_lengths
    margin = ref_chosen_logprobs - ref_rejected_logprobs + torch.logit(agreement) / beta
    return float(((margin > 0).double() + (margin == 0).double() / 2).mean())


def win_rate(policy: Tensor, preference: Tensor, opponent: Tensor) -> Tensor:
    """P(policy beats opponent) = policy' P opponent: [..., A], [..., A, A], [..., A] -> [...]."""
    return torch.einsum("...i,...ij,...j->...", policy, preference, opponent)


def expected_reward_gradient(parameters: Tensor, objective: Callable[[], Tensor]) -> Tensor:
    """Gradient of an exactly enumerated objective with respect to `parameters`."""
    (gradient,) = torch.autograd.grad(objective(), parameters)
    return gradient


def grpo_factor(success: float, group_size: int, epsilon: float = 0.0, std: str = "population") -> float:
    """c_G(p): with binary rewards the expected GRPO gradient is c_G(p) grad p.

    k of G succeed with a binomial chance; the group then contributes the mean of A grad log pi over its members, in
    expectation s(k) / (p (1 - p)) grad p with s(k) = q (1 - q) / (spread + epsilon), q = k / G.

    >>> round(grpo_factor(0.3, 2), 12)  # G = 2: exactly 1
    1.0
    >>> round(grpo_factor(0.3, 4, std="none"), 12)  # mean-only: 1 - 1/G
    0.75
    """
    p, total = success, 0.0
    for k in range(1, group_size):
        q = k / group_size
        spread = (q * (1 - q)) ** 0.5
        if std == "sample":
            spread *= (group_size / (group_size - 1)) ** 0.5
        scale = 1.0 if std == "none" else spread + epsilon
        total += math.comb(group_size, k) * p**k * (1 - p) ** (group_size - k) * q * (1 - q) / scale
    return total / (p * (1 - p))
