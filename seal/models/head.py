"""The output layer of a language model, giving losses instead of logits."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig

from seal.models.loss import head_losses

# What transformers' models do to their logits, by the name of the setting.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
FACTORS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)


class LossHead(nn.Module):
    """The model's own output layer, called on states and targets together.

    It shares the layer's parameters and is a module of its own, so ZeRO-3 gathers them around its
    call as it does around any other.

    Args:
        layer: the output layer; tied to the embeddings or not, frozen or not.
        config: of the model; says how the logits are scaled and capped.
    """

    def __init__(self, layer: nn.Linear, config: PretrainedConfig):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.cap = logit_transform(config)

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, coefficients: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `seal.models.loss.head_losses`: nll, float32 [S], and the objective, a scalar."""
        return head_losses(
            hidden.to(self.weight.dtype),
            self.weight,
            self.bias,
            targets,
            coefficients,
            self.scale,
            self.cap,
        )


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """The factor of a model's logits, and the cap that follows it or None."""
    given = {name: value for name, value in config.get_text_config().to_dict().items() if value}
    scale = 1.0
    for name in FACTORS:
        scale *= given.get(name, 1.0)
    for name in DIVISORS:
        scale /= given.get(name, 1.0)
    caps = [float(given[name]) for name in CAPS if name in given]
    return scale, min(caps, default=None)
