"""Our losses beside those of TRL 1.16, an independent implementation: the same tokens and logits, value and gradient.

Both sides run their own code from collator to scalar: TRL's collators and `compute_loss` there, `prepare` and
`objective` of the loop here, in float64 and to 1e-10 where TRL knows float64. Where the two differ, the test asserts
what holds instead and its docstring says why. docs/beside_trl.md is the table of it.
"""

import random
import warnings
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import beside_trl as theirs
import pytest
import torch
from beside_trl import Scorer, Texts
from torch import Tensor

from fiducial.config import Optim, Run
from fiducial.core.method import KL
from fiducial.core.tokens import collate, masked_logprobs
from fiducial.core.total import count
from fiducial.core.types import Encoded, Tokens
from fiducial.methods import METHODS
from fiducial.train.anchors import Anchor
from fiducial.train.feeds import mismatched
from fiducial.train.learner import Learner
from fiducial.train.loop import objective
from fiducial.train.measure import Meter
from fiducial.train.parts import Parts
from fiducial.train.prepare import prepare

WIDTH = 14
OFF = KL(weight=0.0)


TRL = {  # module: what is taken from it
    "trl": ("DPOTrainer", "GRPOTrainer", "KTOTrainer", "RewardTrainer", "RLOOTrainer", "SFTTrainer"),
    "trl.experimental.cpo": ("CPOTrainer",),
    "trl.experimental.orpo": ("ORPOTrainer",),
    "trl.trainer": ("dpo_trainer", "kto_trainer", "reward_trainer", "sft_trainer", "utils"),
    "trl.trainer.callbacks": ("SyncRefModelCallback",),
}


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl", minversion="1.16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports tell of what it will drop and of what it does not find
        return SimpleNamespace(**{name: getattr(import_module(m), name) for m, names in TRL.items() for name in names})


# Rows. Tokens are 1 to 8; lengths differ, so that a mean per token, per row and per batch are three numbers.


def words(draw: random.Random, n: int) -> list[int]:
    return [draw.randint(1, theirs.VOCAB - 1) for _ in range(n)]


def triples(prompts=(2, 3, 1, 4), chosen=(3, 5, 2, 4), rejected=(4, 2, 6, 1), seed=0) -> list[list[list[int]]]:
    """[prompt, chosen, rejected] in ids, of these lengths."""
    draw = random.Random(seed)
    return [[words(draw, n) for n in lengths] for lengths in zip(prompts, chosen, rejected, strict=True)]


def texts(examples) -> list[list[int]]:
    """All chosen texts, then all rejected."""
    return [e[0] + e[side] for side in (1, 2) for e in examples]


def random_logits(rows: int, seed: int, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(rows, WIDTH, theirs.VOCAB, generator=generator, dtype=torch.float64)).to(dtype)


def models(rows: list[list[int]], dtype=torch.float64) -> tuple[Texts, Texts]:
    """A policy, whose logits take a gradient, and a reference not far from it."""
    logits = random_logits(len(rows), 1, dtype).requires_grad_()
    return Texts(rows, logits), Texts(rows, logits.detach() + random_logits(len(rows), 2, dtype) / 5)


def encoded(prompt: list[int], completion: list[int]) -> Encoded:
    return Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))


def pairs_of(examples, dtype=torch.float64) -> Tokens:
    return collate([encoded(e[0], e[side]) for side in (1, 2) for e in examples], pairs=True, dtype=dtype)


def demos_of(examples, dtype=torch.float64) -> Tokens:
    """The chosen completions, to imitate."""
    return collate([encoded(e[0], e[1]) for e in examples], dtype=dtype)


def ours(
    name: str, batch: Tokens, policy: Any, ref: Texts | None = None, old: Texts | None = None, *, cuts: Any = None,
    kl: Any = OFF, per: Any = "", constant: Any = 0.0, **hparams: Any,
) -> Tensor:  # fmt: skip
    """The loop's own loss of one update, as the sum over the micro-batches `cuts`, lists of examples."""
    method = METHODS[name]
    optim = Optim(epochs=2 if old else 1)  # old log-probs are recomputed where there are several updates
    run = Run(method=name, hparams=method.settings(hparams), kl=kl, per=per, constant=constant, optim=optim)
    kind = "reward_model" if isinstance(policy, Scorer) else "policy"
    nothing: Any = SimpleNamespace(credit={})  # in the place of the feed and of what training changes
    parts = Parts(Learner(old or policy, kind), nothing, {"ref": Anchor(Learner(ref))} if ref else {})
    prepare(run, method, parts, nothing, batch, Meter())
    parts.learner = Learner(policy, kind)
    counts, cuts = count(batch), cuts or [range(batch.num_units)]
    losses = [objective(run, method, parts, batch.select(torch.tensor([*cut])), counts)[0] for cut in cuts]
    return torch.stack(losses).sum()


def mean(parts) -> Tensor:
    return torch.stack([*parts]).mean()


