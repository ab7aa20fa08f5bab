"""Loss arithmetic: pure functions on tensors, nothing else.

A row's loss is kept as (sum over its supervised tokens, number of them) and divided once, where
the unit is known: the selector's unit is the mean per row, SFT's the mean per token of the whole
global batch.
"""

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**24  # float32 logits held at once: 64 MiB


class _HeadNLL(torch.autograd.Function):
    """Negative log-likelihood of a linear head, in chunks of tokens, logits never kept."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        ctx.save_for_backward(hidden, weight, bias, targets)
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for part in _chunks(targets.numel(), weight.shape[0]):
            logits = F.linear(hidden[part], weight, bias).float()
            out[part] = F.cross_entropy(logits, targets[part], reduction="none")
        return out

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for part in _chunks(targets.numel(), weight.shape[0]):
            delta = F.linear(hidden[part], weight, bias).float().softmax(-1)
            delta[torch.arange(delta.shape[0], device=delta.device), targets[part]] -= 1
            delta = (delta * grad[part, None]).to(hidden.dtype)
            grad_hidden[part] = delta @ weight
            if grad_weight is not None:
                grad_weight += delta.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += delta.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
        )


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + step) for start in range(0, tokens, step)]


def head_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of a language-model head without ever holding [S, V] logits.

    Backward recomputes the logits chunk by chunk and forms no weight gradient when the head is
    frozen.

    Args:
        hidden: [S, H] states of the supervised positions; weight: [V, H]; bias: [V] or None.
        targets: int64 [S], the token each position should predict.

    Returns:
        float32 [S], nats a token.
    """
    return _HeadNLL.apply(hidden, weight, bias, targets)


def sum_by_row(token_nll: torch.Tensor, segments: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Sums token losses into rows.

    Args:
        token_nll: float32 [S]; segments: int64 [S] with values in [0, n_rows).

    Returns:
        float32 [n_rows], nats a row.
    """
    return token_nll.new_zeros(n_rows).index_add(0, segments, token_nll)
