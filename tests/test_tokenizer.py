"""Trained tokenizers: what each kind splits, and that folders load anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.models.tokenizer import RESERVED, TAGS, load_tokenizer, train_tokenizer

TEXTS = ["Gus has 17 apples, don't he?", "Ana had 20 more than Gus.\n\tHow many?", "Gus has 3; Gus has 4."]


def pieces(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_bytes_round_trip_any_text(text):
    # Reserved names inside a text are read as their tokens, so only text without them can come back as text.
    tokenizer = BPE
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


BPE = train_tokenizer(TEXTS, "bpe", vocab_size=300)


def test_word_splits_punctuation_and_single_digits():
    tokenizer = train_tokenizer(TEXTS, "word", vocab_size=64)
    text = "Gus has 17 apples, don't <think>he</think>?"
    expected = ["Gus", "has", "1", "7", "apples", ",", "don", "'", "t", "<think>", "he", "</think>", "?"]
    assert pieces(tokenizer, text) == expected
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == " ".join(expected)
    assert pieces(tokenizer, "Zoe has") == ["<unk>", "has"]


def test_char_is_one_token_a_character():
    tokenizer = train_tokenizer(TEXTS, "char", vocab_size=64)
    text = " Gus  has\n\t17<answer>4</answer>"
    assert pieces(tokenizer, text) == [*" Gus  has\n\t17", "<answer>", "4", "</answer>"]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_reserved_tokens(kind):
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=300)
    assert tokenizer.convert_tokens_to_ids(RESERVED) == list(range(len(RESERVED)))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert tokenizer.encode("Gus")[0] == tokenizer.bos_token_id  # text begins with bos
    ids = tokenizer.encode("<|user|>Gus <think>", add_special_tokens=True)
    kept = tokenizer.decode(ids, skip_special_tokens=True)
    assert "<think>" in kept and "<|user|>" not in kept and "<bos>" not in kept  # tags are text, roles are not
    assert all(len(tokenizer.encode(tag, add_special_tokens=False)) == 1 for tag in TAGS)


def test_vocabulary_size_holds():
    assert len(train_tokenizer(TEXTS, "bpe", vocab_size=290)) == 290
    tokenizer = train_tokenizer(["a a a b b c"], "word", vocab_size=len(RESERVED) + 2)
    assert pieces(tokenizer, "a b c") == ["a", "b", "<unk>"]  # the most frequent stay
    with pytest.raises(ValueError, match="^vocab_size must be at least 267 for a bpe tokenizer; it is 266"):
        train_tokenizer(TEXTS, "bpe", vocab_size=266)
    with pytest.raises(ValueError, match="kind must be bpe, char or word; it is 'words'"):
        train_tokenizer(TEXTS, "words")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_saved_folder_loads_with_auto_tokenizer(kind, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        text = "<|user|>Gus had 20?<think>é</think>"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert loaded.chat_template == tokenizer.chat_template


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no model folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    BPE.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    whole = json.loads(path.read_text())
    for field, role in (("pad_token", "pad"), ("eos_token", r"stop \(eos\)")):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != field}))
        with pytest.raises(ValueError, match=f"has no {role} token; name one as {field} in tokenizer_config.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_a_tokenizer_reads_the_same_beside_any_model(tmp_path, kind):
    """Beside a Qwen2 config AutoTokenizer takes any tokenizer for Qwen's; ours must not, and beside Llama neither."""
    from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

    text = "Pia has 34. Ned has 91 fewer."
    tokenizer = train_tokenizer([text], kind, 300)
    for config in (LlamaConfig(vocab_size=300), Qwen2Config(vocab_size=300)):
        folder = tmp_path / config.model_type
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        assert load_tokenizer(folder)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "llama")(text)["input_ids"] == tokenizer(text)["input_ids"]