def same(found: Tensor, expected: Tensor, leaf: Tensor, tolerance=1e-10):
    """The same value and the same gradient in every logit, which is not zero."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    same_gradient(found, expected, leaf, tolerance)


def same_gradient(found: Tensor, expected: Tensor, leaf: Tensor, tolerance=1e-10):
    gradients = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)
    assert gradients[0].abs().max() > 1e-4


def differ(a: Tensor, b: Tensor):
    assert abs(float(a.detach()) - float(b.detach())) > 1e-4


# Log-probs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs(trl, temperature):
    """TRL's fused head, which the other tests replace, against our `masked_logprobs`. It works in float32 whatever it
    is given, so 1e-6 is the limit."""
    examples = triples()
    batch, logits = demos_of(examples, torch.float32), random_logits(4, 1, torch.float32)
    logits = logits[:, : batch.input_ids.shape[1]].requires_grad_()

    class Body(torch.nn.Module):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

        def base_model(self, *_, **__):
            return SimpleNamespace(last_hidden_state=logits)

        def forward(self):
            pass

        def get_output_embeddings(self):
            return SimpleNamespace(weight=torch.eye(theirs.VOCAB), bias=None)

    model = Body()
    trl.utils.add_fused_lm_head(model, temperature=temperature)
    labels = batch.input_ids.masked_fill(~batch.mask, -100)
    found = model(batch.input_ids, labels=labels, fused_lm_head=True).log_probs
    expected = masked_logprobs(logits, lambda x: x, batch.input_ids, batch.mask, temperature)["logprobs"]
    torch.testing.assert_close(found, expected[:, 1:], atol=1e-6, rtol=1e-6)
    weights = random_logits(4, 3, torch.float32)[:, : found.shape[1], 0]
    same_gradient((found * weights).sum(), (expected[:, 1:] * weights).sum(), logits, 1e-6)


# DPO and its kin


def trl_dpo(trl, policy, ref, examples, **settings) -> Tensor:
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), e, strict=True)) for e in examples]
    inputs = trl.dpo_trainer.DataCollatorForPreference(pad_token_id=theirs.PAD)(rows)
    trainer = theirs.dpo(trl.DPOTrainer, policy, ref, **settings)
    return trainer.compute_loss(policy, inputs)


@pytest.mark.parametrize(
    ("settings", "name", "hparams"),
    [
        ({"beta": 0.3}, "dpo", {"beta": 0.3}),
        ({"beta": 0.3}, "tr_dpo", {"beta": 0.3}),
        ({"beta": 0.3}, "spin", {"beta": 0.3}),
        ({"beta": 0.3}, "online_direct", {"beta": 0.3}),
        ({"loss_type": ["robust"], "label_smoothing": 0.2}, "dpo", {"robust": True, "label_smoothing": 0.2}),
        ({"loss_type": ["sigmoid_norm"], "beta": 2.0}, "dpo", {"length_average": True, "beta": 2.0}),
        ({"loss_type": ["hinge"], "beta": 0.3}, "slic", {"with_reference": True, "beta": 0.3}),
        ({"loss_type": ["ipo"], "beta": 0.4}, "ipo", {"length_average": True, "beta": 0.4}),
        ({"loss_type": ["ipo"], "beta": 0.4}, "tr_ipo", {"length_average": True, "beta": 0.4}),
        ({"loss_type": ["ipo"], "beta": 0.4}, "online_ipo", {"length_average": True, "beta": 0.4}),
        ({"f_divergence_type": "reverse_kl"}, "f_dpo", {"family": "reverse_kl"}),
        ({"f_divergence_type": "forward_kl"}, "f_dpo", {"family": "forward_kl"}),
        ({"f_divergence_type": "js_divergence", "beta": 2.0}, "f_dpo", {"family": "js", "beta": 2.0}),
    ],
)
def test_dpo(trl, settings, name, hparams):
    """The same, constants of f' aside, which cancel in a pair. Cut into single pairs ours is the same still."""
    examples = triples()
    policy, ref = models(texts(examples))
    expected = trl_dpo(trl, policy, ref, examples, **settings)
    same(ours(name, pairs_of(examples), policy, ref, **hparams), expected, policy.logits)
    same(ours(name, pairs_of(examples), policy, ref, cuts=[[0], [1], [2], [3]], **hparams), expected, policy.logits)


@pytest.mark.parametrize("coefficient", [0.25, 0.5, 0.75])
def test_dpo_alpha_divergence(trl, coefficient):
    """TRL's coefficient b is one minus our alpha: its f'(u) is (u^(b - 1) - 1) / (b - 1). It knows 16 and 32 bits only,
    so the tolerance is float32's."""
    examples = triples()
    policy, ref = models(texts(examples), torch.float32)
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}
    expected = trl_dpo(trl, policy, ref, examples, **settings)
    found = ours("f_dpo", pairs_of(examples, torch.float32), policy, ref, family="alpha", alpha=1 - coefficient)
    same(found, expected, policy.logits, 2e-6)


