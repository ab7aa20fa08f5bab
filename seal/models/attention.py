"""Causal attention over rows flattened into one stream, without padding and without a mask.

Registered with transformers under `VARLEN`, so every model that looks its attention up by name
(Llama, Mistral, Phi-3, GPT-NeoX, Qwen3, ...) can use it.
"""

import functools
import importlib.util
import inspect

import torch
import torch.nn.functional as F
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PretrainedConfig

from seal.errors import InputError

VARLEN = "seal_varlen"
HALF = (torch.float16, torch.bfloat16)
WIDE_HEADS = ((8, 0), (9, 0), (10, 0))  # devices that run more than 192 numbers a head backward
# Arguments of transformers that change nothing here.
WITHOUT = frozenset(
    "position_ids use_cache cu_seq_lens_k max_length_k output_attentions "
    "output_hidden_states output_router_logits cache_position return_dict".split()
)


def without_plans() -> None:
    """Keeps torch from cuDNN's attention, which it prefers on an H100 (torch 2.11).

    cuDNN builds a plan for every new shape, a second each, and padded rows always have new ones.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Boolean causal mask [length, length] of a sliding window, None where plain causal serves."""
    if sliding_window is None or length <= sliding_window:
        return None
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) & (behind < sliding_window)


def _sdpa_by_row(query, key, value, cu_seqlens, scaling, dropout, sliding_window):
    """One scaled-dot-product call a row; exact in every dtype and on every device."""
    grouped = query.shape[1] != key.shape[1]
    lengths = cu_seqlens.diff().tolist()
    # One split node: slices would each hand back a gradient of the whole stream.
    streams = (stream.split(lengths, dim=2) for stream in (query, key, value))
    rows = []
    for length, row in zip(lengths, zip(*streams, strict=True), strict=True):
        mask = _window(length, sliding_window, query.device)
        rows.append(
            F.scaled_dot_product_attention(
                *row,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2)


@functools.cache
def _varlen_groups() -> bool:
    """Whether torch's kernel takes fewer key and value heads than queries (2.11 does not)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


_capability = functools.cache(torch.cuda.get_device_capability)


def kernel_takes(
    head_dim: int, value_dim: int, dtype: torch.dtype, dropout: float, capability: tuple[int, int]
) -> bool:
    """Whether torch's variable-length kernel runs such heads, forward and backward, on such a GPU.

    Source: the checks of mha_varlen_fwd and mha_varlen_bwd in torch's flash_attn/flash_api.cpp.

    Args:
        capability: of the device, (major, minor).
    """
    widest = 256 if capability in WIDE_HEADS else 192
    fits = head_dim == value_dim and head_dim % 8 == 0 and head_dim <= widest
    return fits and dtype in HALF and dropout == 0.0 and capability >= (8, 0)


def _torch_varlen(query, key, value, cu_seqlens, longest, scaling, sliding_window):
    """torch's own variable-length kernel (CUDA, half precision, no dropout)."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    if grouped and not _varlen_groups():
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        grouped = False
    left = -1 if sliding_window is None else sliding_window - 1
    return varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        **({"enable_gqa": True} if grouped else {}),
    )[None]


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """Attends within each row of a packed stream.

    Args:
        query: [1, heads, T, head_dim]; key and value: [1, kv_heads, T, head_dim].
        cu_seq_lens_q: int32 [R+1], where each row starts in the stream, ending with T.
        max_length_q: tokens in the longest row.
        others: transformers passes its whole bag of arguments.

    Returns:
        [1, T, heads, head_dim] and None (no attention weights).

    Raises:
        InputError: the model's attention does more than these kernels (caps, sinks, biases).
    """
    unknown = [
        name
        for name, value in others.items()
        if value is not None and name not in WITHOUT and (name != "is_causal" or not value)
    ]
    if unknown or attention_mask is not None:
        raise InputError(f"packed attention does not know {unknown or 'masks'}")
    dims = query.shape[-1], value.shape[-1]
    if query.is_cuda and kernel_takes(*dims, query.dtype, dropout, _capability(query.device)):
        out = _torch_varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    else:
        out = _sdpa_by_row(query, key, value, cu_seq_lens_q, scaling, dropout, sliding_window)
    return out, None


AttentionInterface.register(VARLEN, varlen_attention)


def can_pack(config: PretrainedConfig) -> bool:
    """Whether models of this kind look their attention up by name and keep no state beside it.

    True for code from a hub, which says nothing of the sort: `seal.models.probe` finds out.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind._supports_attention_backend and not kind._is_stateful


def flash_attn_usable(bf16: bool) -> bool:
    """Whether the flash-attn package can run here: installed, on CUDA, in half precision."""
    return bool(torch.cuda.is_available() and bf16 and importlib.util.find_spec("flash_attn"))


def choose_attention(flash_attn: bool, attn_implementation: str | None, bf16: bool) -> str:
    """The attention name to load a model with.

    Args:
        flash_attn: the user asked for the flash-attn package.
        attn_implementation: a transformers name that overrides the choice.

    Returns:
        "flash_attention_2" where asked for and usable, otherwise `VARLEN` (torch's own kernels).
    """
    if attn_implementation:
        return attn_implementation
    return "flash_attention_2" if flash_attn and flash_attn_usable(bf16) else VARLEN
