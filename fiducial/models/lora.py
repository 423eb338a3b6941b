"""Low-rank adapters (Hu et al., arXiv:2106.09685), through PEFT, on the decoder and on Hugging Face models.

The adapter is injected in place: the model keeps its class and its `hidden`, `prefill` and `decode`. Only the adapter
trains; with it disabled the model is its own reference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fiducial.models.heads import RewardModel
from fiducial.models.hf import HFModel

PREFIX = "base_model.model."  # what stock PEFT puts before the names in an adapter file
M = TypeVar("M", bound=nn.Module)


def add_lora(
    model: M, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: Sequence[str] = (), seed: int = 0
) -> M:
    """Put an adapter of this rank beside linear layers, in place, and freeze everything else; returns the model.

    The adapter's output is scaled by alpha / rank. targets: last parts of layer names ("q_proj"); none given: every
    linear layer but the head. A fresh adapter changes nothing: its second factor is zero.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ValueError(f"rank must be at least 1; it is {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); it is {dropout}")
    if tuner_layers(model):
        raise ValueError("the model already carries an adapter; merge it before adding another")
    stock = stock_module(model)
    linear = _linear_names(stock)
    unknown = sorted(set(targets) - set(linear))
    if unknown:
        raise ValueError(
            f"targets names {unknown[0]!r}, which is no linear layer; there are {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=sorted(targets or linear),
        fan_in_fan_out=any(linear.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, stock)
    return model


def stock_module(model: nn.Module) -> Any:
    """The part of the model whose parameter names are Hugging Face's."""
    if isinstance(model, RewardModel):
        return stock_module(model.backbone)
    return model.model if isinstance(model, HFModel) else model


def _linear_names(stock: nn.Module) -> dict[str, bool]:
    """Last name of each linear layer but the head, and whether its weight is stored transposed (GPT-2's)."""
    from transformers.pytorch_utils import Conv1D

    names = {
        name.rpartition(".")[2]: isinstance(module, Conv1D)
        for name, module in stock.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names.pop("lm_head", None)
    return names


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that carry an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def disabled_adapter(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it would without its adapter: the frozen reference."""
    layers = list(tuner_layers(model).values())
    trainable = [p for p in model.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in trainable:
            parameter.requires_grad_(True)


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the adapter alone, as stock PEFT does: adapter_config.json and adapter_model.safetensors.

    Not for a `RewardModel`, whose score trains beside the adapter: `merge` it and save it whole.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    _need_adapter(model)
    if isinstance(model, RewardModel):
        raise ValueError("an adapter file cannot hold a reward model's score; merge the model and save it whole")
    folder, stock = Path(folder), stock_module(model)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(stock.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)
    state = get_peft_model_state_dict(stock, save_embedding_layers=False)
    tensors = {PREFIX + name: x.contiguous().cpu() for name, x in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def load_adapter(model: M, folder: str | Path, trainable: bool = True) -> M:
    """Put the adapter that `save_adapter` or stock PEFT wrote onto its base model, in place; returns the model."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give the folder of a saved adapter")
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    stock = stock_module(model)
    inject_adapter_in_model(config, stock)
    state = load_file(folder / "adapter_model.safetensors")
    result = set_peft_model_state_dict(stock, {name.removeprefix(PREFIX): x for name, x in state.items()})
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the adapter in {folder} does not fit the model: {[*missing, *result.unexpected_keys][0]} does not match"
        )
    return model


def merge(model: M) -> M:
    """A copy of the model with the adapter added into its weights: plain layers, all of which train."""
    _need_adapter(model)
    merged = copy.deepcopy(model)
    for name, layer in tuner_layers(merged).items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, layer.get_base_layer())
    del stock_module(merged).peft_config
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def _need_adapter(model: nn.Module) -> None:
    if not tuner_layers(model):
        raise ValueError("the model carries no adapter; add one with add_lora")
