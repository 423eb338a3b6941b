"""The sampler against enumeration, teacher forcing and slow independent implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fiducial
from fiducial.core.tokens import collate, pad, token_logprobs
from fiducial.core.types import Decoding, Encoded, Request, Rollout
from fiducial.evals.metrics import is_healthy
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.folder import save
from fiducial.models.tokenizer import train_tokenizer
from fiducial.sampling.draw import draw, sampling_scores, seed_tensor, uniform
from fiducial.sampling.local import LocalSampler
from fiducial.sampling.policy import Policy
from fiducial.sampling.trace import trace
from fiducial.train.learner import Learner


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["abcdefghij klmnop."], kind="char", vocab_size=64)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = DecoderConfig(len(tokenizer), hidden=64, layers=2, heads=2, kv_heads=1, max_length=64)
    model = Decoder(config)
    with torch.no_grad():  # far from uniform, so that a wrong context shows
        model.lm_head.weight.mul_(20)
    return model


def requests(lengths, seed=0) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    prompts = [[1, *torch.randint(11, 20, (n - 1,), generator=generator).tolist()] for n in lengths]
    return [Request(prompt, seed=100 + i, group=i) for i, prompt in enumerate(prompts)]


# ---------------------------------------------------------------- uniform numbers


def splitmix64(x: int) -> int:
    """The published algorithm in plain integers: one output of the generator whose state is x."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_splitmix_reference_value():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output for state 0 in the public reference code


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=5), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_uniform_is_the_published_hash(seeds, step):
    expected = [(splitmix64((splitmix64(s % 2**64) + step * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for s in seeds]
    assert uniform(seed_tensor(seeds), step).tolist() == expected


def test_uniform_is_uniform_over_seeds_and_steps():
    # Neighbouring seeds and steps must look independent: 100 x 1000 numbers in 50 bins, chi-square 49 +- 9.9.
    numbers = torch.stack([uniform(torch.arange(1000), step) for step in range(100)])
    counts = torch.histc(numbers.float(), 50, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 4 * 9.9
    assert abs(torch.corrcoef(numbers[:2])[0, 1]) < 4 / math.sqrt(1000)
    assert abs(torch.corrcoef(numbers.T[:2])[0, 1]) < 4 / math.sqrt(100)


# ---------------------------------------------------------------- drawing


def test_draws_follow_the_softmax():
    # Pearson's chi-square of 20,000 draws over 12 tokens: mean 11, standard deviation sqrt(22) = 4.7.
    torch.manual_seed(1)
    logits = torch.randn(12) * 1.5
    tokens, logprobs = draw(logits.expand(20_000, -1), uniform(torch.arange(20_000), 3), Decoding())
    expected = logits.softmax(-1) * 20_000
    assert ((torch.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum() < 11 + 4 * 4.7
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[tokens])


def test_draw_inverts_the_cumulative_distribution():
    # Masses 0.5, 0, 0.25, 0.25: the cuts are at 0.5 and 0.75, and the token without mass is never drawn.
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, -1)
    u = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, u, Decoding())
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def truncated(probs: list[float], top_k: int, top_p: float, min_p: float) -> list[float]:
    """The definition, one token at a time."""
    alive = sorted(range(len(probs)), key=lambda t: -probs[t])
    alive = alive[:top_k] if top_k else alive
    total = sum(probs[t] for t in alive)
    nucleus, mass = [], 0.0
    for token in alive:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += probs[token] / total
    best = probs[nucleus[0]]
    kept = [t for t in nucleus if probs[t] >= min_p * best]
    return [probs[t] / sum(probs[s] for s in kept) if t in kept else 0.0 for t in range(len(probs))]


@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True),
    st.integers(0, 10),
    st.sampled_from([0.05, 0.3, 0.62, 0.9, 1.0]),
    st.sampled_from([0.0, 0.11, 0.5]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@settings(max_examples=200, deadline=None)
def test_truncation_matches_its_definition(tenths, top_k, top_p, min_p, temperature):
    logits = torch.tensor(tenths, dtype=torch.float64) / 10
    exps = [math.exp(x / 10 / temperature) for x in tenths]
    expected = truncated([e / sum(exps) for e in exps], top_k, top_p, min_p)
    decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert sampling_scores(logits, decoding).softmax(-1).tolist() == pytest.approx(expected, abs=1e-12)


def test_logprobs_are_those_of_the_truncated_distribution():
    # Masses 0.5, 0.3, 0.2; the best two renormalised are 0.625 and 0.375.
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(2, -1)
    tokens, logprobs = draw(logits, torch.tensor([0.6, 0.7], dtype=torch.float64), Decoding(top_k=2))
    assert tokens.tolist() == [0, 1]
    assert logprobs.exp().tolist() == pytest.approx([0.625, 0.375])


def test_greedy_equals_almost_zero_temperature(model, tokenizer):
    sampler, asked = LocalSampler(model, tokenizer), requests([5, 9, 3])
    greedy = sampler.sample(asked, Decoding(20, temperature=0))
    cold = sampler.sample(asked, Decoding(20, temperature=1e-4))
    assert [r.token_ids for r in greedy] == [r.token_ids for r in cold]
    assert all(x == 0 for r in greedy for x in r.sampler_logprobs)


# ---------------------------------------------------------------- whole completions


def score(model, rollout: Rollout) -> torch.Tensor:
    """Log-probability of each token by running the whole sequence, the trainer's way."""
    batch = collate([Encoded(rollout.token_ids, rollout.mask)])
    return token_logprobs(model(batch.input_ids), batch.input_ids)[0]


def test_sampler_logprobs_equal_the_trainers(model, tokenizer):
    asked = requests([3, 11, 7, 7, 1, 20, 2])
    rollouts = LocalSampler(model, tokenizer).sample(asked, Decoding(30))
    assert len({r.num_tokens for r in rollouts}) > 2  # rows finish at different steps
    for rollout in rollouts:
        forced = score(model, rollout) * torch.tensor(rollout.mask)
        torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), forced, atol=1e-4, rtol=0)


def test_under_autocast_the_sampler_is_the_policy_that_trains(model, tokenizer):
    """bfloat16 keeps 8 bits, so a log-prob of a float32 sampler is off by about 0.01 here; one in bfloat16 agrees."""
    asked = requests([3, 11, 7, 7, 1, 20, 2] * 4)
    gaps = []
    for autocast in (False, True):
        rollouts = LocalSampler(model, tokenizer, autocast=autocast).sample(asked, Decoding(30))
        batch = collate([Encoded(r.token_ids, r.mask) for r in rollouts])
        with torch.no_grad():
            trained = Learner(model, autocast=True)(batch)["logprobs"]
        sampled = pad([r.sampler_logprobs for r in rollouts], torch.float32)
        gaps.append((trained - sampled).abs()[batch.mask])
    assert gaps[1].mean() < 0.1 * gaps[0].mean()
    assert is_healthy("sampling/logp_difference/mean", float(gaps[1].mean()))
    assert is_healthy("sampling/logp_difference/max", float(gaps[1].max()))


def test_alone_equals_in_a_crowd(model, tokenizer):
    asked = requests([4, 12, 4, 9, 1, 30, 6, 6])
    crowd = LocalSampler(model, tokenizer).sample(asked, Decoding(25))
    alone = [LocalSampler(model, tokenizer).sample([r], Decoding(25))[0] for r in asked]
    small = LocalSampler(model, tokenizer, batch_size=3).sample(asked[::-1], Decoding(25))[::-1]
    assert [r.token_ids for r in crowd] == [r.token_ids for r in alone] == [r.token_ids for r in small]
    assert [r.group for r in crowd] == list(range(8))


@torch.no_grad()
def test_completions_follow_the_enumerated_distribution(model, tokenizer):
    # Two tokens after one prompt: frequencies of the first token and of the pair against softmax products.
    draws = 4000
    rollouts = LocalSampler(model, tokenizer, 1000).sample(
        [Request([1, 12, 13], seed=i) for i in range(draws)], Decoding(2)
    )
    pairs = [tuple(r.token_ids[3:5]) for r in rollouts if r.num_tokens == 2]
    first = model(torch.tensor([[1, 12, 13]]))[0, -1].softmax(-1)
    a = int(first.argmax())
    b_given_a = model(torch.tensor([[1, 12, 13, a]]))[0, -1].softmax(-1)
    b = int(b_given_a.argmax())
    p = float(first[a] * b_given_a[b])
    assert abs(pairs.count((a, b)) / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)


def test_seeds_decide(model, tokenizer):
    sampler, (request,) = LocalSampler(model, tokenizer), requests([6])
    texts = {tuple(sampler.sample([replace(request, seed=s)], Decoding(12))[0].token_ids) for s in (1, 2, 3, 1)}
    assert len(texts) == 3


def test_a_group_shares_one_prefill(model, tokenizer, monkeypatch):
    seen = []
    original = Decoder.prefill

    def spy(self, input_ids, lengths, copies, room):
        seen.append((len(input_ids), sorted(torch.as_tensor(copies).tolist())))
        return original(self, input_ids, lengths, copies, room)

    monkeypatch.setattr(Decoder, "prefill", spy)
    first, second = requests([5, 8])
    asked = [replace(r, seed=i) for i, r in enumerate([first, second, first, first, second])]
    rollouts = LocalSampler(model, tokenizer).sample(asked, Decoding(4))
    assert seen == [(2, [2, 3])]
    assert [r.token_ids[: len(a.prompt_ids)] for r, a in zip(rollouts, asked, strict=True)] == [
        a.prompt_ids for a in asked
    ]


def test_stop_token_is_written_and_ends_the_row(model, tokenizer):
    rollouts = LocalSampler(model, tokenizer).sample(requests([4] * 64), Decoding(50))
    ended = [r for r in rollouts if r.finish == "stop"]
    assert ended and len(ended) < 64
    for rollout in ended:
        assert rollout.token_ids[-1] == tokenizer.eos_token_id and rollout.mask[-1]
        assert tokenizer.eos_token_id not in rollout.token_ids[:-1]
        assert tokenizer.decode(rollout.token_ids[4:-1]) == rollout.completion
    for rollout in rollouts:
        assert rollout.finish == "stop" or rollout.num_tokens == 50


def test_other_stop_tokens_of_the_config_count(model, tokenizer):
    free = LocalSampler(model, tokenizer).sample(requests([4]), Decoding(50))[0]
    token = free.token_ids[4 + 2]
    other = Decoder(replace(model.config, eos_ids=(token,)))
    other.load_state_dict(model.state_dict())
    rollout = LocalSampler(other, tokenizer).sample(requests([4]), Decoding(50))[0]
    end = free.token_ids.index(token, 4) + 1
    assert rollout.token_ids == free.token_ids[:end] and rollout.finish == "stop"


def test_stop_strings_cut_text_and_tokens(model, tokenizer):
    asked = requests([4, 6, 9, 12])
    free = LocalSampler(model, tokenizer).sample(asked, Decoding(40))
    stop = tuple(r.completion[5:8] for r in free[:2])
    cut = LocalSampler(model, tokenizer).sample(asked, Decoding(40, stop=stop))
    for long, short in zip(free, cut, strict=True):
        ends = [long.completion.index(s) + len(s) for s in stop if s in long.completion]
        expected = long.completion[: min(ends)] if ends else long.completion
        assert short.completion == expected
        assert short.num_tokens == (len(expected) if ends else long.num_tokens) or "<" in expected
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
    assert cut[0].finish == cut[1].finish == "stop"


def test_a_stop_string_may_end_inside_a_token(model):
    # One token "ab" holds the stop string "a": the token stays, the text is cut.
    tokenizer = train_tokenizer(["ab ab ab ab"], kind="bpe", vocab_size=300)
    token = tokenizer.encode("ab", add_special_tokens=False)
    assert len(token) == 1
    config = DecoderConfig(len(tokenizer), hidden=32, layers=1, heads=1, max_length=16)
    constant = Decoder(config)
    with torch.no_grad():
        constant.lm_head.weight.zero_()
        constant.model.norm.weight.copy_(torch.zeros(32))
    constant.head = lambda hidden: (
        torch.nn.functional.one_hot(torch.tensor(token[0]), len(tokenizer)).float().expand(*hidden.shape[:-1], -1)
    )
    (rollout,) = LocalSampler(constant, tokenizer).sample([Request([1], 0)], Decoding(9, temperature=0, stop=("ba",)))
    assert rollout.completion == "aba" and rollout.token_ids == [1, *token, *token] and rollout.finish == "stop"


def test_a_row_stops_at_the_models_length(model, tokenizer):
    # 64 positions: a prompt of 60 can grow by 4, one of 5 by 30; they share a batch.
    sampler = LocalSampler(model, tokenizer)
    sampler.eos_ids = frozenset()
    rollouts = sampler.sample(requests([60, 5, 63]), Decoding(30))
    assert [r.num_tokens for r in rollouts] == [4, 30, 1]
    assert {r.finish for r in rollouts} == {"length"}
    for rollout in rollouts:
        forced = score(model, rollout) * torch.tensor(rollout.mask)
        torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), forced, atol=1e-4, rtol=0)