def test_dpo_label_smoothing(trl):
    """TRL's "sigmoid" does not read label_smoothing. Its "aot" does, over log-ratios sorted within the batch; with one
    pair a batch nothing is sorted and it is conservative DPO, which is our label_smoothing."""
    examples = triples()
    policy, ref = models(texts(examples))
    plain = trl_dpo(trl, policy, ref, examples, label_smoothing=0.2)
    same(ours("dpo", pairs_of(examples), policy, ref), plain, policy.logits)
    alone = [trl_dpo(trl, policy, ref, [e], loss_type=["aot"], label_smoothing=0.2) for e in examples]
    found = ours("dpo", pairs_of(examples), policy, ref, label_smoothing=0.2)
    same(found, mean(alone), policy.logits)


def test_ipo_of_the_paper(trl):
    """The paper's margin is of whole log-ratios, as ours is by default. TRL always takes them per token, which its
    source ascribes to the authors; the two agree where every completion is one token."""
    examples = triples(chosen=(1, 1, 1, 1), rejected=(1, 1, 1, 1))
    policy, ref = models(texts(examples))
    expected = trl_dpo(trl, policy, ref, examples, loss_type=["ipo"])
    same(ours("ipo", pairs_of(examples), policy, ref), expected, policy.logits)
    longer = triples()
    policy, ref = models(texts(longer))
    differ(trl_dpo(trl, policy, ref, longer, loss_type=["ipo"]), ours("ipo", pairs_of(longer), policy, ref))


def test_dpo_nll(trl):
    """The likelihood beside DPO (RPO): TRL averages it over the tokens of all chosen completions of the micro-batch, so
    long ones weigh more; the paper's eq. 1, and ours, over each completion's tokens and then over pairs. They agree
    where the chosen completions are equally long; else TRL's is DPO plus alpha times our `sft` of the chosen."""
    settings = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}
    equal = triples(chosen=(4, 4, 4, 4))
    policy, ref = models(texts(equal))
    expected = trl_dpo(trl, policy, ref, equal, **settings)
    same(ours("dpo_nll", pairs_of(equal), policy, ref, alpha=0.7), expected, policy.logits)
    examples = triples()
    policy, ref = models(texts(examples))
    expected = trl_dpo(trl, policy, ref, examples, **settings)
    relation = ours("dpo", pairs_of(examples), policy, ref) + 0.7 * ours("sft", demos_of(examples), policy)
    same(relation, expected, policy.logits)
    differ(expected, ours("dpo_nll", pairs_of(examples), policy, ref, alpha=0.7))


def test_unequal_micro_batches_of_pairs(trl):
    """TRL's scalar is a mean over the micro-batch, and transformers divides it by the number of micro-batches: a pair
    in a short one (the last of an epoch) weighs more. Ours divides once by the pairs of the whole update."""
    examples = triples()
    policy, ref = models(texts(examples))
    parts = [examples[:3], examples[3:]]
    expected = mean(trl_dpo(trl, policy, ref, part) for part in parts)
    same(mean(ours("dpo", pairs_of(part), policy, ref) for part in parts), expected, policy.logits)
    differ(expected, ours("dpo", pairs_of(examples), policy, ref, cuts=[[0, 1, 2], [3]]))


def test_tr_dpo_reference(trl):
    """TRL's sync_ref_model mixes weights like our moving anchor, ref <- alpha policy + (1 - alpha) ref."""
    torch.manual_seed(0)
    policy, ref = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    anchor = torch.nn.Linear(3, 2)
    anchor.load_state_dict(ref.state_dict())
    trl.SyncRefModelCallback._sync_target_model(policy, ref, 0.6)
    Anchor(Learner(anchor)).move(Learner(policy), 0.6, SimpleNamespace(world=1))  # type: ignore[arg-type]
    for found, expected in zip(anchor.parameters(), ref.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# Without a reference


def trl_unreferenced(trl, kind, policy, examples, **settings) -> Tensor:
    """CPO and ORPO; the batch as their collator makes it."""
    batch = {}
    for side, name in ((1, "chosen"), (2, "rejected")):
        rows = [encoded(e[0], e[side]) for e in examples]
        labels = [[i if m else -100 for i, m in zip(r.token_ids, r.mask, strict=True)] for r in rows]
        columns = {"input_ids": [r.token_ids for r in rows], "attention_mask": [[1] * len(r.mask) for r in rows]}
        for key, values in {**columns, "labels": labels}.items():
            tensors = [torch.tensor(x) for x in values]
            fill = -100 if key == "labels" else theirs.PAD
            batch[f"{name}_{key}"] = trl.utils.pad(tensors, padding_value=fill, padding_side="right")
    return getattr(theirs, kind)(getattr(trl, f"{kind.upper()}Trainer"), policy, **settings).compute_loss(policy, batch)


def test_cpo(trl):
    """As with RPO, TRL averages the likelihood over the tokens of the micro-batch, we over pairs. The same where the
    chosen completions are equally long; else TRL's is the preference term plus cpo_alpha times `sft` of the chosen."""
    equal = triples(chosen=(4, 4, 4, 4))
    settings: dict[str, Any] = {"beta": 0.3, "label_smoothing": 0.1}
    policy, _ = models(texts(equal))
    expected = trl_unreferenced(trl, "cpo", policy, equal, cpo_alpha=0.7, **settings)
    same(ours("cpo", pairs_of(equal), policy, alpha=0.7, **settings), expected, policy.logits)
    examples = triples()
    policy, _ = models(texts(examples))
    expected = trl_unreferenced(trl, "cpo", policy, examples, cpo_alpha=0.7, **settings)
    preference = ours("cpo", pairs_of(examples), policy, alpha=0.0, **settings)
    same(preference + 0.7 * ours("sft", demos_of(examples), policy), expected, policy.logits)
    differ(expected, ours("cpo", pairs_of(examples), policy, alpha=0.7, **settings))


def test_simpo(trl):
    """The same with cpo_alpha = 0; TRL's default of 1 adds the likelihood of the chosen (CPO-SimPO)."""
    examples = triples()
    policy, _ = models(texts(examples))
    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2}
    found = ours("simpo", pairs_of(examples), policy, beta=2.0, gamma=1.2)
    same(found, trl_unreferenced(trl, "cpo", policy, examples, cpo_alpha=0.0, **settings), policy.logits)
    with_likelihood = found + ours("sft", demos_of(examples), policy)
    same(with_likelihood, trl_unreferenced(trl, "cpo", policy, examples, **settings), policy.logits)


