"""The oracle of the tests: what each row really does to the safe loss through a training run.

For models of some ten thousand parameters and runs of some dozen steps; exactness over speed.
"""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from seal.datasets import Batch, SFTDataset
from seal.errors import InputError
from seal.models.loss import sum_by_row

BETAS = (0.9, 0.95)  # of DeepspeedStrategy's AdamW; there is no weight decay here
MODELS_AT_ONCE = 32


@dataclass(frozen=True)
class ShortRun:
    """The training run that the oracle goes through.

    Attributes:
        schedule: int64 [R] row numbers of each optimizer step, such as `EpochBatches` gives.
        learning_rate: constant.
        adam: Adam as the package configures it, else plain SGD. Nothing is clipped.
        epsilon: of Adam. Near parameters whose gradient is about this small the derivative is
            exact, large, and true of tiny changes of weight only; `Oracle.left_out` has no such
            trouble.
    """

    schedule: list[np.ndarray]
    learning_rate: float
    adam: bool = False
    epsilon: float = 1e-8


class Oracle:
    """Weighted fine-tuning runs of one starting model, and what they leave of its safety.

    A step descends `mean_i w_i * loss_i` over its rows, a row's loss being its mean nats a token:
    the lower level of the selector's problem. The safe loss is the mean row loss of the safe rows.

    Args:
        model: the start; copied, run in float64, its trainable parameters train. It needs packed
            attention (`seal.models.attention.VARLEN`) and no dropout.
        rows: the N rows that carry weights.
        safe: the safe rows.
        run: schedule, rate and optimizer.

    Raises:
        InputError: the schedule names a row that is not there.
    """

    def __init__(self, model: PreTrainedModel, rows: SFTDataset, safe: SFTDataset, run: ShortRun):
        named = np.concatenate(run.schedule)
        if named.min() < 0 or named.max() >= len(rows):
            raise InputError(f"the schedule names row {named.max()} of {len(rows)} rows")
        self.n_rows = len(rows)
        self.run = run
        self.model = copy.deepcopy(model).double().eval()
        # An Actor's head gives losses in place of logits, and a copy of it would keep the old head.
        vars(self.model.get_output_embeddings()).pop("forward", None)
        trainable = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        self._shapes = {name: parameter.shape for name, parameter in trainable.items()}
        self._start = torch.cat([parameter.flatten() for parameter in trainable.values()])
        self._batches = [_Rows(rows, step) for step in run.schedule]
        self._safe = _Rows(safe, np.arange(len(safe)))

    def scores(self) -> np.ndarray:
        """Minus the derivative of the final safe loss in each row's weight, at weights of one.

        Exact: the run is played forwards, then each step is pulled back in turn (reverse-mode
        differentiation with the states of the run kept and nothing else).

        Source: Maclaurin et al. 2015 (arXiv 1502.03492), on weights instead of hyperparameters.

        Returns:
            float64 [N], nats a unit of weight; higher = keep, 0 for a row in no step.
        """
        weights = torch.ones(self.n_rows, dtype=torch.float64)
        states = list(self._states(weights))
        with sdpa_kernel(SDPBackend.MATH):
            final = states.pop()
            pulled = [grad(self._safe_loss)(final[0])] + [torch.zeros_like(m) for m in final[1:]]
            total = torch.zeros_like(weights)
            for number in reversed(range(len(self._batches))):
                _, pull = vjp(partial(self._step, number), states.pop(), weights)
                pulled, share = pull(tuple(pulled))
                total += share
        return -total.numpy()

    def safe_losses(self, weights: np.ndarray) -> np.ndarray:
        """Retrains with each vector of weights and measures the safe loss at the end.

        Args:
            weights: float [K, N]; a row of weight zero is left out.

        Returns:
            float64 [K], nats a token.
        """
        measured = []
        for part in torch.from_numpy(np.asarray(weights, np.float64)).split(MODELS_AT_ONCE):
            last = deque(self._states(part, many=len(part)), maxlen=1).pop()
            with sdpa_kernel(SDPBackend.MATH):
                measured.append(vmap(self._safe_loss)(last[0]))
        return torch.cat(measured).numpy()

    def left_out(self) -> np.ndarray:
        """Rise of the final safe loss when one row is left out, by retraining without each.

        Returns:
            float64 [N], nats a token; higher = keep. `scores` is its first-order form.
        """
        everything = np.ones((1, self.n_rows))
        return self.safe_losses(1 - np.eye(self.n_rows)) - self.safe_losses(everything)

    def trained(self) -> dict[str, torch.Tensor]:
        """Trainable parameters by name after the run with weights of one, float64."""
        weights = torch.ones(self.n_rows, dtype=torch.float64)
        last = deque(self._states(weights), maxlen=1).pop()
        return self._named(last[0])

    def _states(self, weights: torch.Tensor, many: int = 0) -> Iterator[tuple]:
        """(parameters, moments ...) before each step and after the last, of one run or of many."""
        zeros = torch.zeros_like(self._start)
        state = (self._start, zeros, zeros) if self.run.adam else (self._start,)
        if many:
            state = tuple(part.expand(many, -1) for part in state)
        yield state
        for number in range(len(self._batches)):
            step = partial(self._step, number)
            with sdpa_kernel(SDPBackend.MATH):
                state = vmap(step)(state, weights) if many else step(state, weights)
            yield state

    def _step(self, number: int, state: tuple, weights: torch.Tensor) -> tuple:
        """One optimizer step: (flat parameters [P], moments [P] ...) to the same."""
        batch, rate = self._batches[number], self.run.learning_rate
        gradient = grad(lambda flat: (weights[batch.at] * self._losses(flat, batch)).mean())(
            state[0]
        )
        if not self.run.adam:
            return (state[0] - rate * gradient,)
        first = BETAS[0] * state[1] + (1 - BETAS[0]) * gradient
        second = BETAS[1] * state[2] + (1 - BETAS[1]) * gradient**2
        unbiased = [
            m / (1 - b ** (number + 1)) for m, b in zip((first, second), BETAS, strict=True)
        ]
        return (
            state[0] - rate * unbiased[0] / (_root(unbiased[1]) + self.run.epsilon),
            first,
            second,
        )

    def _safe_loss(self, flat: torch.Tensor) -> torch.Tensor:
        return self._losses(flat, self._safe).mean()

    def _losses(self, flat: torch.Tensor, rows: "_Rows") -> torch.Tensor:
        """Mean nats a token of each row: flat parameters [P] to [R]."""
        output = functional_call(self.model, self._named(flat), kwargs=rows.inputs)
        token_nll = _cross_entropy(output.logits.flatten(0, -2), rows.targets)
        return sum_by_row(token_nll, rows.segments, len(rows.at)) / rows.tokens

    def _named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }


