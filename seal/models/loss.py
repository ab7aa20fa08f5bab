"""Loss arithmetic: pure functions on tensors, nothing else.

A row's loss is kept as (sum over its supervised tokens, number of them) and divided once, where
the unit is known: the selector's unit is the mean per row, SFT's the mean per token of the whole
global batch.
"""

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**20  # float32 logits held at once on a CPU: 4 MiB, which its caches hold
CUDA_FACTOR = 128  # a GPU needs so many tokens that reading the head's weights is not what it does


class _HeadLoss(torch.autograd.Function):
    """Losses of a linear head in chunks of tokens; gradients are formed on the way forward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, coefficients):
        inputs = (hidden, weight, bias)
        needed = ctx.needs_input_grad[:3] if coefficients is not None else (False,) * 3
        grads = [
            torch.zeros_like(value, dtype=torch.float32) if need else None
            for value, need in zip(inputs, needed, strict=True)
        ]
        out = torch.zeros(len(targets) + 1, dtype=torch.float32, device=hidden.device)
        nll = out[:-1]
        for part in _chunks(len(targets), weight):
            log_p = F.linear(hidden[part], weight, bias).float().log_softmax(-1)
            nll[part] = -log_p.gather(1, targets[part, None]).squeeze(1)
            if any(needed):
                slope = _slope(log_p, targets[part]).to(hidden.dtype)
                _add(grads, slope, coefficients[part], hidden[part], weight, part)
        if coefficients is not None:
            out[-1] = coefficients @ nll
        ctx.save_for_backward(
            *(
                grad if grad is None else grad.to(value.dtype)
                for grad, value in zip(grads, inputs, strict=True)
            )
        )
        return out

    @staticmethod
    def backward(ctx, grad):
        scaled = (
            saved if saved is None else saved * grad[-1].to(saved.dtype)
            for saved in ctx.saved_tensors
        )
        return *scaled, None, None


def _add(grads: list, slope, coefficients, hidden, weight, part: slice) -> None:
    """Adds what a chunk of slopes [S', V] contributes to the gradients that are wanted.

    The coefficients go to the narrow side of each product, [S', H], not to the slopes.
    """
    if grads[0] is not None:
        grads[0][part] = (slope @ weight) * coefficients[:, None]
    if grads[1] is not None:
        scaled = (hidden * coefficients[:, None]).to(hidden.dtype)
        if slope.dtype == torch.float32:
            grads[1].addmm_(slope.T, scaled)
        else:  # the sum over chunks is kept in float32
            grads[1] += slope.T @ scaled
    if grads[2] is not None:
        grads[2] += coefficients.to(slope.dtype) @ slope


def _slope(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gradient of each token's loss with respect to its logits, [S, V]; overwrites log_p."""
    slope = log_p.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1
    return slope


def _chunks(tokens: int, weight: torch.Tensor) -> list[slice]:
    elements = CHUNK_ELEMENTS * (CUDA_FACTOR if weight.is_cuda else 1)
    step = max(1, elements // weight.shape[0])
    return [slice(start, start + step) for start in range(0, tokens, step)]


def head_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    coefficients: torch.Tensor | None,
) -> torch.Tensor:
    """Cross-entropy of a language-model head without ever holding [S, V] logits.

    The objective `sum_s coefficients_s * nll_s` is known before the logits are, so its gradients
    are formed chunk by chunk on the way forward and nothing is computed twice.

    Source: the fused linear cross-entropy of Liger Kernel (arXiv 2410.10989), per token weighted.

    Args:
        hidden: [S, H] states of the supervised positions; weight: [V, H]; bias: [V] or None.
        targets: int64 [S], the token each position should predict.
        coefficients: float32 [S], per nat; None where no gradient is wanted.

    Returns:
        float32 [S + 1]: nats of each token, then the objective (0 without coefficients), the only
        element that carries a gradient.
    """
    return _HeadLoss.apply(hidden, weight, bias, targets, coefficients)


def sum_by_row(token_nll: torch.Tensor, segments: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Sums token losses into rows.

    Args:
        token_nll: float32 [S]; segments: int64 [S] with values in [0, n_rows).

    Returns:
        float32 [n_rows], nats a row.
    """
    return token_nll.new_zeros(n_rows).index_add(0, segments, token_nll)