def test_slic(trl):
    """SLiC's margin is delta in nats, TRL's (loss_type "hinge" of CPO) is 1 in units of beta:
    max(0, 1 - beta m) = beta max(0, 1 / beta - m). Its likelihood term is CPO's, so ours has lam = 0 here."""
    examples = triples()
    policy, _ = models(texts(examples))
    expected = trl_unreferenced(trl, "cpo", policy, examples, loss_type="hinge", beta=0.4, cpo_alpha=0.0)
    same(0.4 * ours("slic", pairs_of(examples), policy, delta=1 / 0.4, lam=0.0), expected, policy.logits)


def test_orpo(trl):
    """TRL's likelihood runs over prompt and chosen completion, and over the tokens of the micro-batch; the paper's, and
    ours, over the completion and then pairs. The same where prompts are one token, which nothing predicts, and the
    chosen completions equally long. TRL takes the odds in float32, so the tolerance is float32's."""
    equal = triples(prompts=(1, 1, 1, 1), chosen=(4, 4, 4, 4), seed=3)
    policy, _ = models(texts(equal))
    expected = trl_unreferenced(trl, "orpo", policy, equal, beta=0.5)
    same(ours("orpo", pairs_of(equal), policy, lam=0.5), expected, policy.logits, 2e-6)
    examples = triples()
    policy, _ = models(texts(examples))
    expected = trl_unreferenced(trl, "orpo", policy, examples, beta=0.5)
    batch = pairs_of(examples)
    odds = ours("orpo", batch, policy, lam=0.5) - ours("orpo", batch, policy, lam=0.0)
    everything = demos_of([[[], e[0] + e[1]] for e in examples])
    same(odds + ours("sft", everything, policy), expected, policy.logits, 2e-6)
    differ(expected, ours("orpo", batch, policy, lam=0.5))


# Single completions


WANTED = [True, False, True, False, True]


def completions() -> list[list[list[int]]]:
    """[prompt, completion] in ids, which are `WANTED` or not."""
    return [[prompt, own] for prompt, own, _ in triples((2, 3, 1, 4, 2), (3, 5, 2, 4, 1), (1, 1, 1, 1, 1))]


def trl_kto(trl, policy, ref, rows, wanted, **settings) -> Tensor:
    others = [rows[-1][1], *(row[1] for row in rows[:-1])]  # KTOTrainer's add_kl_completion_ids
    dicts = [
        {"prompt_ids": prompt, "completion_ids": own, "KL_completion_ids": other, "label": label}
        for (prompt, own), other, label in zip(rows, others, wanted, strict=True)
    ]
    inputs = trl.kto_trainer.DataCollatorForUnpairedPreference(pad_token_id=theirs.PAD)(dicts)
    return theirs.kto(trl.KTOTrainer, policy, ref, **settings).compute_loss(policy, inputs)


class Rows(list):
    """What `mismatched` reads of a data set."""

    max_length = None


def labels_of(rows, wanted) -> Tokens:
    items = Rows(SimpleNamespace(encoded=[encoded(*row)]) for row in rows)
    places = range(len(rows))
    batch = collate([item.encoded[0] for item in items], dtype=torch.float64)
    batch.extra["desirable"] = torch.tensor(wanted)
    batch.mismatched = mismatched(items, places, places)  # type: ignore[arg-type]
    batch.mismatched.weight = batch.mismatched.weight.double()
    return batch


