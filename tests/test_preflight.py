"""What a run says of itself before its first step: who wrote what trains, and the memory of each component."""

import json

import pytest
import torch

from fiducial.config import read_recipe
from fiducial.core.types import Encoded
from fiducial.data import Dataset, Kind, ListRows
from fiducial.models import train_tokenizer
from fiducial.train.assemble import Assembly, assemble, encoder
from fiducial.train.preflight import memory_of, refuse_unknown
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
    memory["start"] = whole  # its copy, to measure the distance from
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