def test_bad_requests_are_named(model, tokenizer):
    sampler = LocalSampler(model, tokenizer)
    with pytest.raises(ValueError, match="'too long'.*64 tokens.*max_length of 64"):
        sampler.sample([Request([1] * 64, 0, prompt="too long")], Decoding(1))
    with pytest.raises(ValueError, match="no tokens"):
        sampler.sample([Request([], 0)], Decoding(1))
    assert sampler.sample([], Decoding()) == []
    broken = Decoder(model.config)
    broken.lm_head.weight.data.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="not finite"):
            LocalSampler(broken, tokenizer).sample(requests([3]), Decoding(2, temperature=temperature))


def test_mode_weights_and_version(model, tokenizer):
    other = Decoder(model.config)
    sampler = LocalSampler(other, tokenizer)
    sampler.update(model.state_dict(), version=7)
    other.train()
    (mine,) = sampler.sample(requests([4]), Decoding(9))
    (its,) = LocalSampler(model, tokenizer).sample(requests([4]), Decoding(9))
    assert other.training and mine == replace(its, policy_version=7)
    sampler.update(None, version=8)
    assert sampler.sample(requests([4]), Decoding(1))[0].policy_version == 8


# ---------------------------------------------------------------- trace and policy


@torch.no_grad()
def test_trace_holds_the_distribution_of_each_token(model, tokenizer):
    (rollout,) = LocalSampler(model, tokenizer).sample(requests([5]), Decoding(10))
    steps = trace(model, tokenizer, rollout, k=len(tokenizer))
    assert [s["action_id"] for s in steps] == rollout.token_ids[5:]
    assert [s["logprob"] for s in steps] == pytest.approx(rollout.sampler_logprobs[5:], abs=1e-5)
    assert [s["is_eos"] for s in steps] == [i == tokenizer.eos_token_id for i in rollout.token_ids[5:]]
    for t, step in enumerate(steps):
        logits = model(torch.tensor([rollout.token_ids[: 5 + t]]))[0, -1]
        probs = [math.exp(x - float(logits.logsumexp(-1))) for x in logits.tolist()]
        assert (step["t"], step["prefix_ids_len"]) == (t, 5 + t)
        assert step["prefix_text"] + step["action_text"] == tokenizer.decode(rollout.token_ids[: 6 + t])
        assert step["prob"] == pytest.approx(probs[step["action_id"]], rel=1e-4, abs=1e-5)
        assert step["rank"] == 1 + sum(p > probs[step["action_id"]] for p in probs)
        assert step["entropy"] == pytest.approx(-sum(p * math.log(p) for p in probs), rel=1e-4, abs=1e-5)
        assert [e["id"] for e in step["topk"]] == sorted(range(len(probs)), key=lambda i: -probs[i])
        assert step["top_k_mass"] == pytest.approx(1, abs=1e-5)
    three = trace(model, tokenizer, rollout, k=3)
    assert [s["topk"] for s in three] == [s["topk"][:3] for s in steps]
    with pytest.raises(ValueError, match="k must be between 1 and .* 29 tokens; it is 30"):
        trace(model, tokenizer, rollout, k=30)