def kto_models(blocks, favour) -> tuple[Texts, Texts]:
    """`favour` makes the policy likelier than the reference to say what is said, so that the mean log-ratio is
    positive. The mismatched texts are those of each block of rows."""
    every = [prompt + completion for rows in blocks for prompt, completion in rows]
    every += [prompt + rows[i - 1][1] for rows in blocks for i, (prompt, _) in enumerate(rows)]
    policy, ref = models(every)
    for place, text in enumerate(every):
        for t, token in enumerate(text[1:]):
            ref.logits[place, t, token] -= favour
    return policy, ref


@pytest.mark.parametrize("favour", [0.4, -0.4])
def test_kto(trl, favour):
    """The same, mismatched pairs included: both take the completion of the row before. Without a positive mean
    log-ratio z0 is 0, which is also TRL's "apo_zero_unpaired"."""
    rows = completions()
    policy, ref = kto_models([rows], favour)
    settings = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    expected = trl_kto(trl, policy, ref, rows, WANTED, **settings)
    batch = labels_of(rows, WANTED)
    found = ours("kto", batch, policy, ref, cuts=[[0, 1], [2, 3, 4]], beta=0.3, lambda_d=1.3, lambda_u=0.8)
    same(found, expected, policy.logits)
    assert (float(batch.extra["batch_kl"]) > 0) == (favour > 0)
    unshifted = trl_kto(trl, policy, ref, rows, WANTED, loss_type="apo_zero_unpaired", **settings)
    if favour < 0:
        same(found, unshifted, policy.logits)
    else:
        differ(found, unshifted)


def test_kto_micro_batches(trl):
    """TRL estimates z0 in each micro-batch, from completions that were shifted within blocks of that size when the data
    was prepared. Ours is one number for the step. TRL's is the mean of ours with each micro-batch taken for a step."""
    rows, cuts = completions()[:4], [slice(0, 2), slice(2, 4)]
    policy, ref = kto_models([rows, *(rows[cut] for cut in cuts)], 0.4)
    expected = mean(trl_kto(trl, policy, ref, rows[cut], WANTED[cut], beta=0.3) for cut in cuts)
    found = mean(ours("kto", labels_of(rows[cut], WANTED[cut]), policy, ref, beta=0.3) for cut in cuts)
    same(found, expected, policy.logits)
    differ(expected, ours("kto", labels_of(rows, WANTED[:4]), policy, ref, beta=0.3))


def trl_sft(trl, policy, examples, tokens=None) -> Tensor:
    rows = [encoded(e[0], e[1]) for e in examples]
    dicts = [
        {"input_ids": r.token_ids, "labels": [i if m else -100 for i, m in zip(r.token_ids, r.mask, strict=True)]}
        for r in rows
    ]
    inputs = trl.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=theirs.PAD)(dicts)
    return theirs.sft(trl.SFTTrainer, policy).compute_loss(policy, inputs, num_items_in_batch=tokens)


@pytest.mark.parametrize("prompts", [True, False])
def test_sft(trl, prompts):
    """The same, plain text included, and however the batch is cut: both divide by the tokens of the whole update."""
    examples = triples()
    examples = examples if prompts else [[[], e[0] + e[1]] for e in examples]
    policy = Texts(texts([[*e, []] for e in examples])[:4], random_logits(4, 1).requires_grad_())
    batch = demos_of(examples)
    found = ours("sft", batch, policy)
    same(found, trl_sft(trl, policy, examples), policy.logits)
    tokens = int(batch.mask.sum())
    parts = [trl_sft(trl, policy, examples[:1], tokens), trl_sft(trl, policy, examples[1:], tokens)]
    same(found, torch.stack(parts).sum(), policy.logits)
    same(ours("sft", batch, policy, cuts=[[0, 3], [1, 2]]), found, policy.logits)


# Reward models


@pytest.mark.parametrize("margins", [None, [0.0, 0.5, 1.0, 2.0]])
@pytest.mark.parametrize("centre", [None, 0.01])
def test_reward_model(trl, margins, centre):
    """The same, with and without margins and centring."""
    examples = triples()
    leaf = random_logits(8, 1)[:, 0, 0].clone().requires_grad_()
    model = Scorer(texts(examples), leaf)
    dicts = [{"chosen_ids": e[0] + e[1], "rejected_ids": e[0] + e[2]} for e in examples]
    batch = pairs_of(examples)
    batch.extra["margin"] = torch.tensor((margins or [0.0] * 4) * 2, dtype=torch.float64)
    if margins:
        dicts = [{**row, "margin": margin} for row, margin in zip(dicts, margins, strict=True)]
    inputs = trl.reward_trainer.DataCollatorForPreference(pad_token_id=theirs.PAD)(dicts)
    args = SimpleNamespace(center_rewards_coefficient=centre)
    expected = theirs.trainer(trl.RewardTrainer, model, args=args).compute_loss(model, inputs)
    same(ours("bt_reward_model", batch, model, cuts=[[0, 1, 2], [3]], center_coef=centre or 0.0), expected, leaf)


