"""Tokens to logits: the built-in decoder, any Hugging Face model, reward heads, adapters, tokenizers and chat."""

from fiducial.models.chat import encode, encode_prompt
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.folder import load, new, save
from fiducial.models.heads import RewardModel, load_reward_model, save_reward_model
from fiducial.models.hf import HFModel
from fiducial.models.joint import encode_joint
from fiducial.models.lora import add_lora, disabled_adapter, load_adapter, merge, save_adapter
from fiducial.models.protocol import CausalLM, device_of
from fiducial.models.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "CausalLM",
    "Decoder",
    "DecoderConfig",
    "HFModel",
    "RewardModel",
    "add_lora",
    "device_of",
    "disabled_adapter",
    "encode",
    "encode_joint",
    "encode_prompt",
    "load",
    "load_adapter",
    "load_reward_model",
    "load_tokenizer",
    "merge",
    "new",
    "save",
    "save_adapter",
    "save_reward_model",
    "train_tokenizer",
]
