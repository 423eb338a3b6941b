"""Small tokenizers trained on the spot, and any Hugging Face tokenizer folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, but plain text: verifiers read them
RESERVED = [PAD, BOS, EOS, UNK, *ROLES, *TAGS]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

# A turn is its role's token and its text. What the assistant writes, its stop token included, is marked as trained.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("the roles are system, user and assistant; a message has " ~ message.role) }}
    {%- endif %}
    {{- "<|" ~ message.role ~ "|>" }}
    {%- if message.role == "assistant" %}
        {%- generation -%}
            {{- message.content ~ eos_token -}}
        {%- endgeneration -%}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>" }}
{%- endif %}"""


def train_tokenizer(texts: Iterable[str], kind: Literal["bpe", "char", "word"] = "bpe", vocab_size: int = 512) -> Any:
    """A `PreTrainedTokenizerFast` trained on `texts`, with a chat template; text begins with `<bos>`.

    bpe: byte-level, writes any text and reads it back unchanged. char: one token a character. word: one token a word,
    punctuation mark or single digit; decoding joins them with spaces. char and word know what `texts` held (the most
    frequent first, up to `vocab_size`) and read anything else as `<unk>`.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    if kind not in ("bpe", "char", "word"):
        raise ValueError(f"kind must be bpe, char or word; it is {kind!r}")
    smallest = len(RESERVED) + (256 if kind == "bpe" else 1)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} for a {kind} tokenizer; it is {vocab_size}")
    tokenizer, trainer = _untrained(kind, vocab_size)
    tokenizer.train_from_iterator(texts, trainer)
    # Trained as special so that nothing splits them; said again as text so that decoding without specials keeps them.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _untrained(kind: str, vocab_size: int) -> tuple[Any, Any]:
    """An empty tokenizer of this kind and its trainer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    settings = {"vocab_size": vocab_size, "special_tokens": RESERVED, "show_progress": False}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    if kind == "char":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
        tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    else:  # without a decoder, tokens are joined with spaces
        marks = pre_tokenizers.Split(Regex(r"\d|[^\w\s]|_"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])  # type: ignore[assignment]
    return tokenizer, trainers.WordLevelTrainer(**settings)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a Hugging Face folder. ValueError if there is none, or it has no pad or no stop (eos) token."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}; give the path of a Hugging Face folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); save the model's tokenizer there"
        )
    settings = folder / "tokenizer_config.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    # The folder says that its tokenizer.json is all there is to it; AutoTokenizer would go by the model's kind instead.
    plain = kind in ("TokenizersBackend", "PreTrainedTokenizerFast")
    tokenizer = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(folder)
    for role, token in (("pad", tokenizer.pad_token_id), ("stop (eos)", tokenizer.eos_token_id)):
        if token is None:
            field = "pad_token" if role == "pad" else "eos_token"
            raise ValueError(
                f"the tokenizer in {folder} has no {role} token; name one as {field} in tokenizer_config.json"
            )
    return tokenizer
