"""Loss arithmetic: pure functions on tensors, nothing else.

A row's loss is kept as (sum over its supervised tokens, number of them) and divided once, where
the unit is known: the selector's unit is the mean per row, SFT's the mean per token of the whole
global batch.
"""

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**20  # float32 logits held at once on a CPU: 4 MiB, which its caches hold
# A GPU needs so many tokens that reading the head's weights is not what it does; where the head is
# trained, each chunk reads and writes the sum of its gradients as well.
CUDA_FACTOR = {False: 64, True: 128}


class _HeadLoss(torch.autograd.Function):
    """Losses of a linear head in chunks of tokens; gradients are formed on the way forward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, coefficients, scale, cap):
        inputs = (hidden, weight, bias)
        needed = ctx.needs_input_grad[:3] if coefficients is not None else (False,) * 3
        grads = [
            torch.zeros_like(value, dtype=torch.float32) if need else None
            for value, need in zip(inputs, needed, strict=True)
        ]
        nll = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
        for part in _chunks(len(targets), weight):
            logits = F.linear(hidden[part], weight, bias).float()
            bend = _transform(logits, scale, cap)
            log_p = logits.log_softmax(-1)
            del logits
            nll[part] = -log_p.gather(1, targets[part, None]).squeeze(1)
            if any(needed):
                slope = _slope(log_p, targets[part]).mul_(bend).to(hidden.dtype)
                _add(grads, slope, coefficients[part], hidden[part], weight, part)
        objective = nll.new_zeros(()) if coefficients is None else coefficients @ nll
        ctx.save_for_backward(
            *(
                grad if grad is None else grad.to(value.dtype)
                for grad, value in zip(grads, inputs, strict=True)
            )
        )
        ctx.mark_non_differentiable(nll)
        return nll, objective

    @staticmethod
    def backward(ctx, _, grad):
        scaled = (
            saved if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors
        )
        return *scaled, None, None, None, None


def _transform(logits: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor | float:
    """Scales and caps the logits in place; returns the slope of that."""
    if scale != 1.0:
        logits.mul_(scale)
    if cap is None:
        return scale
    squashed = logits.div_(cap).tanh_()
    bend = (1 - squashed**2).mul_(scale)
    logits.mul_(cap)
    return bend


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
    elements = CHUNK_ELEMENTS * (CUDA_FACTOR[weight.requires_grad] if weight.is_cuda else 1)
    step = max(1, elements // weight.shape[0])
    return [slice(start, start + step) for start in range(0, tokens, step)]


def head_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    coefficients: torch.Tensor | None,
    scale: float = 1.0,
    cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of a language-model head without ever holding [S, V] logits.

    The objective `sum_s coefficients_s * nll_s` is known before the logits are, so its gradients
    are formed chunk by chunk on the way forward and nothing is computed twice.

    Source: the fused linear cross-entropy of Liger Kernel (arXiv 2410.10989), per token weighted.

    Args:
        hidden: [S, H] states of the supervised positions; weight: [V, H]; bias: [V] or None.
        targets: int64 [S], the token each position should predict.
        coefficients: float32 [S], per nat; None where no gradient is wanted.
        scale: of the logits.
        cap: c, where the scaled logits z become c * tanh(z / c); None for no cap.

    Returns:
        nll: float32 [S], nats of each token, without gradient.
        objective: float32 scalar, which carries the gradient; 0 without coefficients.
    """
    return _HeadLoss.apply(hidden, weight, bias, targets, coefficients, scale, cap)


def sum_by_row(token_nll: torch.Tensor, segments: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Sums token losses into rows.

    Args:
        token_nll: float32 [S]; segments: int64 [S] with values in [0, n_rows).

    Returns:
        float32 [n_rows], nats a row.
    """
    return token_nll.new_zeros(n_rows).index_add(0, segments, token_nll)


def balance_loss(router_logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """How unevenly a mixture of experts uses its experts.

    Source: Switch Transformer (arXiv 2101.03961), equation 4, over the tokens of all layers.

    Args:
        router_logits: [tokens of all layers, E].
        top_k: experts a token goes to.

    Returns:
        float32 scalar; `top_k` when all experts are used alike.
    """
    shares = router_logits.float().softmax(-1)
    chosen = torch.zeros_like(shares).scatter_(1, shares.topk(top_k).indices, 1.0)
    return shares.shape[1] * (chosen.mean(0) @ shares.mean(0))