# Samples

REWARDS = torch.tensor([1.0, 0.0, 0.25, 0.7, 0.7, 0.7, -1.0, 2.0, 0.5], dtype=torch.float64)  # groups of three


def samples() -> list[tuple[list[int], list[int]]]:
    """Three prompts, three completions each: prompts of different lengths, which TRL pads on the left."""
    draw = random.Random(4)
    prompts = [words(draw, n) for n in (2, 4, 1)]
    return [(prompts[i // 3], words(draw, n)) for i, n in enumerate((3, 5, 1, 2, 6, 4, 2, 7, 3))]


def groups_of(rollouts, rewards) -> Tokens:
    group = [next(i for i, other in enumerate(rollouts) if other[0] == prompt) for prompt, _ in rollouts]
    batch = collate([encoded(*rollout) for rollout in rollouts], group=group, dtype=torch.float64)
    batch.extra["rewards"] = rewards
    return batch


def sampled_models(rollouts) -> tuple[Texts, Texts, Texts]:
    """The policy, the reference, and the policy that sampled, far enough for ratios to be clipped on both sides."""
    rows = [prompt + completion for prompt, completion in rollouts]
    policy, ref = models(rows)
    return policy, ref, Texts(rows, policy.logits.detach() + random_logits(len(rows), 5) / 4)


SAMPLE_STD = {"std": "sample", "std_epsilon": 1e-4}  # TRL's advantages
GRPO_LOSSES = [
    ("grpo", {}),
    ("dapo", {"per": "token"}),
    ("bnpo", {"per": "token"}),
    ("dr_grpo", {"per": "constant", "constant": 20.0}),
]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("loss_type", "settings"), GRPO_LOSSES)
def test_grpo(trl, loss_type, settings, beta):
    """From rewards to the scalar, on and off the sampling policy: the same with TRL's standard deviation."""
    rollouts = samples()
    policy, ref, old = sampled_models(rollouts)
    shared = {"ref": ref, "beta": beta, "loss_type": loss_type, "max_completion_length": 20, "epsilon_high": 0.28}
    kl, ratio = KL(weight=beta), {"clip_high": 0.28, **SAMPLE_STD, **settings}
    trainer = theirs.grpo(trl.GRPOTrainer, policy, rollouts, REWARDS, 3, **shared)
    expected = trainer.compute_loss(policy, theirs.rollouts_of(trainer))
    same(ours("grpo", groups_of(rollouts, REWARDS), policy, ref, kl=kl, **ratio), expected, policy.logits)
    # steps_per_generation 2 makes TRL recompute the old log-probs
    trainer = theirs.grpo(trl.GRPOTrainer, old, rollouts, REWARDS, 3, **shared, steps_per_generation=2)
    inputs = theirs.rollouts_of(trainer)
    if loss_type == "dapo":
        inputs["num_items_in_batch"] *= 2  # as if this were half of what was generated: see test_dapo_windows
    expected = trainer.compute_loss(policy, inputs)
    assert (
        trainer._metrics["train"]["clip_ratio/low_mean"][0] > 0 < trainer._metrics["train"]["clip_ratio/high_mean"][0]
    )
    found = ours(
        "grpo",
        groups_of(rollouts, REWARDS),
        policy,
        ref,
        old,
        kl=kl,
        cuts=[[0, 4, 8], range(1, 4), range(5, 8)],
        **ratio,
    )
    same(found, expected, policy.logits)


@pytest.mark.parametrize(("loss_type", "settings"), GRPO_LOSSES)
def test_grpo_micro_batches(trl, loss_type, settings):
    """Accumulated over micro-batches of equal size, all are ours for the whole step but "bnpo", which is the mean of
    the token means of the micro-batches: there a token's weight depends on its neighbours."""
    rollouts = samples()
    policy, ref, _ = sampled_models(rollouts)
    shared = {"ref": ref, "beta": 0.04, "loss_type": loss_type, "max_completion_length": 20, "accumulation": 3}
    trainer = theirs.grpo(trl.GRPOTrainer, policy, rollouts, REWARDS, 3, steps_per_generation=3, **shared)
    inputs = theirs.rollouts_of(trainer)
    cuts = [slice(0, 3), slice(3, 6), slice(6, 9)]
    # each is divided by the number of micro-batches already
    expected = torch.stack([trainer.compute_loss(policy, theirs.rows(inputs, cut)) for cut in cuts]).sum()
    whole = ours("grpo", groups_of(rollouts, REWARDS), policy, ref, kl=KL(weight=0.04), **SAMPLE_STD, **settings)
    if loss_type != "bnpo":
        same(whole, expected, policy.logits)
        return
    differ(whole, expected)
    batches = [groups_of(rollouts[cut], REWARDS[cut]) for cut in cuts]  # a group each, so the advantages are the same
    parts = mean(ours("grpo", b, policy, ref, kl=KL(weight=0.04), **SAMPLE_STD, **settings) for b in batches)
    same(parts, expected, policy.logits)


def test_dapo_windows(trl):
    """With several updates from one generation TRL's "dapo" divides each by the mean number of tokens of all of them,
    we by the update's own: an update of short completions moves less with TRL."""
    rollouts = samples()
    policy, _, _ = sampled_models(rollouts)
    trainer = theirs.grpo(trl.GRPOTrainer, policy, rollouts, REWARDS, 3, steps_per_generation=3)
    inputs = theirs.rollouts_of(trainer)
    expected = trainer.compute_loss(policy, theirs.rows(inputs, slice(0, 3)))
    batch = groups_of(rollouts[:3], REWARDS[:3])
    own, mean = float(batch.mask.sum()), float(inputs["num_items_in_batch"]) / 3
    assert own != mean
    same(ours("grpo", batch, policy, per="token", **SAMPLE_STD) * own / mean, expected, policy.logits)


def test_gspo(trl):
    """importance_sampling_level "sequence" is the geometric mean of a completion's ratios, ours "sequence_geomean"."""
    rollouts = samples()
    policy, ref, old = sampled_models(rollouts)
    shared = {"ref": ref, "beta": 0.04, "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1}
    trainer = theirs.grpo(trl.GRPOTrainer, old, rollouts, REWARDS, 3, **shared, steps_per_generation=2)
    expected = trainer.compute_loss(policy, theirs.rollouts_of(trainer))
    settings = {"ratio_level": "sequence_geomean", "clip_low": 0.1, "clip_high": 0.1, **SAMPLE_STD}
    found = ours("grpo", groups_of(rollouts, REWARDS), policy, ref, old, kl=KL(weight=0.04), **settings)
    same(found, expected, policy.logits)


OWN_IDS = {  # method: (TRL's settings, ours)
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 20}, {"constant": 20.0}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, SAMPLE_STD),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        SAMPLE_STD,
    ),
}


