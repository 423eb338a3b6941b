"""TRL's trainers as far as their losses read them, and a model with given logits, which both libraries can call."""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import pad

PAD, VOCAB = 0, 9  # tokens are 1 to 8


class Texts(torch.nn.Module):
    """A model with given logits [R, L, V], one row per text. Texts are found by their tokens, so the same logits are
    found under any order, padding or cut of a batch, and gradients arrive at one tensor."""

    is_gradient_checkpointing = False  # TRL asks

    def __init__(self, texts: list[list[int]], logits: Tensor):
        super().__init__()
        self.places, self.logits = {tuple(text): i for i, text in enumerate(texts)}, logits

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Logits at every position, [B, L, V]; zeros on padding, which may be on either side. Fiducial's model."""
        rows = []
        for ids in input_ids:
            text = ids[ids != PAD]
            left = int((ids != PAD).int().argmax())
            given = self.logits[self.places[tuple(text.tolist())], : len(text)]
            rows.append(pad(given, (0, 0, left, len(ids) - left - len(text))))
        return torch.stack(rows)

    def head(self, hidden: Tensor) -> Tensor:
        """The head of Fiducial's model: what is hidden are the logits themselves."""
        return hidden

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_):
        """TRL's model. The log-probs are TRL's own, in the precision of the logits: its fused head is float32 only."""
        from trl.trainer.utils import FusedCausalLMOutput, entropy_from_logits, selective_log_softmax

        logits = self.hidden(input_ids)
        if labels is None:
            return SimpleNamespace(logits=logits)
        logits, labels = logits[:, :-1], labels[:, 1:]
        mask = labels != -100
        return FusedCausalLMOutput(
            log_probs=selective_log_softmax(logits, labels.clamp(min=0), row_mask=mask.int()),
            entropy=entropy_from_logits(logits).masked_fill(~mask, 0.0).detach(),
            mean_logits=logits.mean(-1).detach(),
            is_top1=(logits.argmax(-1) == labels) & mask,
            label_mask=mask,
        )


class Scorer:
    """A reward model with given scores [R], found like the logits of `Texts`."""

    training = True

    def __init__(self, texts: list[list[int]], scores: Tensor):
        self.places, self.scores = {tuple(text): i for i, text in enumerate(texts)}, scores

    def __call__(self, input_ids: Tensor, lengths: Tensor | None = None, **_):
        """Scores [B] for Fiducial, which says how long rows are; an output with logits [B, 1] for TRL."""
        rows = [self.places[tuple(ids[ids != PAD].tolist())] for ids in input_ids]
        scores = self.scores[rows]
        return SimpleNamespace(logits=scores[:, None]) if lengths is None else scores


class Alone:
    """The accelerator of one process."""

    device = torch.device("cpu")
    num_processes, process_index, is_main_process, parallelism_config = 1, 0, True, None
    autocast = staticmethod(nullcontext)

    def gather(self, x):
        return x

    def gather_for_metrics(self, x):
        return x

    def reduce(self, x, reduction):
        return x


