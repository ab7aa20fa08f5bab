"""The language model: loading (dtype, attention, 4-bit, LoRA) and per-row loss."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from seal.errors import InputError
from seal.models.attention import choose_attention
from seal.models.loss import head_losses, sum_by_row

if TYPE_CHECKING:
    from seal.datasets import Batch

MAIN, TRACKER = "default", "tracker"  # names of the two LoRA adapters
# Configurations that transform the logits after the head; their losses need the logits themselves.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class ModelSettings:
    """What to load and how; the fields are the flags of the same names.

    Attributes:
        pretrain: directory or hub name.
        bf16: weights in bfloat16, else float32.
        flash_attn: use the flash-attn package where it can run.
        attn_implementation: a transformers attention name that overrides the choice.
        load_in_4bit: QLoRA's 4-bit frozen base (needs bitsandbytes and CUDA).
        lora_rank: 0 trains every weight.
        aux_loss_coef: above 0, a mixture of experts reports its balance loss.
        gradient_checkpointing: recompute each layer in backward.
    """

    pretrain: str
    bf16: bool = False
    flash_attn: bool = False
    attn_implementation: str | None = None
    load_in_4bit: bool = False
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"
    aux_loss_coef: float = 0.0
    gradient_checkpointing: bool = False
    gradient_checkpointing_use_reentrant: bool = False
    trust_remote_code: bool = False


class Actor(nn.Module):
    """A causal language model whose forward pass gives one loss per row.

    The loss is taken inside the head's own forward, over supervised tokens only, so it is right
    under ZeRO-3 (partitioned head), frozen heads and tied embeddings, and full logits never exist.

    Args:
        model: the transformers (or PEFT) model, loaded with packed attention.
    """

    def __init__(self, model: PreTrainedModel | PeftModel):
        super().__init__()
        self.model = model
        self._supervision: tuple[torch.Tensor, torch.Tensor | None] | None = None
        config = model.config.to_dict()
        head = model.get_output_embeddings()
        transformed = any(config.get(name) not in (None, 1, 1.0) for name in LOGIT_TRANSFORMS)
        self._fused = type(head) is nn.Linear and not transformed
        if self._fused:
            head.forward = lambda hidden: self._head(head, hidden)

    def _head(self, head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self._supervision is None:
            return nn.functional.linear(hidden, head.weight, head.bias)
        return head_losses(hidden.flatten(0, -2), head.weight, head.bias, *self._supervision)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        positions: torch.Tensor,
        targets: torch.Tensor,
        segments: torch.Tensor,
        n_rows: int,
        coefficients: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of each row of a packed stream (the first arguments are `seal.datasets.Batch`).

        Args:
            coefficients: float32 [n_rows], what a nat of each row counts in the objective; None
                for no objective.

        Returns:
            nll: float32 [n_rows], nats summed over the row's supervised tokens, no gradient.
            objective: float32 scalar, `sum_i coefficients_i * nll_i`, which carries the gradient.
            aux_loss: float32 scalar, the router's balance loss of a mixture of experts, else 0.
        """
        by_token = None if coefficients is None else coefficients[segments]
        self._supervision = (targets, by_token) if self._fused else None
        try:
            output = self._run(input_ids, position_ids, cu_seqlens, max_seqlen, positions)
        finally:
            self._supervision = None
        if self._fused:
            token_nll, objective = output.logits[:-1], output.logits[-1]
        else:
            logits = output.logits.flatten(0, -2).float()
            token_nll = nn.functional.cross_entropy(logits, targets, reduction="none")
            objective = token_nll.sum() if by_token is None else by_token @ token_nll
        nll = sum_by_row(token_nll.detach(), segments, n_rows)
        aux_loss = output.aux_loss if "aux_loss" in output else None
        return nll, objective, nll.new_zeros(()) if aux_loss is None else aux_loss.float()

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """States before the head of a packed batch: [T, H]."""
        keep = batch.positions[:1]  # of the logits, which nobody wants
        output = self._run(*batch[:4], keep, states=True)
        return output.hidden_states[-1].squeeze(0)

    def _run(self, input_ids, position_ids, cu_seqlens, max_seqlen, positions, states=False):
        return self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,  # a cache makes transformers drop the row boundaries
            logits_to_keep=positions,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
            output_hidden_states=states,
        )

    def add_tracker(self) -> None:
        """Adds a second LoRA adapter on the same frozen base, equal to the first; both train.

        Raises:
            InputError: the model has no adapter (`--lora_rank 0`).
        """
        if not isinstance(self.model, PeftModel):
            raise InputError("a second adapter needs LoRA; set --lora_rank above 0")
        self.model.add_adapter(TRACKER, self.model.peft_config[MAIN])
        state = get_peft_model_state_dict(self.model, adapter_name=MAIN)
        set_peft_model_state_dict(self.model, state, adapter_name=TRACKER)
        for name, parameter in self.model.named_parameters():
            if f".{TRACKER}." in name:
                parameter.requires_grad_(True)

    def use_adapter(self, name: str) -> None:
        """Runs the coming forward and backward passes with one adapter; the others stay trainable.

        Backward must come before the next switch: with gradient checkpointing it recomputes the
        layers with whichever adapter is active then.
        """
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                # peft's set_adapter would switch requires_grad off on every other adapter
                module._active_adapter = [name]

    def enable_gradient_checkpointing(self, use_reentrant: bool) -> None:
        """Recomputes each layer in backward; with LoRA the input must carry a gradient."""
        if isinstance(self.model, PeftModel):
            self.model.enable_input_require_grads()
        self.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})