@pytest.mark.parametrize("name", OWN_IDS)
def test_methods_after_grpo(trl, name):
    """With their papers' defaults and TRL's standard deviation, several updates after sampling."""
    rollouts = samples()
    policy, _, old = sampled_models(rollouts)
    given, settings = OWN_IDS[name]
    trainer = theirs.grpo(trl.GRPOTrainer, old, rollouts, REWARDS, 3, **given, steps_per_generation=2)
    inputs = theirs.rollouts_of(trainer)
    if name == "dapo":
        inputs["num_items_in_batch"] *= 2  # see test_dapo_windows
    if name == "gspo":  # so near the old policy that some completions are inside the narrow clip, and some outside
        policy = Texts(list(map(list, policy.places)), (old.logits + 1e-3 * policy.logits).detach().requires_grad_())
    expected = trainer.compute_loss(policy, inputs)
    cuts = [range(4), range(4, 9)]
    found = ours(name, groups_of(rollouts, REWARDS), policy, None, old, per=METHODS[name].per, cuts=cuts, **settings)
    same(found, expected, policy.logits)


def test_cispo(trl):
    """The same gradient. TRL's `epsilon_high` is the largest weight itself, ours is by how much it may exceed 1; TRL's
    value is the detached weight times the log-prob, ours the integral of the weight, which has that gradient."""
    rollouts = samples()
    policy, _, old = sampled_models(rollouts)
    shared = {"loss_type": "cispo", "epsilon_high": 1.2, "steps_per_generation": 2}
    trainer = theirs.grpo(trl.GRPOTrainer, old, rollouts, REWARDS, 3, **shared)
    inputs = theirs.rollouts_of(trainer)
    inputs["num_items_in_batch"] *= 2  # see test_dapo_windows
    expected = trainer.compute_loss(policy, inputs)
    assert trainer._metrics["train"]["cispo_clip_ratio"][0] > 0
    batch, cuts = groups_of(rollouts, REWARDS), [range(4), range(4, 9)]
    found = ours("cispo", batch, policy, None, old, per="token", cuts=cuts, clip_high=0.2, **SAMPLE_STD)
    differ(found, expected)
    same_gradient(found, expected, policy.logits)