def trainer(kind, model, **settings):
    """A trainer of TRL that was never started: the attributes its loss reads, and none else."""
    made = object.__new__(kind)
    vars(made).update(
        model=model,
        accelerator=Alone(),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _stored_metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    return made


def dpo(kind, model, ref, *, loss_type=("sigmoid",), loss_weights=None, beta=0.1, label_smoothing=0.0,
        f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5):  # fmt: skip
    """DPOTrainer with its configuration's defaults."""
    return trainer(
        kind, model, ref_model=ref, args=SimpleNamespace(gradient_checkpointing_kwargs=None), ld_alpha=None,
        precompute_ref_logps=False, use_weighting=False, loss_types=loss_type,
        loss_weights=loss_weights or [1.0] * len(loss_type), beta=beta, label_smoothing=label_smoothing,
        f_divergence_type=f_divergence_type, f_alpha_divergence_coef=f_alpha_divergence_coef,
    )  # fmt: skip


def kto(kind, model, ref, *, loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """KTOTrainer with its configuration's defaults."""
    return trainer(
        kind, model, ref_model=ref, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        precompute_ref_logps=False, calculate_KL=loss_type == "kto", loss_type=loss_type, beta=beta,
        desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
    )  # fmt: skip


def cpo(kind, model, *, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0, simpo_gamma=0.5, label_smoothing=0.0):
    """CPOTrainer with its configuration's defaults."""
    return trainer(
        kind, model, is_encoder_decoder=False, pad_token_id=PAD, _peft_has_been_casted_to_bf16=False, alpha=0.0,
        loss_type=loss_type, beta=beta, cpo_alpha=cpo_alpha, simpo_gamma=simpo_gamma, label_smoothing=label_smoothing,
    )  # fmt: skip


def orpo(kind, model, *, beta=0.1):
    """ORPOTrainer; beta is the paper's lambda."""
    return trainer(
        kind, model, is_encoder_decoder=False, padding_value=PAD, _peft_has_been_casted_to_bf16=False, beta=beta,
        args=SimpleNamespace(device="cpu"),
    )  # fmt: skip


def sft(kind, model):
    """SFTTrainer with its configuration's defaults."""
    args = SimpleNamespace(loss_type="nll", average_tokens_across_devices=False)
    return trainer(kind, model, args=args, compute_loss_func=None, label_smoother=None)


def sampled(kind, model, rollouts, rewards, num_generations, **settings):
    """GRPOTrainer or RLOOTrainer that "generates" `rollouts`, (prompt, completion) in ids, and earns `rewards` [N]."""
    columns = [[prompt for prompt, _ in rollouts], [completion for _, completion in rollouts]]
    texts = ["" for _ in rollouts]
    made = trainer(
        kind, model, num_generations=num_generations, num_iterations=1, use_vllm=False, environments=None,
        environment_factories=None, tools=None, mask_truncated_completions=False, pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=PAD), reward_funcs=[None], reward_func_names=["given"],
        reward_weights=torch.ones(1), reward_clip_range=None, log_multimodal=False, _pending_extra_logs={},
        _pending_metrics={}, _logs=defaultdict(list, rewards=defaultdict(list)), **settings,
    )  # fmt: skip
    made._calculate_rewards = lambda *_: rewards[:, None]
    made._generate = lambda _: (*columns, texts)
    return made


def grpo(kind, model, rollouts, rewards, num_generations, *, ref=None, beta=0.0, loss_type="dapo", epsilon=0.2,
         epsilon_high=None, scale_rewards="group", importance_sampling_level="token", max_completion_length=512,
         accumulation=1, steps_per_generation=1):  # fmt: skip
    """GRPOTrainer with its configuration's defaults."""
    args = SimpleNamespace(
        steps_per_generation=steps_per_generation, gradient_accumulation_steps=accumulation, delta=None,
        per_device_train_batch_size=64, gradient_checkpointing_kwargs=None, use_bias_correction_kl=False,
    )  # fmt: skip
    made = sampled(
        kind, model, rollouts, rewards, num_generations, args=args, ref_model=ref, beta=beta, loss_type=loss_type,
        epsilon_low=epsilon, epsilon_high=epsilon_high or epsilon, scale_rewards=scale_rewards,
        importance_sampling_level=importance_sampling_level, max_completion_length=max_completion_length,
        multi_objective_aggregation="sum_then_normalize", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        vllm_importance_sampling_correction=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    generate = made._generate
    made._generate = lambda prompts: (*generate(prompts)[:2], None, generate(prompts)[2], None, {}, None, None)
    return made


def rloo(kind, model, rollouts, rewards, num_generations, *, ref=None, beta=0.0, epsilon=0.2,
         normalize_advantages=False):  # fmt: skip
    """RLOOTrainer with its configuration's defaults, save that its beta is 0.05."""
    args = SimpleNamespace(per_device_train_batch_size=64, gradient_checkpointing_kwargs=None)
    return sampled(
        kind, model, rollouts, rewards, num_generations, args=args, ref_model=ref, beta=beta, epsilon_low=epsilon,
        epsilon_high=epsilon, normalize_advantages=normalize_advantages,
    )  # fmt: skip


def rollouts_of(made) -> dict[str, Tensor]:
    """What the trainer makes of its rollouts and rewards: the inputs of its loss, advantages among them."""
    return made._generate_and_score_completions([{"prompt": ""} for _ in made._calculate_rewards()])


def rows(inputs: dict[str, Tensor], where: slice) -> dict[str, Tensor]:
    """A micro-batch of them."""
    return {name: x[where] if x.ndim else x for name, x in inputs.items()}
