"""What a run says of itself before its first step: who wrote what trains, and the memory of each component."""

import json

import pytest
import torch

from fiducial import doctor
from fiducial.config import read_recipe
from fiducial.core.types import Encoded
from fiducial.data import Dataset, Kind, ListRows
from fiducial.evals.preference_health import unbalanced
from fiducial.models import train_tokenizer
from fiducial.train.assemble import Assembly, assemble, encoder, split
from fiducial.train.preflight import memory_of, preflight, refuse_unknown
from fiducial.train.roles import ROWS, trained_by_role
from fiducial.train.runtime import Runtime
from fiducial.train.stopped import describe

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "so it is"},
]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character, so that tokens can be counted by hand."""
    return train_tokenizer(["be kind hi why so it is <think>"], "char", 60)


def counted(tokenizer, rows, kind: Kind = "demos", encode=None):
    data = Dataset(ListRows(rows), kind, encode or encoder(tokenizer), max_length=999)
    return trained_by_role(tokenizer, data)


def test_roles_of_a_chat_are_told_apart_even_where_they_say_the_same(tokenizer):
    counts, rows = counted(tokenizer, [{"messages": TALK}] * 2)
    # "hi" and a stop token, "so it is" and a stop token: 3 + 9 of each row
    assert rows == 2 and counts == {"assistant": 24, "user": 0, "system": 0}


def test_a_template_that_trains_what_the_user_says_is_found_out(tokenizer):
    def wrong(example):
        [row] = encoder(tokenizer)(example)
        return [Encoded(row.token_ids, [i >= 2 for i in range(len(row.token_ids))])]  # all but <bos><|system|>

    counts, _ = counted(tokenizer, [{"messages": TALK}], encode=wrong)
    assert counts["template"] == len("be kind") + 1 + 2 + 1 + 3 + 1 + 3 + 1 + 9  # one stretch: the text of no message

    def users(example):
        [row] = encoder(tokenizer)(example)
        user, end = tokenizer.convert_tokens_to_ids("<|user|>"), tokenizer.convert_tokens_to_ids("<|assistant|>")
        mask, inside = [], False
        for token in row.token_ids:
            inside = (inside or token == user) and token != end
            mask.append(inside and token != user)
        return [Encoded(row.token_ids, mask)]

    counts, _ = counted(tokenizer, [{"messages": TALK[3:]}], encode=users)
    assert counts == {"user": 3, "assistant": 0}  # "why"


def test_roles_of_text_pairs_and_a_cut_answer(tokenizer):
    rows = [{"prompt": "why", "completion": "so"}, {"text": "kind"}]
    assert counted(tokenizer, rows)[0] == {"prompt": 0, "completion": 3 + 5}
    pair = {"prompt": TALK[:2], "chosen": "hi", "rejected": "be kind"}
    assert counted(tokenizer, [pair], "pairs")[0] == {"system": 0, "user": 0, "assistant": 3 + 8}
    # <bos> <|user|> h i <|assistant|> so it is: of ten tokens five are left of the answer
    data = Dataset(
        ListRows([{"messages": [TALK[1], TALK[4]]}]), "demos", encoder(tokenizer), max_length=10, too_long="truncate"
    )
    assert trained_by_role(tokenizer, data)[0] == {"user": 0, "assistant": 5}


def test_a_long_file_is_looked_at_in_places(tokenizer):
    counts, rows = counted(tokenizer, [{"prompt": "why", "completion": "so"}] * (2 * ROWS))
    assert rows == ROWS and counts["completion"] == 3 * ROWS


NEW = "[model.new]\nhidden = 32\nlayers = 1\nheads = 1\nmax_length = 96\ntokenizer = 'word'\nvocab_size = 200\n"


def assembled(folder, method: str, model: str = NEW) -> Assembly:
    rows = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no no"} for i in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.toml"
    path.write_text(f"method = '{method}'\n[data]\npath = '{folder / 'pairs.jsonl'}'\n[optim]\nbatch = 4\n" + model)
    return assemble(read_recipe(path).resolved(), Runtime(), None, lambda line: None)


def test_the_reference_is_counted_whole_and_gradients_only_where_there_are_some(tmp_path):
    assembly = assembled(tmp_path, "dpo")
    parameters = list(assembly.parts.learner.parameters())
    whole = 4 * sum(p.numel() for p in parameters)  # float32
    memory = {"weights": whole, "gradients": whole, "optimizer": 2 * whole, "reference": whole, "sampler": 0}
    memory |= {"start": whole, "critics": 0}  # start: its copy, to measure the distance from
    assert memory_of(assembly) == memory
    parameters[0].requires_grad_(False)
    trained = whole - 4 * parameters[0].numel()
    assert memory_of(assembly) == {**memory, "gradients": trained, "optimizer": 2 * trained}


def test_an_adapter_has_its_reference_inside_and_several_processes_copy_the_sampler(tmp_path):
    lora = assembled(tmp_path, "dpo", NEW + "[model.lora]\nrank = 2\n")
    assert memory_of(lora)["reference"] == 0
    plain = assembled(tmp_path, "sft", NEW + "[eval]\nk = 0\n")
    plain.parts.runtime = Runtime(world=2)
    assert memory_of(plain)["sampler"] == 0
    plain.sampler = object()  # type: ignore[assignment]
    assert memory_of(plain)["sampler"] == memory_of(plain)["weights"]


def test_the_sample_of_the_data_can_be_left_out(tmp_path):
    assembly = assembled(tmp_path, "dpo")
    shown, hidden = (preflight(assembly, False, sample).lines for sample in (True, False))
    assert any("say" in line for line in shown) and hidden == shown[: len(hidden)] and len(hidden) == len(shown) - 2


# -- what is held out --------------------------------------------------------------------------------------------------


def held(folder, method, rows, n):
    """The numbers of the rows that a run of this method holds out."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "held.toml"
    path.write_text(f"method = '{method}'\n[data]\npath = '{folder / 'rows.jsonl'}'\n[optim]\nbatch = 4\n" + NEW)
    run = read_recipe(path, {"eval": {"n": n, "k": 0}}).resolved()
    assembly = assemble(run, Runtime(), None, lambda line: None)
    kept, out = split(run, assembly.data, False)
    assert kept is not None and sorted(kept + out) == list(range(len(assembly.data)))
    return {assembly.data.row(j) for j in out}


