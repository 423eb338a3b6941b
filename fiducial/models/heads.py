"""A number in place of the next token: reward models and critics on a language model's trunk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fiducial.models import folder as folders
from fiducial.models.decoder import Decoder
from fiducial.models.hf import HFModel, quiet
from fiducial.models.tokenizer import load_tokenizer

Reads = Literal["completion", "pair"]


class RewardModel(nn.Module):
    """A language model whose head gives one number: the score of a text, read at its last token.

    It takes over `backbone`, whose language-model head is dropped. The score's weights begin normal with standard
    deviation 1 / sqrt(D + 1) (Stiennon et al. 2020, arXiv:2009.01325); no bias is trained, as in Hugging Face's
    `...ForSequenceClassification`, the format it is saved in; `rescale` may set one. `values` gives every position its
    number (a critic, or the scores of steps). `reads` says what a text is: a prompt with one completion, or with two of
    which the first is scored against the second (`encode_joint`).
    """

    def __init__(self, backbone: Decoder | HFModel, seed: int = 0, reads: Reads = "completion"):
        super().__init__()
        width = _drop_head(backbone)
        like = next(iter(backbone.parameters()))
        weight = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)
        self.backbone = backbone
        self.score = nn.Linear(width, 1, bias=False, device=like.device, dtype=like.dtype)
        self.score.weight.data.copy_(weight)
        self.reads: Reads = reads
        self.bias = 0.0

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Score of each row at its last real token: input_ids [B, L] right-padded, lengths [B] -> [B]."""
        hidden = self.backbone.hidden(input_ids)
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        with torch.autocast(last.device.type, enabled=False):  # in bfloat16 a score of 8 moves in steps of 1/16
            return self.score(last.to(self.score.weight.dtype)).squeeze(-1) + self.bias

    def values(self, input_ids: Tensor) -> Tensor:
        """A number for every position: input_ids [B, L] -> [B, L]."""
        return self.score(self.backbone.hidden(input_ids)).squeeze(-1) + self.bias

    @torch.no_grad()
    def rescale(self, shift: float, scale: float = 1.0) -> None:
        """From now on every score r is (r - shift) / scale: the head takes up both. ValueError unless scale > 0."""
        if not (math.isfinite(shift) and 0 < scale < math.inf):
            raise ValueError(
                f"scores are shifted by a finite number and divided by a positive one; not {shift}, {scale}"
            )
        self.score.weight /= scale
        self.bias = (self.bias - shift) / scale

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.backbone.set_gradient_checkpointing(on)


def _drop_head(backbone: Decoder | HFModel) -> int:
    """Remove the language-model head; returns the width of the states it read."""
    if isinstance(backbone, Decoder):
        backbone.lm_head = nn.Identity()  # type: ignore[assignment]
        return backbone.config.hidden
    width = backbone.model.get_output_embeddings().weight.shape[1]
    backbone.model.set_output_embeddings(nn.Identity())
    return width


def save_reward_model(model: RewardModel, tokenizer: Any, folder: str | Path) -> None:
    """Write a Hugging Face folder that `AutoModelForSequenceClassification` loads with equal scores.

    Its stock class finds the last token by the pad token, so rows must be padded with the tokenizer's. It knows no
    bias either: config.json holds that as `score_bias`, by which the stock scores of a model that was rescaled are too
    low, and what the model reads as `score_reads`, "completion" or "pair".
    """
    from transformers import AutoModelForSequenceClassification

    folder = Path(folder)
    folders.refuse_adapter(model)
    folders.check_finite(model, f"not saved to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    weight = model.score.weight.detach()
    own = {"score_bias": model.bias, "score_reads": model.reads}
    if isinstance(model.backbone, Decoder):
        stock = folders.stock_config(folders.with_token_ids(model.backbone.config, tokenizer))
        stock.architectures = [stock.architectures[0].replace("ForCausalLM", "ForSequenceClassification")]
        stock.num_labels = 1
        stock.update(own)
        folders.write_decoder({**model.backbone.state_dict(), "score.weight": weight}, stock, folder)
    else:
        stock = model.backbone.model
        config = type(stock.config).from_dict({**stock.config.to_dict(), "num_labels": 1, **own})
        config.pad_token_id = tokenizer.pad_token_id
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=weight.dtype)
        classifier.base_model.load_state_dict(stock.base_model.state_dict())
        classifier.score.weight.data.copy_(weight)
        with quiet():
            classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_reward_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    reads: Reads = "completion",
) -> tuple[RewardModel, Any]:
    """The reward model and tokenizer of a `...ForSequenceClassification` folder with one label, in eval mode.

    ValueError if it is none, or if it does not read what the caller is about to give it.
    """
    folder = Path(folder)
    stock = folders.read_config(folder)
    if not folders.is_reward_model(stock):
        raise ValueError(
            f"{folder} is no reward model: its config.json names {stock.architectures} with {stock.num_labels} labels"
        )
    if score_reads(stock) != reads:
        what = {"completion": "scores single completions", "pair": "compares two completions and scores no single one"}
        raise ValueError(f"the model in {folder} {what[score_reads(stock)]}, which is not what is asked of it here")
    tokenizer = load_tokenizer(folder)
    backbone = folders.load_model(folder, stock, dtype, headless=True)
    weight = folders.read_weights(folders.weight_files(folder)).get("score.weight")
    if weight is None:
        raise ValueError(f"the weights in {folder} hold no score.weight; only heads of that name are supported")
    model = RewardModel(backbone, reads=reads)
    model.score.weight.data.copy_(weight)
    model.bias = float(getattr(stock, "score_bias", 0.0))
    folders.check_finite(model, str(folder))
    return model.to(device).eval(), tokenizer


def score_reads(stock: Any) -> Reads:
    """What the reward model with this stock config reads; of folders that others wrote, single completions."""
    return getattr(stock, "score_reads", "completion")
