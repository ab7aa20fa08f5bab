"""The language model: loading (dtype, attention, 4-bit, LoRA) and per-row loss."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
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
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from seal.errors import InputError, said
from seal.files import model_is_here
from seal.models.adapters import adapter_config, load_adapter
from seal.models.attention import (
    VARLEN,
    can_pack,
    choose_attention,
    flash_attn_usable,
    without_plans,
)
from seal.models.head import LossHead
from seal.models.loss import balance_loss, sum_by_row

if TYPE_CHECKING:
    from seal.datasets import Batch

POSITIONS = ("max_position_embeddings", "n_positions")  # names that configurations give them
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
MAIN, TRACKER = "default", "tracker"  # names of the two LoRA adapters


@dataclass(frozen=True)
class ModelSettings:
    """What to load and how; the fields are the flags of the same names.

    Attributes:
        pretrain: directory or hub name.
        bf16: weights in bfloat16, else float32.
        flash_attn: use the flash-attn package where it can run.
        attn_implementation: a transformers attention name that overrides the choice.
        use_liger_kernel: norms and feed-forward blocks of the liger-kernel package (CUDA).
        load_in_4bit: QLoRA's 4-bit frozen base (needs bitsandbytes and CUDA).
        lora_rank: 0 trains every weight.
        aux_loss_coef: above 0, a mixture of experts reports its balance loss.
        gradient_checkpointing: recompute each layer in backward.
    """

    pretrain: str
    bf16: bool = False
    flash_attn: bool = False
    attn_implementation: str | None = None
    use_liger_kernel: bool = False
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

    The body gives hidden states, and the head losses of the supervised ones, so full logits never
    exist. `seal.models.probe.settle` turns off what a model cannot do.

    Args:
        model: the transformers (or PEFT) model.
        balance: report a mixture of experts' balance loss.
        packed: rows form one stream, which the attention keeps apart; else they are padded.

    Attributes:
        packed: as given.
        fused: losses come from `LossHead`; else from the model's own logits (LoRA on the head).
        notes: what a user should know of how it was loaded.
        settled: `seal.models.probe.settle` has found the actor right.
        n_layers: L, of the body.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, balance: bool = False, packed: bool = True
    ):
        super().__init__()
        self.model = model
        self.balance = balance
        self.packed = packed
        self.notes: list[str] = []
        self.settled = False
        self.n_layers: int = model.config.get_text_config().num_hidden_layers
        layer = model.get_output_embeddings()
        self.fused = type(layer) is nn.Linear
        self.head = LossHead(layer, model.config) if self.fused else None

    def forward(
        self,
        batch: Batch,
        coefficients: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        by_token: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | torch.Tensor:
        """Loss of each row of a packed stream, or of each token, or the states at some layers.

        Args:
            coefficients: float32 [R], what a nat of each row counts in the objective; None for no
                objective.
            layers: rising, in [1, L]: give the states after so many layers (after L: normalised, as
                the head takes them) and do not run the layers above the last one.
            by_token: give the losses of the supervised tokens alone.

        Returns:
            nll: float32 [R], nats summed over the row's supervised tokens, no gradient.
            objective: float32 scalar, `sum_i coefficients_i * nll_i`, which carries the gradient.
            aux_loss: float32 scalar, the router's balance loss of a mixture of experts, else 0.

            With `layers`: [K, T, H], the states of the stream's tokens at each of them. With
            `by_token`: float32 [S], nats.
        """
        inputs, places = _packed(batch) if self.packed else _padded(batch)
        if layers is not None:
            states = self._states(inputs, layers)
            return torch.stack([s.flatten(0, 1).index_select(0, places) for s in states])
        if self.balance:
            inputs["output_router_logits"] = True
        shares = None if coefficients is None else coefficients[batch.segments]
        wanted = places[batch.positions]
        if self.fused:
            output = self.body(**inputs)
            hidden = output.last_hidden_state.flatten(0, 1).index_select(0, wanted)
            token_nll, objective = self.head(hidden, batch.targets, shares)
        else:
            output = self.model(**inputs)
            logits = output.logits.flatten(0, 1).index_select(0, wanted).float()
            token_nll = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
            objective = token_nll.new_zeros(()) if shares is None else shares @ token_nll
        if by_token:
            return token_nll.detach()
        nll = sum_by_row(token_nll.detach(), batch.segments, len(batch.rows))
        if not self.balance:
            return nll, objective, nll.new_zeros(())
        top_k = self.model.config.get_text_config().num_experts_per_tok
        routed = [x.flatten(0, -2).index_select(0, places) for x in output.router_logits]
        return nll, objective, balance_loss(torch.cat(routed), top_k)

    def _states(self, inputs: dict, wanted: Sequence[int]) -> list[torch.Tensor]:
        """States after `wanted` layers, with those above the last taken out for the pass."""
        if list(wanted) == [self.n_layers]:
            return [self.body(**inputs).last_hidden_state]
        parent, name, layers = self._layers()
        states = []
        hooks = [
            layers[number - 1].register_forward_hook(lambda *call: states.append(call[-1]))
            for number in wanted
        ]
        setattr(parent, name, layers[: wanted[-1]])
        try:
            output = self.body(**inputs)
        finally:
            setattr(parent, name, layers)
            for hook in hooks:
                hook.remove()
        if wanted[-1] == self.n_layers:
            states[-1] = output.last_hidden_state
        return [state if isinstance(state, torch.Tensor) else state[0] for state in states]

    @property
    def vocabulary(self) -> int:
        """Tokens that the embedding has a row for."""
        return self.causal.get_input_embeddings().num_embeddings

    @property
    def positions(self) -> int | None:
        """Tokens of the longest row that the model is made for; None without a limit."""
        config = self.causal.config.get_text_config().to_dict()
        limit = next((config[name] for name in POSITIONS if config.get(name)), None)
        rope = config.get("rope_parameters") or {}
        if limit and rope.get("original_max_position_embeddings"):
            scaled = rope["original_max_position_embeddings"] * rope.get("factor", 1)
            limit = max(limit, int(scaled))
        return limit

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        config = self.causal.config.get_text_config().to_dict()
        return any(config.get(name) for name in EXPERTS)

    @property
    def has_adapter(self) -> bool:
        """Whether adapters train on a frozen base."""
        return isinstance(self.model, PeftModel)

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model, adapters inside."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def body(self) -> PreTrainedModel:
        """The transformers model without its head."""
        inner = (child for child in self.causal.children() if isinstance(child, PreTrainedModel))
        return next(inner, self.causal.base_model)

    def _layers(self) -> tuple[nn.Module, str, nn.ModuleList]:
        """The body's layers, the module that holds them, and their name there."""
        for parent in self.causal.get_decoder().modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == self.n_layers:
                    return parent, name, child
        raise InputError(f"{self.model.config.model_type}: no list of {self.n_layers} layers found")

    def add_tracker(self) -> None:
        """Adds a second LoRA adapter on the same frozen base, equal to the first; both train.

        Raises:
            InputError: the model has no adapter (`--lora_rank 0`).
        """
        if not self.has_adapter:
            raise InputError("a second adapter needs LoRA; set --lora_rank above 0")
        self.model.add_adapter(TRACKER, self.model.peft_config[MAIN])
        state = get_peft_model_state_dict(self.model, adapter_name=MAIN)
        set_peft_model_state_dict(self.model, state, adapter_name=TRACKER)
        for name, parameter in self.model.named_parameters():
            if f".{TRACKER}." in name:
                parameter.requires_grad_(True)

    def parameters_of(self, adapter: str) -> list[nn.Parameter]:
        """What trains of one adapter; [] where the model has none of that name."""
        named = self.model.named_parameters()
        return [p for name, p in named if f".{adapter}." in name and p.requires_grad]

    def use_adapter(self, name: str) -> None:
        """Runs the coming forward and backward passes with one adapter; the others stay trainable.

        Backward must come before the next switch: with gradient checkpointing it recomputes the
        layers with whichever adapter is active then.
        """
        if self.has_adapter and name not in self.model.peft_config:
            raise ValueError(f"no adapter {name} among {list(self.model.peft_config)}")
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                # peft's set_adapter would switch requires_grad off on every other adapter
                module._active_adapter = [name]

    def require_apart(self, directory: str | None) -> None:
        """Refuses to save an adapter where its base model lies.

        Raises:
            InputError: saving to `directory` would replace the base.
        """
        if self.has_adapter and directory:
            base = self.model.peft_config[MAIN].base_model_name_or_path
            if Path(base).resolve() == Path(directory).resolve():
                raise InputError(f"--save_path {directory} is the base model of the adapter")

    def end_at(self, token: int | None) -> None:
        """Makes a token an end of generated text too, as saved with the model."""
        config = self.causal.generation_config
        ends = config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if token is not None and token not in ends:
            config.eos_token_id = [*(end for end in ends if end is not None), token]

    def enable_gradient_checkpointing(self, use_reentrant: bool) -> None:
        """Recomputes each layer in backward; with LoRA the input must carry a gradient."""
        if self.has_adapter:
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
    adapter = adapter_config(settings.pretrain)
    if adapter is None:
        model = _load_base(settings)
    else:  # go on with an adapter on its own base
        _require_same(settings, adapter)
        model = _load_base(replace(settings, pretrain=adapter.base_model_name_or_path))
        if settings.load_in_4bit:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = load_adapter(model, settings.pretrain, train=True)
    return _as_actor(model, settings, adapter)