def test_exactly_as_many_rows_are_held_out_as_were_asked_for_and_the_same_by_every_method(tmp_path):
    """min(n, a fifth) of the rows; more of them with a larger n, never others. Rows that train by one method only keep
    their place: of 60 every third is a tie, which `dpo` drops and which the labels of `kto` and the texts ignore."""
    rows = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no no"} for i in range(60)]
    for n, number in ((1, 1), (7, 7), (12, 12), (13, 12), (100, 12)):
        assert len(held(tmp_path, "dpo", rows, n)) == number
    assert held(tmp_path, "dpo", rows, 3) < held(tmp_path, "dpo", rows, 9)
    assert (
        held(tmp_path, "dpo", rows, 9) == held(tmp_path, "kto", rows, 9) == held(tmp_path, "bt_reward_model", rows, 9)
    )
    tied = [{"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"], "rating": 2 * (i % 3 > 0)}
            for i, r in enumerate(rows)]  # fmt: skip
    assert held(tmp_path, "dpo", tied, 9) == {i for i in held(tmp_path, "dpo", rows, 9) if i % 3}


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted, unwanted, weights, advice",
    [
        (100, 100, (1, 1), ""),
        (150, 100, (1, 1), ""),
        (160, 100, (1, 1), "set hparams.lambda_d = 1 and hparams.lambda_u = 1.067"),  # 1.6 / 1.5
        (99, 100, (1, 1), "set hparams.lambda_d = 1.01 and hparams.lambda_u = 1"),  # 100 / 99
        (100, 400, (4, 1), ""),
        (100, 400, (1, 1), "set hparams.lambda_d = 4 and hparams.lambda_u = 1"),
        (100, 100, (1, 2), "set hparams.lambda_d = 1 and hparams.lambda_u = 1"),
        (5, 0, (1, 1), "add some that are unwanted"),
        (0, 5, (1, 1), "add some that are wanted"),
    ],
)
def test_labels_of_unequal_weight_are_told_with_the_weights_to_set(wanted, unwanted, weights, advice):
    """lambda_d n_d / (lambda_u n_u) should lie in [1, 3/2]."""
    labels = {"wanted": float(wanted), "unwanted": float(unwanted)}
    found = unbalanced(labels, {"beta": 0.1, "lambda_d": weights[0], "lambda_u": weights[1]})
    assert (found is None) if not advice else found is not None and advice in found[1]
    assert unbalanced({}, {"lambda_d": 1.0, "lambda_u": 1.0}) is None and unbalanced(labels, {"beta": 0.1}) is None