def load_actor(settings: ModelSettings) -> Actor:
    """Loads a causal language model, with a fresh LoRA adapter where asked for.

    Raises:
        InputError: no weights, unknown architecture, bitsandbytes missing, target modules absent,
            a LoRA rank or dropout out of range.
    """
    if settings.lora_rank < 0:
        raise InputError(f"--lora_rank must be 0 (no LoRA) or more, got {settings.lora_rank}")
    if not 0 <= settings.lora_dropout < 1:
        raise InputError(f"--lora_dropout must be in [0, 1), got {settings.lora_dropout:g}")
    adapter = Path(settings.pretrain) / "adapter_config.json"
    if adapter.is_file():  # go on with an adapter on its own base
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
        model = _load_base(replace(settings, pretrain=base))
        model = PeftModel.from_pretrained(model, settings.pretrain, is_trainable=True)
    else:
        model = _load_base(settings)
    model.config.use_cache = False
    if isinstance(model, PeftModel):
        pass
    elif settings.lora_rank:
        model = _add_lora(model, settings)
    elif settings.load_in_4bit:
        raise InputError("--load_in_4bit freezes the base, so nothing would train; add --lora_rank")
    actor = Actor(model)
    if settings.gradient_checkpointing:
        actor.enable_gradient_checkpointing(settings.gradient_checkpointing_use_reentrant)
    return actor


def _load_base(settings: ModelSettings) -> PreTrainedModel:
    if settings.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("--load_in_4bit needs bitsandbytes: pip install -e .[gpu], or drop it")
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    attention = choose_attention(settings.flash_attn, settings.attn_implementation, settings.bf16)
    trust = settings.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(settings.pretrain, trust_remote_code=trust)
        if settings.aux_loss_coef > 0:
            config.output_router_logits = True
        return AutoModelForCausalLM.from_pretrained(
            settings.pretrain,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization if settings.load_in_4bit else None,
            trust_remote_code=trust,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        kind = "directory" if Path(settings.pretrain).is_dir() else "hub name or missing path"
        raise InputError(
            f"--pretrain {settings.pretrain} ({kind}) does not load: {reason}"
        ) from error


def _add_lora(model: PreTrainedModel, settings: ModelSettings) -> PeftModel:
    """One trainable adapter, everything else frozen."""
    if settings.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--target_modules {settings.target_modules}: {reason}") from error