def count_layers(settings: ModelSettings) -> int:
    """Layers of a model's body, from its configuration alone.

    Raises:
        InputError: the configuration does not load.
    """
    adapter = adapter_config(settings.pretrain)
    base = settings.pretrain if adapter is None else adapter.base_model_name_or_path
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # transformers raises nearly any type on a damaged directory
        raise InputError(f"--pretrain {base} has no configuration: {error}") from error
    return config.get_text_config().num_hidden_layers


def _require_same(settings: ModelSettings, adapter: LoraConfig) -> None:
    """Refuses LoRA flags that an adapter to start from contradicts; without --lora_rank none is."""
    asked = {"lora_rank": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    for (name, value), own in zip(asked.items(), (adapter.r, adapter.lora_alpha), strict=True):
        if settings.lora_rank and value != own:
            raise InputError(
                f"--{name} {value}: {settings.pretrain} is an adapter with {own}, which goes on as "
                "it is; leave out --lora_rank, or merge it into its base first (seal merge)"
            )


def _packed(batch: Batch) -> tuple[dict, torch.Tensor]:
    """A model's inputs for one stream, and where its tokens lie in what comes out, int64 [T]."""
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,  # a cache makes transformers drop the row boundaries
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
    }
    return inputs, torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)


def _padded(batch: Batch) -> tuple[dict, torch.Tensor]:
    """As `_packed`, with a line of its own for each row.

    The padding comes last, so no token of a causal model sees it and no mask is needed.
    """
    n_rows, width = len(batch.cu_seqlens) - 1, batch.max_seqlen
    starts = torch.arange(0, n_rows * width, width, device=batch.input_ids.device)
    lengths, total = batch.cu_seqlens.diff(), batch.input_ids.shape[1]
    places = starts.repeat_interleave(lengths, output_size=total) + batch.position_ids[0]
    ids = batch.input_ids.new_zeros(n_rows * width).index_copy(0, places, batch.input_ids[0])
    return {"input_ids": ids.view(n_rows, width), "use_cache": False}, places


