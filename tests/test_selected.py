"""Online and self-play methods in the loop: what is sampled, chosen, compared with; anchors that move and resume."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fiducial.config import Run, Sampling, from_table
from fiducial.core import anchors, selection
from fiducial.core.method import Choice
from fiducial.core.seeds import mix
from fiducial.core.types import Encoded
from fiducial.evals.health import read_run
from fiducial.exact.tables import SoftmaxTable
from fiducial.methods import METHODS
from fiducial.train import replay, train
from fiducial.train.anchors import Anchor
from fiducial.train.feeds import last_turn
from fiducial.train.learner import Learner
from fiducial.train.runtime import Runtime

SMALL = {
    "task": "arith",
    "steps": 4,
    "model": {"new": {"hidden": 16, "layers": 1, "heads": 2, "max_length": 64, "tokenizer": "word"}},
    "data": {"rows": 40, "difficulty": {"style": "sum", "max_number": 30, "steps": 1}},
    "optim": {"batch": 4, "lr": 1e-3},
    "sampling": {"n": 3, "max_new_tokens": 6},
    "eval": {"n": 4, "k": 1},
    "checkpoint": {"every": 1, "keep": 9},
}
LENGTH = """def reward(completion, **fields):
    return float(len(completion))
"""


def small(method: str, **changes) -> Run:
    return from_table(Run, {**SMALL, "method": method, **changes})


def quiet(run: Run, out, **more):
    return train(run, out=out, show=False, tell=lambda line: None, **more)


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def judged(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(LENGTH)
    return f"{tmp_path / 'mine.py'}:reward"


def test_a_run_that_selects_nothing_says_so_at_its_end(tmp_path):
    """Completions that all earn the same make no pair by best and worst."""
    (tmp_path / "same.py").write_text("def reward(completion, **fields):\n    return 0.0\n")
    lines: list[str] = []
    run = small("online_direct", reward=f"{tmp_path / 'same.py'}:reward")
    out = train(run, out=tmp_path / "run", show=False, tell=lines.append)
    assert [m["selection/examples"] for m in metrics(out) if "selection/examples" in m] == [0] * 4
    (told,) = [line for line in lines if "nothing was selected" in line]
    assert "in any of the 4 steps" in told and "each prompt earn the same" in told
    assert any(f.severity == "error" and "nothing was selected" in f.what for f in read_run(out))


def test_the_policy_enters_an_anchor_by_its_share():
    """Theta 1 and anchor 0: after shares a, a the anchor holds a + (1 - a) a; a hard update takes all of it."""
    policy, frozen = Learner(SoftmaxTable(torch.ones(1, 2))), Learner(SoftmaxTable(torch.zeros(1, 2)))
    anchor = Anchor(frozen, moves=True)
    for expected in (0.6, 0.6 + 0.4 * 0.6):
        anchor.move(policy, 0.6, Runtime())
        assert torch.allclose(next(frozen.parameters()).double(), torch.tensor(expected).double())
    anchor.move(policy, 1.0, Runtime())
    assert torch.equal(next(frozen.parameters()), next(policy.parameters()))


def test_rounds_divide_the_steps():
    assert [step for step in range(10) if anchors.rounds(step, 10, iterations=3)] == [4, 8]
    assert not any(anchors.rounds(step, 10, iterations=1) for step in range(10))


def test_the_last_turn_of_a_chat_is_sampled_anew():
    assert last_turn(Encoded([1, 2, 3, 4, 5, 6], [False, True, False, False, True, True])) == 4


def test_the_rule_that_labels_by_a_coin_follows_bradley_terry():
    """Rewards 1 and 0: the first is chosen where the coin is below sigmoid(1) = 0.731, whichever is drawn first."""
    rewards = torch.tensor([1.0, 0.0])
    for order in ([0.1, 0.2], [0.2, 0.1]):
        for coin in (0.0, 0.2, 0.3, 0.7, 0.74, 0.99):
            draws = torch.tensor([*order, coin])
            (choice,) = selection.by_rule(rewards, draws, pair_rule="random_two_labelled")
            first = 0 if order[0] < order[1] else 1
            wins = coin < torch.sigmoid(rewards[first] - rewards[1 - first])
            assert choice == Choice((first, 1 - first) if wins else (1 - first, first))


def test_best_and_worst_of_equal_rewards_make_no_pair():
    assert selection.by_rule(torch.ones(4), torch.rand(5)) == []
    assert selection.by_rule(torch.tensor([0.0, 0.5]), torch.rand(3), skip_if_score_gap_below=0.6) == []
    assert selection.best(torch.tensor([0.2, 0.9, 0.5]), keep=2, min_reward=0.3) == [Choice((1,)), Choice((2,))]


def test_spin_meets_its_opponent_where_it_began_each_round(tmp_path):
    """Four steps, two rounds: before step 3 the opponent becomes the policy, so the loss is log 2 at steps 1 and 3."""
    run = small("spin", hparams={"iterations": 2}, sampling={"n": 1, "max_new_tokens": 6})
    losses = {row["step"]: row["loss"] for row in metrics(quiet(run, tmp_path / "r")) if "loss" in row}
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6) and losses[3] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses[2] - math.log(2)) > 1e-5 and abs(losses[4] - math.log(2)) > 1e-5


def test_an_anchor_that_moved_is_where_it_was_after_a_resume(tmp_path):
    run = small("spin", hparams={"iterations": 2}, sampling={"n": 1, "max_new_tokens": 6})
    whole = quiet(run, tmp_path / "whole")
    part = quiet(run, tmp_path / "part")
    for step in (4, 5):
        for path in (part / "checkpoints").glob(f"step-{step:06d}"):
            (path / "state.pt").write_bytes(b"cut")
    quiet(run, part, resume=True)
    journals = [(folder / "journal.jsonl").read_text() for folder in (whole, part)]
    assert journals[0] == journals[1]
    assert replay.replay(whole, 4)["max_grad_error"] == 0


@pytest.mark.parametrize("method", ["online_direct", "online_ipo", "rejection_sampling", "llama3_loop"])
def test_what_the_selection_chooses_is_what_trains(tmp_path, judged, method):
    """The reward is a completion's length in characters: the chosen (kept) one of each prompt is its longest."""
    run = small(method, reward=judged, steps=2)
    folder = quiet(run, tmp_path / "r")
    rows = metrics(folder)
    first = next(row for row in rows if "loss" in row)
    assert first["selection/examples"] > 0 and math.isfinite(first["loss"])
    if method in ("online_direct", "llama3_loop"):
        assert first["pair/score_gap"] > 0
    if method == "online_direct":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its own reference at first