class _Rows:
    """A packed batch, as keyword arguments of a transformers model, and what sums its loss."""

    def __init__(self, dataset: SFTDataset, rows: np.ndarray):
        batch: Batch = dataset.batch(rows)
        self.at = batch.rows
        self.tokens = torch.from_numpy(dataset.supervised[rows]).double()
        self.targets, self.segments = batch.targets, batch.segments
        self.inputs = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
            "logits_to_keep": batch.positions,
            "cu_seq_lens_q": batch.cu_seqlens,
            "cu_seq_lens_k": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
            "max_length_k": batch.max_seqlen,
        }


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[S, V] to [S]; written out, as the library's own has no second derivative under vmap."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def _root(second: torch.Tensor) -> torch.Tensor:
    """Square root with derivative 0 at 0: a parameter that no row reaches stays as it is."""
    reached = second > 0
    return torch.where(reached, torch.where(reached, second, 1.0).sqrt(), 0.0)


def subset_weights(n_rows: int, n_subsets: int, kept: float, seed: int) -> np.ndarray:
    """Weights that leave random rows out: the kept ones share a mean of one over all rows.

    Args:
        kept: share of the rows in each subset, in (0, 1).

    Returns:
        float64 [n_subsets, n_rows].
    """
    size = round(kept * n_rows)
    order = np.random.default_rng(seed).random((n_subsets, n_rows)).argsort(1).argsort(1)
    return (order < size) * (n_rows / size)


def linear_datamodelling_score(
    scores: np.ndarray, weights: np.ndarray, safe_losses: np.ndarray
) -> float:
    """How well the sum of a subset's scores foretells the safety of a model trained on it.

    Source: Park et al. 2023, TRAK (arXiv 2303.14186), section 2.

    Args:
        scores: [N], higher = keep.
        weights: [K, N] of `subset_weights`.
        safe_losses: [K] of `Oracle.safe_losses`.

    Returns:
        Spearman correlation of the predicted with the measured, 1 for a perfect prediction.
    """
    return float(spearmanr(weights @ scores, -safe_losses).statistic)