def _as_actor(
    model: PreTrainedModel | PeftModel, settings: ModelSettings, adapter: LoraConfig | None
) -> Actor:
    """The model as an actor, with the adapter and the checkpointing that are asked for."""
    if adapter is not None:
        pass
    elif settings.lora_rank:
        model = _add_lora(model, settings)
    elif settings.load_in_4bit:
        raise InputError("--load_in_4bit freezes the base, so nothing would train; add --lora_rank")
    if settings.aux_loss_coef > 0 and not _routes(model):
        raise InputError(
            f"--aux_loss_coef weighs the balance loss of a mixture of experts, which "
            f"{model.config.model_type} does not report; drop it"
        )
    actor = Actor(model, settings.aux_loss_coef > 0, can_pack(model.config))
    if adapter is not None:
        actor.notes.append(
            f"goes on with the adapter (rank {adapter.r}, alpha {adapter.lora_alpha})"
        )
    if settings.flash_attn and not flash_attn_usable(settings.bf16):
        actor.notes.append("flash-attn is not used: it needs CUDA, --bf16 and its package")
    if settings.gradient_checkpointing:
        actor.enable_gradient_checkpointing(settings.gradient_checkpointing_use_reentrant)
    return actor


def _routes(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a model is a mixture of experts that can report what its routers chose."""
    return "output_router_logits" in model.config.get_text_config().to_dict()


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
    without_plans()
    model_is_here(settings.pretrain)
    kind = "directory" if Path(settings.pretrain).is_dir() else "hub name or missing path"
    refusal = f"--pretrain {settings.pretrain} ({kind}) does not load: "
    try:
        config = AutoConfig.from_pretrained(settings.pretrain, trust_remote_code=trust)
        if attention == VARLEN and not can_pack(config):
            attention = None  # the model's own
        model, found = AutoModelForCausalLM.from_pretrained(
            settings.pretrain,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization if settings.load_in_4bit else None,
            trust_remote_code=trust,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except Exception as error:  # transformers raises nearly any type on a damaged directory
        reason = " ".join(str(error).split())[:300] or repr(error)
        if isinstance(error, SafetensorError):
            reason += "; a weights file is cut short or damaged: copy it again"
        raise InputError(refusal + reason) from error
    odd = sorted(found["missing_keys"]) + sorted(name for name, *_ in found["mismatched_keys"])
    if odd:  # transformers would train them from random values
        raise InputError(
            f"{refusal}its weights lack {len(odd)} tensors of its config.json, or hold them in "
            f"another shape, {odd[0]} the first; copy both from the same model"
        )
    if settings.use_liger_kernel:
        use_liger(model)
    return model


def use_liger(model: PreTrainedModel) -> None:
    """Puts the norms and feed-forward blocks of the liger-kernel package into a model.

    Raises:
        InputError: no GPU, no package, or an architecture that it does not know.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        raise InputError(
            "--use_liger_kernel needs a CUDA GPU and liger-kernel (pip install -e .[gpu]); drop it"
        )
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"--use_liger_kernel: liger-kernel does not know {kind}; drop it")
    # In this model alone: what it changes for later ones is put back. The losses are ours.
    shared = vars(sys.modules[type(model).__module__])
    kept = dict(shared)
    others = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=model, **others)
    shared.update(kept)


def _add_lora(model: PreTrainedModel, settings: ModelSettings) -> PeftModel:
    """One trainable adapter, everything else frozen."""
    if settings.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    typed = settings.target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if typed == ["all-linear"] else typed,
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        hint = "; write them apart, in YAML [q_proj, v_proj]" if "," in "".join(typed) else ""
        raise InputError(f"--target_modules {typed}: {said(error)}{hint}") from error
