"""Loss arithmetic: pure functions on tensors, nothing else.

A row's loss is kept as (sum over its supervised tokens, number of them) and divided once, where
the unit is known: the selector's unit is the mean per row, SFT's the mean per token of the whole
global batch.
"""

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**22  # float32 logits held at once on a CPU: 16 MiB, which its caches hold
CUDA_FACTOR = 32  # a GPU needs so many tokens that reading the head's weights is not what it does


class _HeadNLL(torch.autograd.Function):
    """Negative log-likelihood of a linear head, in chunks of tokens, logits never kept."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, ahead):
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden) if ahead else None  # d nll / d hidden, per token
        for part in _chunks(targets.numel(), weight):
            log_p = F.linear(hidden[part], weight, bias).float().log_softmax(-1)
            out[part] = -log_p.gather(1, targets[part, None]).squeeze(1)
            if ahead:
                slope[part] = _slope(log_p, targets[part]).to(hidden.dtype) @ weight
        ctx.ahead = ahead
        ctx.save_for_backward(*((slope,) if ahead else (hidden, weight, bias, targets)))
        return out

    @staticmethod
    def backward(ctx, grad):
        if ctx.ahead:
            (slope,) = ctx.saved_tensors
            return slope * grad[:, None].to(slope.dtype), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for part in _chunks(targets.numel(), weight):
            log_p = F.linear(hidden[part], weight, bias).float().log_softmax(-1)
            delta = _slope(log_p, targets[part]).mul_(grad[part, None]).to(hidden.dtype)
            grad_hidden[part] = delta @ weight
            if needs_weight:
                grad_weight += delta.T @ hidden[part]
            if needs_bias:
                grad_bias += delta.sum(0)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
            None,
            None,
        )


def _slope(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gradient of each token's loss with respect to its logits, [S, V]; overwrites log_p."""
    slope = log_p.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1
    return slope


def _chunks(tokens: int, weight: torch.Tensor) -> list[slice]:
    elements = CHUNK_ELEMENTS * (CUDA_FACTOR if weight.is_cuda else 1)
    step = max(1, elements // weight.shape[0])
    return [slice(start, start + step) for start in range(0, tokens, step)]


def head_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of a language-model head without ever holding [S, V] logits.

    A head that trains recomputes the logits in backward, chunk by chunk. A frozen head forms the
    gradient of its input in the forward pass, so that nothing is recomputed.

    Args:
        hidden: [S, H] states of the supervised positions; weight: [V, H]; bias: [V] or None.
        targets: int64 [S], the token each position should predict.

    Returns:
        float32 [S], nats a token.
    """
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    ahead = torch.is_grad_enabled() and hidden.requires_grad and not trains
    return _HeadNLL.apply(hidden, weight, bias, targets, ahead)


def sum_by_row(token_nll: torch.Tensor, segments: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Sums token losses into rows.

    Args:
        token_nll: float32 [S]; segments: int64 [S] with values in [0, n_rows).

    Returns:
        float32 [n_rows], nats a row.
    """
    return token_nll.new_zeros(n_rows).index_add(0, segments, token_nll)