def test_no_reward_is_taken_by_a_method_that_judges_nothing(judged):
    with pytest.raises(ValueError, match="spin judges no completions and takes no reward"):
        small("spin", reward=judged).resolved()


def test_a_soft_move_of_an_adapters_reference_is_refused(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"{i} a", "chosen": "b c", "rejected": "d"}) for i in range(12)))
    table = {**SMALL, "method": "tr_dpo", "task": "", "data": {"path": str(pairs)}, "hparams": {"sync_steps": 2}}
    table["model"] = {**SMALL["model"], "lora": {"rank": 2}}
    with pytest.raises(ValueError, match="hparams.alpha = 1"):
        quiet(from_table(Run, table), tmp_path / "soft")
    table["hparams"] = {"sync_steps": 2, "alpha": 1.0}
    losses = [row["loss"] for row in metrics(quiet(from_table(Run, table), tmp_path / "hard")) if "loss" in row]
    assert losses[2] == pytest.approx(math.log(2), abs=1e-6) and losses[1] != losses[2]


def test_each_prompt_has_draws_of_its_own():
    """Draws depend on the seed, the step and the prompt's place alone."""
    seeds = {mix(0, "selection", step, place) for step in range(5) for place in range(5)}
    assert len(seeds) == 25


def test_a_ranking_stays_together_in_a_step():
    """Rows of three pairs each, shuffled: every run of three examples comes from one row."""
    from fiducial.train.feeds import Order

    class Rows:
        kind = "pairs"

        def row(self, j: int) -> int:
            return j // 3

        def __len__(self) -> int:
            return 12

    taken = Order(Rows(), seed=1).take(0, 24)  # type: ignore[arg-type]
    assert sorted(taken[:12]) == list(range(12)) and taken[:12] != taken[12:]
    assert all(len({j // 3 for j in taken[i : i + 3]}) == 1 for i in range(0, 24, 3))


def test_sampling_under_the_reference_uses_the_references_weights():
    method = METHODS["spin"]
    assert method.sampled_by == "ref" and method.kind == "demos" and method.samples and not method.judged
    with pytest.raises(ValueError, match="anchors must say how 'ref' moves"):
        replace(method, anchors={})
    assert replace(small("spin"), sampling=Sampling(n=1)).resolved().hparams["iterations"] == 3


def test_what_a_method_is_about_must_be_in_the_data(tmp_path):
    """Plain comparisons have no harm labels and no ties; KTO's mean over mismatched completions needs two examples."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"{i} a", "chosen": "b c", "rejected": "d"}) for i in range(12)))
    table = {**SMALL, "task": "", "data": {"path": str(pairs)}, "steps": 1}
    for method, message in (
        ("cost_model", "no row says whether a response does harm"),
        ("tie_model", "no row is a tie"),
    ):
        with pytest.raises(ValueError, match=message):
            quiet(from_table(Run, {**table, "method": method}), tmp_path / method)
    one = {**table, "method": "kto", "optim": {"batch": 1}}
    with pytest.raises(ValueError, match="set optim.batch to 2 or more"):
        from_table(Run, one).resolved()
    held = {**table, "method": "kto", "eval": {"n": 1, "k": 1}}  # one row held out, of which no mean can be taken
    assert any("eval/loss" in row for row in metrics(quiet(from_table(Run, held), tmp_path / "kto")))