def credit(name, rewards=REWARDS, **hparams) -> Tensor:
    """Our advantages [N]; rewards are those of whole groups of three unless some are dropped (NaN)."""
    kept = ~rewards.isnan()
    group = (torch.arange(len(rewards)) // 3)[kept]
    found, _ = METHODS[name].assign_credit({"rewards": rewards[kept], "group": group}, hparams, {})
    return found["advantages"]


def trl_grpo_credit(trl, scale, rewards=REWARDS) -> Tensor:
    policy, _, _ = sampled_models(samples())
    trainer = theirs.grpo(trl.GRPOTrainer, policy, samples(), rewards, 3, scale_rewards=scale)
    return theirs.rollouts_of(trainer)["advantages"]


def close(found: Tensor, expected: Tensor):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_grpo_advantages(trl):
    """TRL divides by the sample standard deviation (G - 1), ours by default by the population's (G); std = "sample" is
    TRL's, "none" the same in both. A group that agrees gets 0 either way, ours exactly. TRL's "batch" is a sample
    deviation too: ours, a population's, times (s + e) / (s sqrt(n / (n - 1)) + e)."""
    close(credit("grpo", **SAMPLE_STD), trl_grpo_credit(trl, "group"))
    close(credit("grpo", std="none"), trl_grpo_credit(trl, "none"))
    own = REWARDS.view(3, 3).std(1, unbiased=False).repeat_interleave(3)
    close(credit("grpo") * (own + 1e-4) / (own * 1.5**0.5 + 1e-4), trl_grpo_credit(trl, "group"))
    step = REWARDS.std(unbiased=False)
    relation = credit("grpo", std="batch") * (step + 1e-4) / (step * (9 / 8) ** 0.5 + 1e-4)
    close(relation, trl_grpo_credit(trl, "batch"))


def test_completions_without_a_score(trl):
    """Where a completion could not be scored, both leave it out of the baseline. TRL keeps it in the batch with
    advantage 0, so it counts in every mean (and its KL trains); we drop it. Without a KL, TRL's scalar is ours times
    the share of completions that were scored."""
    rollouts, rewards = samples(), REWARDS.clone()
    rewards[1] = torch.nan
    kept = [i for i in range(9) if i != 1]
    policy, _, _ = sampled_models(rollouts)
    trainer = theirs.grpo(trl.GRPOTrainer, policy, rollouts, rewards, 3, loss_type="grpo")
    inputs = theirs.rollouts_of(trainer)
    close(credit("grpo", rewards, **SAMPLE_STD), inputs["advantages"][kept])
    batch = groups_of([rollouts[i] for i in kept], rewards[kept])
    expected = trainer.compute_loss(policy, inputs)
    same(ours("grpo", batch, policy, **SAMPLE_STD) * 8 / 9, expected, policy.logits)


def test_rloo(trl):
    """The first update: the same gradient, the KL in the reward included. TRL's scalar is that of the ratio at 1, ours
    of the log-prob, and only the gradient has a meaning."""
    rollouts = samples()
    policy, ref, _ = sampled_models(rollouts)
    trainer = theirs.rloo(trl.RLOOTrainer, policy, rollouts, REWARDS, 3, ref=ref, beta=0.1)
    inputs = theirs.rollouts_of(trainer)
    expected = trainer.compute_loss(policy, inputs)
    kl, batch = KL(0.1, "k1", "reward"), groups_of(rollouts, REWARDS)
    found = ours("rloo", batch, policy, ref, kl=kl, cuts=[range(4), range(4, 9)])
    close(batch.extra["advantages"][:, 0], inputs["advantages"])
    same_gradient(found, expected, policy.logits)
    differ(found, expected)


def test_rloo_later_updates(trl):
    """TRL clips the ratio of whole completions: ratio_level = "sequence". Ours takes no ratio by default, and `clip` is
    PPO's, of each token, which is the same with one-token completions."""
    rollouts = samples()
    policy, ref, old = sampled_models(rollouts)
    trainer = theirs.rloo(trl.RLOOTrainer, old, rollouts, REWARDS, 3, ref=ref, beta=0.1)
    inputs = theirs.rollouts_of(trainer)
    batch, kl = groups_of(rollouts, REWARDS), KL(0.1, "k1", "reward")
    clipped = ours(
        "rloo", batch, policy, ref, old, kl=kl, clip=0.2
    )  # puts RLOO's advantages and old log-probs in batch
    expected = trainer.compute_loss(policy, inputs)
    differ(clipped, expected)
    batch = groups_of(rollouts, REWARDS)
    found = ours("rloo", batch, policy, ref, old, kl=kl, clip=0.2, ratio_level="sequence")
    same(found, expected, policy.logits)
    short = [(prompt, [1 + i % 3]) for i, (prompt, _) in enumerate(rollouts)]
    policy, ref, old = sampled_models(short)
    trainer = theirs.rloo(trl.RLOOTrainer, old, short, REWARDS, 3, ref=ref, beta=0.1)
    expected = trainer.compute_loss(policy, theirs.rollouts_of(trainer))
    found = ours("rloo", groups_of(short, REWARDS), policy, ref, old, kl=kl, clip=0.2)
    same(found, expected, policy.logits)


def test_rloo_normalised_advantages(trl):
    """TRL divides by the sample deviation of the step plus 1e-4, ours by the population's. The mean is zero already."""
    policy, _, _ = sampled_models(samples())
    trainer = theirs.rloo(trl.RLOOTrainer, policy, samples(), REWARDS, 3, normalize_advantages=True)
    raw = credit("rloo")
    assert abs(float(raw.mean())) < 1e-12
    relation = credit("rloo", normalize_adv=True) * raw.std(unbiased=False) / (raw.std() + 1e-4)
    close(relation, theirs.rollouts_of(trainer)["advantages"])