@torch.no_grad()
def test_policy_scores_and_samples(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path)
    policy = fiducial.load(tmp_path)
    # bos a b | c d eos: three tokens after the prompt, scored by the whole sequence.
    ids = [1, *tokenizer.encode("abcd", add_special_tokens=False), 2]
    expected = [model(torch.tensor([ids[:t]]))[0, -1].log_softmax(-1)[ids[t]] for t in (3, 4, 5)]
    torch.testing.assert_close(policy.logprobs("ab", "cd"), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.logits(torch.tensor([ids])), model(torch.tensor([ids])))
    rollouts = policy.sample(["ab", "c"], n=3, seed=1, max_new_tokens=6)
    assert [r.prompt for r in rollouts] == ["ab"] * 3 + ["c"] * 3 and [r.group for r in rollouts] == [0] * 3 + [1] * 3
    assert len({tuple(r.token_ids) for r in rollouts}) > 2
    assert rollouts == policy.sample(["ab", "c"], n=3, seed=1, max_new_tokens=6)
    for rollout in rollouts:
        if rollout.finish == "stop":
            torch.testing.assert_close(
                policy.logprobs(rollout.prompt, rollout.completion),
                torch.tensor(rollout.sampler_logprobs)[torch.tensor(rollout.mask)],
                atol=1e-4,
                rtol=0,
            )
    chat = [{"role": "user", "content": "ab"}]
    assert policy.sample(chat, max_new_tokens=3)[0].prompt == chat
    assert policy.sample("ab", max_new_tokens=3)[0].prompt == "ab"
    with pytest.raises(ValueError, match="n must be at least 1"):
        policy.sample("ab", n=0)


def test_option_logprobs_are_sums_over_an_options_tokens(model, tokenizer):
    """Against each option alone; prompts of different lengths, options of one to three tokens, and shared contexts."""
    policy = Policy(model, tokenizer)
    prompts, options = ["ab", "abcdefg.", "j"], ["a", "b", "ka", "klm"]
    found = policy.option_logprobs(prompts, options)
    for prompt, row in zip(prompts, found, strict=True):
        for option, logprob in zip(options, row, strict=True):
            assert logprob == pytest.approx(float(policy.logprobs(prompt, option)[:-1].sum()), abs=1e-4)


def test_an_option_without_a_token_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="option '' without a token"):
        Policy(model, tokenizer).option_logprobs(["ab"], ["a", ""])
