"""A number in place of the next token: reward models and critics on a language model's trunk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.models import folder as folders
from fiducial.models.decoder import Decoder
from fiducial.models.hf import HFModel, quiet
from fiducial.models.tokenizer import load_tokenizer


class RewardModel(nn.Module):
    """A language model whose head gives one number: the score of a text, read at its last token.

    It takes over `backbone`, whose language-model head is dropped. The score's weights begin normal with standard
    deviation 1 / sqrt(D + 1) (Stiennon et al. 2020, arXiv:2009.01325); there is no bias, as in Hugging Face's
    `...ForSequenceClassification`, the format it is saved in. `values` gives every position its number (a critic, or
    the scores of steps).
    """

    def __init__(self, backbone: Decoder | HFModel, seed: int = 0):
        super().__init__()
        width = _drop_head(backbone)
        like = next(iter(backbone.parameters()))
        weight = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)
        self.backbone = backbone
        self.score = nn.Linear(width, 1, bias=False, device=like.device, dtype=like.dtype)
        self.score.weight.data.copy_(weight)

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Score of each row at its last real token: input_ids [B, L] right-padded, lengths [B] -> [B]."""
        hidden = self.backbone.hidden(input_ids)
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        with torch.autocast(last.device.type, enabled=False):  # in bfloat16 a score of 8 moves in steps of 1/16
            return self.score(last.to(self.score.weight.dtype)).squeeze(-1)

    def values(self, input_ids: Tensor) -> Tensor:
        """A number for every position: input_ids [B, L] -> [B, L]."""
        return self.score(self.backbone.hidden(input_ids)).squeeze(-1)

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

    Its stock class finds the last token by the pad token, so rows must be padded with the tokenizer's.
    """
    from transformers import AutoModelForSequenceClassification

    folder = Path(folder)
    folders.refuse_adapter(model)
    folders.check_finite(model, f"not saved to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    weight = model.score.weight.detach()
    if isinstance(model.backbone, Decoder):
        stock = folders.stock_config(folders.with_token_ids(model.backbone.config, tokenizer))
        stock.architectures = [stock.architectures[0].replace("ForCausalLM", "ForSequenceClassification")]
        stock.num_labels = 1
        folders.write_decoder({**model.backbone.state_dict(), "score.weight": weight}, stock, folder)
    else:
        stock = model.backbone.model
        config = type(stock.config).from_dict({**stock.config.to_dict(), "num_labels": 1})
        config.pad_token_id = tokenizer.pad_token_id
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=weight.dtype)
        classifier.base_model.load_state_dict(stock.base_model.state_dict())
        classifier.score.weight.data.copy_(weight)
        with quiet():
            classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_reward_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[RewardModel, Any]:
    """The reward model and tokenizer of a `...ForSequenceClassification` folder with one label, in eval mode."""
    folder = Path(folder)
    stock = folders.read_config(folder)
    if not folders.is_reward_model(stock):
        raise ValueError(
            f"{folder} is no reward model: its config.json names {stock.architectures} with {stock.num_labels} labels"
        )
    tokenizer = load_tokenizer(folder)
    backbone = folders.load_model(folder, stock, dtype, headless=True)
    weight = folders.read_weights(folders.weight_files(folder)).get("score.weight")
    if weight is None:
        raise ValueError(f"the weights in {folder} hold no score.weight; only heads of that name are supported")
    model = RewardModel(backbone)
    model.score.weight.data.copy_(weight)
    folders.check_finite(model, str(folder))
    return model.to(device).eval(), tokenizer