def test_the_preflight_and_the_doctor_look_at_labels(tmp_path):
    rows = [{"prompt": f"say {i}", "completion": f"yes {i}", "label": i < 10} for i in range(40)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "kto.toml"
    path.write_text(f"method = 'kto'\n[data]\npath = '{tmp_path / 'labels.jsonl'}'\n[optim]\nbatch = 4\n" + NEW)
    look = preflight(assemble(read_recipe(path).resolved(), Runtime(), None, lambda line: None), False)
    (line,) = [line for line in look.lines if "unbalanced" in line]
    assert "10 wanted and 30 unwanted completions weigh 10 to 30" in line and "lambda_d = 3" in line
    (found,) = [f for f in doctor.read_recipe(path) if "unwanted" in f.what]
    assert found.severity == "warning" and found.advice == "set hparams.lambda_d = 3 and hparams.lambda_u = 1"
    assert not [f for f in doctor.read_recipe(path, {"hparams": {"lambda_d": 3.0}}) if "unwanted" in f.what]


def test_the_doctor_calls_it_an_error_if_most_rows_do_not_train(tmp_path):
    rows = [
        {"prompt": f"say {i}", "response_a": f"yes {i}", "response_b": "no no", "rating": 0 if i < 21 else 1}
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "dpo.toml"
    path.write_text(f"method = 'dpo'\n[data]\npath = '{tmp_path / 'rows.jsonl'}'\n[optim]\nbatch = 4\n" + NEW)
    (found,) = [f for f in doctor.read_recipe(path) if f.severity == "error"]
    assert "21 of 40 rows (52%) are skipped: tie 21" in found.what and "data.ties" in found.advice
    assert not [f for f in doctor.read_recipe(path, {"data": {"ties": "half"}}) if f.severity == "error"]


def test_the_doctor_tells_that_certain_pairs_have_no_optimum(tmp_path):
    path = tmp_path / "online.toml"
    path.write_text("method = 'online_direct'\ntask = 'arith'\n[data]\nrows = 20\n[optim]\nbatch = 2\n[sampling]\n"
                    "n = 2\nmax_new_tokens = 4\n" + NEW)  # fmt: skip

    def told(**over):
        return [f for f in doctor.read_recipe(path, over) if "no finite optimum" in f.what]

    assert [f.severity for f in told()] == ["info"] and "kl.weight" in told()[0].advice
    for over in (
        {"kl": {"weight": 0.1}},
        {"hparams": {"loss": "ipo"}},
        {"hparams": {"pair_rule": "random_two_labelled"}},
    ):
        assert not told(**over)


def test_the_advice_on_unknown_text_is_of_the_recipes_own_settings(tmp_path):
    assembly = assembled(tmp_path, "dpo")
    refuse_unknown(assembly)
    for name, value in (("tokens", 100), ("unknown", 20)):
        object.__setattr__(assembly.data.report, name, value)
    refuse_unknown(assembly)  # 20 % may be
    object.__setattr__(assembly.data.report, "unknown", 21)
    with pytest.raises(
        ValueError, match=r'21% of its tokens are unknown.*model.new.tokenizer = "bpe".*vocab_size = 200'
    ):
        refuse_unknown(assembly)


def test_why_a_run_stopped_in_one_line_and_in_full():
    with pytest.raises(RuntimeError) as caught:
        torch.matmul(torch.zeros(2), torch.zeros(3))
    stop = describe(caught.value, 7)
    assert (stop["step"], stop["kind"]) == (7, "RuntimeError") and stop["reason"].startswith("RuntimeError: ")
    assert "torch.matmul(torch.zeros(2), torch.zeros(3))" in stop["detail"] and "traceback" in stop["advice"]
    full = describe(OSError(28, "the disk is full: cannot write x"), 3)
    assert "the disk is full" in full["reason"] and "--resume" in full["advice"]
