"""The data selector: one logit a row, free or of its states; its weight; the rule of update."""

import math

import numpy as np
import torch

from seal.errors import InputError, known
from seal.statistics import effective_rows, entropy

ACTIVATIONS = ("softmax", "sigmoid")
OPTIMIZERS = ("mirror", "adam")


class Selector:
    """One float32 logit for each of N rows, the same on every rank.

    A row's weight is `N * softmax(logits)` or `2 * sigmoid(logits)`: one at the start, mean one
    throughout under softmax. Two update rules lower the logit of a row whose loss is high:

    - "mirror": exponentiated gradient. The gradient of `mean_i weight_i * loss_i` with respect to
      the weight itself is the row's loss, so `logit_i -= lr * loss_i` for the rows visited: O(rows)
      a step. The softmax normaliser is held fixed within an epoch, so a row's weight does not
      depend on when in the epoch it is visited.
    - "adam": the published rule, Adam on the dense gradient with respect to the logits. Kept to
      reproduce published selectors: it turns the order of visits into rank (docs/method.md).

    With `states` the logits are no free numbers but a linear map of each row's states, trained by
    the mirror rule through that map: rows with like states share what is learned about one of them.
    A row's own step is as long as without, and the batch's mean signal is taken out, since a shift
    of all logits says nothing.

    Source: Shen et al. 2024 (arXiv 2410.07471), section 3; Kivinen and Warmuth 1997 (mirror).

    Args:
        n_rows: N, rows to select among.
        activation: one of `ACTIVATIONS`.
        optim: one of `OPTIMIZERS`.
        states: float [N, F], standardised; None for free logits.

    Attributes:
        slope: float32 [F], of the map from `states` to logits; None for free logits.

    Raises:
        InputError: unknown activation or update rule, or states with another rule than mirror.
    """

    def __init__(
        self,
        n_rows: int,
        activation: str = "softmax",
        optim: str = "mirror",
        states: np.ndarray | None = None,
    ):
        if activation not in ACTIVATIONS:
            raise InputError(
                f"--selector_activation {activation}: {known(activation, ACTIVATIONS)}"
            )
        if optim not in OPTIMIZERS:
            raise InputError(f"--selector_optim {optim}: {known(optim, OPTIMIZERS)}")
        if states is not None and optim != "mirror":
            raise InputError(
                f"--selector_head linear goes with --selector_optim mirror, not {optim}"
            )
        self._states = self.slope = None
        if states is not None:
            # the update scales by the length of a row's states, about sqrt(F), on both sides
            self._states = torch.as_tensor(states, dtype=torch.float32)
            self.slope = torch.zeros(states.shape[1])
        self.n_rows = n_rows
        self.activation = activation
        self.optim = optim
        # Logit, visits and sum of losses side by side: a row costs one trip to memory, whatever N.
        self._table = torch.zeros(n_rows, 3, dtype=torch.float32)
        self.logits = self._table[:, 0]
        self._log_normaliser = 0.0
        self._epoch_start = self.logits.clone()
        self._adam = torch.optim.Adam([self.logits], lr=0.0, betas=(0.9, 0.95))

    @property
    def visits(self) -> torch.Tensor:
        """How often each row was visited, int32 [N]."""
        return self._table[:, 1].int()

    def begin_epoch(self) -> None:
        """Fixes the softmax normaliser for the epoch and notes where it starts (O(N), once)."""
        self._log_normaliser = self._log_mean_exp()
        self._epoch_start.copy_(self.logits)

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """Weights of the rows asked for: int64 [R] to float32 [R], unit one."""
        if self.activation == "sigmoid":
            return 2 * self.logits.index_select(0, rows).sigmoid()
        if self.optim == "adam":
            self._log_normaliser = self._log_mean_exp()
        return (self.logits.index_select(0, rows) - self._log_normaliser).exp()

    def update(
        self,
        rows: torch.Tensor,
        losses: torch.Tensor,
        learning_rate: float,
        baseline: torch.Tensor | None = None,
    ) -> None:
        """Moves the logits after one step.

        Args:
            rows: int64 [R], each at most once.
            losses: float32 [R], mean nats a token of each row.
            learning_rate: logit units a nat ("mirror") or Adam's rate ("adam").
            baseline: float32 [R], what is subtracted from the losses first (Algorithm 1: the
                losses under the lower level's own model); None for nothing.
        """
        signal = losses if baseline is None else losses - baseline
        mirror = self.optim == "mirror"
        move = -learning_rate * signal if mirror else torch.zeros_like(losses)
        if self.slope is not None:
            weights = self.weights(rows)
            move = -learning_rate * (signal - weights @ signal / weights.sum())
            self.slope += move @ self._states[rows] / len(self.slope)
            self.logits.copy_(self._states @ self.slope)
            move = torch.zeros_like(losses)
        change = torch.stack((move, torch.ones_like(losses), losses), dim=1)
        if not mirror:
            self.logits.grad = self._gradient(rows, signal)
            self._adam.param_groups[0]["lr"] = learning_rate
            self._adam.step()
        self._table.index_add_(0, rows, change)

    def final_weights(self) -> torch.Tensor:
        """Weights of all rows, float32 [N], scaled to mean one."""
        raw = self.logits.double()
        raw = raw.softmax(0) if self.activation == "softmax" else raw.sigmoid()
        return (raw / raw.mean()).float()

    def mean_losses(self) -> torch.Tensor:
        """Mean loss over a row's visits, float32 [N], nats a token; NaN where never visited."""
        return self._table[:, 2] / self._table[:, 1]

    def effective_rows(self) -> float:
        """Effective sample size of the weights, in rows (Kish): N when uniform, 1 when one-hot."""
        return effective_rows(self.final_weights().numpy())

    def entropy(self) -> float:
        """Entropy of the weights as shares, in nats: log N when uniform, 0 when one-hot."""
        return entropy(self.final_weights().numpy())

    def churn(self) -> float:
        """Share of the rows that have crossed the median since the epoch began, in [0, 1]."""
        before, now = (x > x.median() for x in (self._epoch_start, self.logits))
        return float((before != now).float().mean())

    def state_dict(self) -> dict:
        """Everything a resumed run needs."""
        return {
            "table": self._table,
            "log_normaliser": self._log_normaliser,
            "epoch_start": self._epoch_start,
            "adam": self._adam.state_dict(),
            "slope": self.slope,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict`'s value; shapes must agree."""
        self._table.copy_(state["table"])
        self._log_normaliser = state["log_normaliser"]
        self._epoch_start.copy_(state["epoch_start"])
        self._adam.load_state_dict(state["adam"])
        if self.slope is not None:
            self.slope.copy_(state["slope"])

    def _log_mean_exp(self) -> float:
        parts = [part.double().logsumexp(0) for part in self.logits.split(2**20)]
        return float(torch.stack(parts).logsumexp(0)) - math.log(self.n_rows)

    def _gradient(self, rows: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Gradient of mean_i weight_i * loss_i over the batch, with respect to all logits [N]."""
        if self.activation == "sigmoid":
            gate = self.logits[rows].sigmoid()
            return torch.zeros_like(self.logits).index_add(
                0, rows, 2 * gate * (1 - gate) * losses / len(rows)
            )
        weighted = self.weights(rows) * losses / len(rows)
        dense = -self.logits.softmax(0) * weighted.sum()
        return dense.index_add(0, rows, weighted)
