"""Hugging Face model folders, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.hf import HFModel, quiet
from fiducial.models.tokenizer import load_tokenizer


def new(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A fresh decoder; its weights depend on `seed` alone, and torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(config)


def load(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Decoder | HFModel, Any]:
    """The model and the tokenizer of a Hugging Face folder, in eval mode.

    A plain Llama or Qwen2 becomes the built-in `Decoder`, anything else an `HFModel`. ValueError if the folder,
    config.json, the weights, the tokenizer, its pad or its stop token is missing, or if weights are cut short or not
    finite.
    """
    folder = Path(folder)
    stock = read_config(folder)
    if is_reward_model(stock):
        raise ValueError(
            f"{folder} is a reward model, which scores texts and writes none: `fiducial score {folder} FILE` scores "
            f"completions, `fiducial eval {folder} PAIRS` measures it"
        )
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, stock, dtype)
    check_finite(model, str(folder))
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens but the model's vocab_size is "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return model.to(device).eval(), tokenizer


def read_config(folder: Path) -> Any:
    """The stock config of a model folder."""
    from transformers import AutoConfig

    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}; give the path of a Hugging Face folder")
    if is_run(folder):
        there = "is in" if (folder / "model").is_dir() else "will be, once the run is done, in"
        raise ValueError(f"{folder} is a run's folder: the model {there} {folder / 'model'}")
    if not (folder / "config.json").is_file():
        hint = "it holds an adapter: merge it and save the model" if (folder / "adapter_config.json").is_file() else ""
        raise ValueError(f"{folder} has no config.json; {hint or 'a Hugging Face model folder has one'}")
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run, whose config.json is a recipe, rather than that of a model."""
    return (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file()


def is_reward_model(stock: Any) -> bool:
    """Whether a stock config is that of a reward model: a head that gives one number."""
    names = stock.architectures or []
    return any(name.endswith("ForSequenceClassification") for name in names) and stock.num_labels == 1


def load_model(folder: Path, stock: Any, dtype: torch.dtype, headless: bool = False) -> Decoder | HFModel:
    """The language model in `folder`, whose stock config is given; `headless`: of a folder that holds another
    head, whose language-model head is then left to be dropped."""
    weights, eos_ids = weight_files(folder), _eos_ids(folder, stock)
    try:
        config = decoder_config(stock, eos_ids)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if config is not None and weights:
        model = Decoder.empty(config, dtype)
        _fill(model, read_weights(weights), folder, headless)
    else:
        model = _load_stock(folder, weights, dtype, eos_ids, headless)
    return model


def decoder_config(stock: Any, eos_ids: tuple[int, ...]) -> DecoderConfig | None:
    """The config of the decoder that computes exactly what this stock model does; None if there is none."""
    rope = getattr(stock, "rope_parameters", None) or {}
    plain = (
        stock.model_type in ("llama", "qwen2")
        and stock.hidden_act == "silu"
        and rope.get("rope_type") == "default"
        and set(getattr(stock, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not getattr(stock, "mlp_bias", False)
        and getattr(stock, "head_dim", None) in (None, stock.hidden_size // stock.num_attention_heads)
        and getattr(stock, "quantization_config", None) is None
    )
    if not plain:
        return None
    biases = "all" if getattr(stock, "attention_bias", False) else "none"
    return DecoderConfig(
        vocab_size=stock.vocab_size,
        hidden=stock.hidden_size,
        layers=stock.num_hidden_layers,
        heads=stock.num_attention_heads,
        kv_heads=stock.num_key_value_heads,
        mlp=stock.intermediate_size,
        max_length=stock.max_position_embeddings,
        tie=stock.tie_word_embeddings,
        bias="qkv" if stock.model_type == "qwen2" else biases,
        rope_theta=rope["rope_theta"],
        norm_eps=stock.rms_norm_eps,
        pad_id=stock.pad_token_id,
        bos_id=stock.bos_token_id,
        eos_ids=eos_ids,
        previous_token_head=False,  # a matter of fresh weights only
    )


def stock_config(config: DecoderConfig) -> Any:
    """The `LlamaConfig` of a decoder, or the `Qwen2Config` where that is its layout.

    A fresh decoder is a Llama: beside a Qwen2 config `AutoTokenizer` takes any tokenizer for Qwen's own.
    """
    from transformers import LlamaConfig, Qwen2Config

    qwen2 = config.bias == "qkv"
    layout: dict[str, Any] = {} if qwen2 else {"attention_bias": config.bias == "all"}
    return (Qwen2Config if qwen2 else LlamaConfig)(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=config.tie,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.norm_eps,
        pad_token_id=config.pad_id,
        bos_token_id=config.bos_id,
        eos_token_id=config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None,
        architectures=["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        **layout,
    )


def _eos_ids(folder: Path, stock: Any) -> tuple[int, ...]:
    """Every token that ends a completion: the config's and the generation config's."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    ids: list[int] = []
    for value in (stock.eos_token_id, generation.get("eos_token_id")):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted(set(ids)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; empty where its weights are of another format."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [path for path in files if not path.is_file()]
    if missing and not index.is_file() and any(folder.glob("*.bin")):
        return []
    if missing:
        raise ValueError(f"{missing[0]} is missing; copy the model's weights there")
    return files


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of these safetensors files. ValueError where one is cut short or damaged."""
    state: dict[str, Tensor] = {}
    for path in files:
        with _open(path) as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}
    return state


def _open(path: Path) -> Any:
    """A safetensors file, whose header has been checked against its size."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); copy or save it again") from error


def _fill(model: Decoder, state: dict[str, Tensor], folder: Path, headless: bool) -> None:
    """Copy weights into a decoder; ValueError if a name is missing, unknown or of another shape."""
    own = model.state_dict()
    optional = {"lm_head.weight"} if headless or model.config.tie else set()
    foreign = {"score.weight"} if headless else set()
    state = {name: x for name, x in state.items() if not name.endswith("rotary_emb.inv_freq") and name not in foreign}
    problems = [f"{name} is missing" for name in own if name not in state and name not in optional]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {list(x.shape)}, not {list(own[name].shape)}"
        for name, x in state.items()
        if name in own and x.shape != own[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json: {problems[0]}{more}")
    model.load_state_dict(state, strict=False)


def _load_stock(
    folder: Path, weights: list[Path], dtype: torch.dtype, eos_ids: tuple[int, ...], headless: bool
) -> HFModel:
    from transformers import AutoModelForCausalLM

    for path in weights:
        _open(path)  # a damaged file is named before transformers meets it
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"the model in {folder} cannot be loaded: {error}") from error
    model, info = loaded
    names = sorted(name for name in info["missing_keys"] if not (headless and name == "lm_head.weight"))
    if names:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {names[0]} is missing ({len(names)} in all)"
        )
    return HFModel(model, eos_ids)


def check_finite(model: Any, where: str) -> None:
    """ValueError that names the first weight with NaN or infinite entries."""
    for name, x in model.state_dict().items():
        bad = int(x.numel() - x.isfinite().sum())
        if bad:
            raise ValueError(
                f"{where}: {bad} of {x.numel()} entries of the weight {name} are NaN or infinite; the model is broken"
            )


def save(model: Decoder | HFModel, tokenizer: Any, folder: str | Path) -> None:
    """Write a Hugging Face folder: config.json, generation_config.json, model.safetensors, tokenizer, chat template.

    ValueError if a weight is not finite, or if the model carries an adapter (`merge` it, or `save_adapter`).
    """
    folder = Path(folder)
    refuse_adapter(model)
    check_finite(model, f"not saved to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, HFModel):
        with quiet():
            model.model.save_pretrained(folder)
    else:
        config = with_token_ids(model.config, tokenizer)
        state = model.state_dict()
        if config.tie:
            del state["lm_head.weight"]
        write_decoder(state, stock_config(config), folder)
    tokenizer.save_pretrained(folder)


def refuse_adapter(model: nn.Module) -> None:
    """ValueError if the model carries a LoRA adapter, whose names a plain folder cannot hold."""
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the model carries an adapter; merge it before saving the model, or save the adapter alone")


def with_token_ids(config: DecoderConfig, tokenizer: Any) -> DecoderConfig:
    """The config with the tokenizer's special tokens where it names none."""
    return replace(
        config,
        pad_id=tokenizer.pad_token_id if config.pad_id is None else config.pad_id,
        bos_id=tokenizer.bos_token_id if config.bos_id is None else config.bos_id,
        eos_ids=config.eos_ids or (tokenizer.eos_token_id,),
    )


def write_decoder(state: dict[str, Tensor], stock: Any, folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors of a decoder's weights."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    stock.dtype = next(iter(state.values())).dtype
    stock.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=stock.bos_token_id, eos_token_id=stock.eos_token_id, pad_token_id=stock.pad_token_id
    ).save_pretrained(folder)
    save_file({name: x.contiguous().cpu() for name, x in state.items()}, folder / "model.safetensors", {"format": "pt"})
