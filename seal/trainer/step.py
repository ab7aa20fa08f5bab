"""The one training step: every trainer, evaluation and scorer goes through these functions."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from seal.datasets import Batch, SFTDataset
from seal.errors import InputError, NonFiniteLoss
from seal.models.probe import settle

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy


def plan_micro_batches(
    lengths: np.ndarray, world_size: int, capacity: int
) -> list[list[list[int]]]:
    """Spreads the rows of a global batch over ranks and micro-batches.

    Longest row first, each into the least loaded micro-batch that exists (LPT), with as few
    micro-batches as hold `capacity` tokens each; every rank gets the same number of them, some
    possibly empty. Ranks differ in tokens by at most about one row.

    Args:
        lengths: int [R], tokens of each row, each at most `capacity`.
        world_size: ranks.
        capacity: tokens a micro-batch may hold.

    Returns:
        `plan[rank][micro_step]` = positions in `lengths`.
    """
    order = np.argsort(-lengths, kind="stable")
    micro_steps = max(1, math.ceil(int(lengths.sum()) / (capacity * world_size)))
    while True:
        bins = _least_loaded(lengths, order, micro_steps * world_size)
        if max(int(lengths[rows].sum()) for rows in bins) <= capacity:
            return [bins[rank::world_size] for rank in range(world_size)]
        micro_steps += 1


def _least_loaded(lengths: np.ndarray, order: np.ndarray, n_bins: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = [(0, number) for number in range(n_bins)]
    for position in order.tolist():
        load, number = heapq.heappop(heap)
        bins[number].append(position)
        heapq.heappush(heap, (load + int(lengths[position]), number))
    return bins


class RowModel:
    """Runs an engine over sets of rows of one dataset, after `seal.models.probe` found it right.

    Args:
        engine: a prepared `seal.models.actor.Actor`.
        strategy: ranks and collectives.
        dataset: the rows.
        capacity: tokens a micro-batch may hold (micro_train_batch_size * max_len).
        aux_loss_coef: weight of the mixture-of-experts balance loss, per global batch.
        adapter: the LoRA adapter to run with, where the model holds several.

    Raises:
        InputError: the model cannot be run right, or not on these rows.
    """

    def __init__(
        self,
        engine,
        strategy: DeepspeedStrategy,
        dataset: SFTDataset,
        capacity: int,
        aux_loss_coef: float = 0.0,
        adapter: str | None = None,
    ):
        self.engine = engine
        self.strategy = strategy
        self.dataset = dataset
        self.capacity = capacity
        self.aux_loss_coef = aux_loss_coef
        self.adapter = adapter
        strategy.on_rank_0(self._require_fitting)
        if not engine.module.settled:
            strategy.print_once(settle(engine.module, engine, engine.empty_partition_cache))

    def _require_fitting(self) -> None:
        """Refuses rows that the model has no embedding or no positions for."""
        actor, longest = self.engine.module, int(self.dataset.lengths.max())
        if actor.positions and longest > actor.positions:
            raise InputError(
                f"a row has {longest} tokens, the model is made for {actor.positions}; "
                f"--max_len {actor.positions} cuts it"
            )
        token = self.dataset.highest_token
        if token >= actor.vocabulary:
            raise InputError(
                f"token {token} stands in the rows, the model's embedding ends at "
                f"{actor.vocabulary - 1}; use the model's own tokenizer, or enlarge the embedding"
            )

    def over(self, dataset: SFTDataset) -> RowModel:
        """The same model over other rows."""
        return RowModel(
            self.engine, self.strategy, dataset, self.capacity, self.aux_loss_coef, self.adapter
        )

    def forward(self, rows: np.ndarray) -> torch.Tensor:
        """Losses without gradients: int64 [R] rows to float32 [R] nats, summed over tokens."""
        return self.half_sums(rows).sum(1)

    def half_sums(self, rows: np.ndarray) -> torch.Tensor:
        """As `forward`, apart for even and odd supervised tokens: float32 [R, 2] nats."""
        with torch.no_grad():
            parts = [(at, losses) for at, losses, _, _ in self._micro_steps(rows)]
        return self._collected(parts, len(rows), 2)

    def token_losses(self, rows: np.ndarray) -> torch.Tensor:
        """Loss of every supervised token: float32 [S] nats, row after row."""
        ends = np.cumsum(self.dataset.supervised[rows])
        nll = torch.zeros(int(ends[-1]), dtype=torch.float32)
        for positions, batch in self._batches(rows):
            losses = torch.split(self._glance(batch, by_token=True), batch.counts().tolist())
            for position, row in zip(positions, losses, strict=False):
                nll[ends[position] - len(row) : ends[position]] = row.cpu()
        return self.strategy.all_reduce(nll)

    def states(self, rows: np.ndarray, layers: Sequence[int]) -> torch.Tensor:
        """Pooled states of rows at some layers: float32 [K, R, 3, H], see `pooled`."""
        found = None
        for positions, batch in self._batches(rows):
            part = pooled(self._glance(batch, layers=layers).float(), batch).cpu()
            if found is None:
                found = torch.zeros(len(layers), len(rows), *part.shape[2:])
            found[:, positions] = part[:, : len(positions)]
        return self.strategy.all_reduce(found)

    @torch.no_grad()
    def _glance(self, batch: Batch, **wanted) -> torch.Tensor:
        return self.engine(batch, **wanted)

    def backward(self, rows: np.ndarray, coefficients: torch.Tensor) -> torch.Tensor:
        """Accumulates the gradient of `sum_i coefficients_i * nll_i` over all ranks.

        Rows of coefficient zero take a forward pass only.

        Args:
            rows: int64 [R], the global batch, the same on every rank.
            coefficients: float32 [R], per nat.

        Returns:
            float32 [R], nats of each row, summed over its supervised tokens, before the step.
        """
        live = coefficients != 0
        nll = torch.zeros(len(rows), dtype=torch.float32)
        if not live.all():
            nll[~live] = self.forward(rows[(~live).numpy()])
        if not live.any():
            return nll
        live_rows, live_coefficients = rows[live.numpy()], coefficients[live]
        plan = self._plan(live_rows)
        balance = self.aux_loss_coef / (self.strategy.world_size * len(plan))
        parts = []
        for at, losses, objective, aux_loss in self._micro_steps(
            live_rows, live_coefficients, plan
        ):
            if balance:
                objective = objective + balance * aux_loss
            self.strategy.backward(self.engine, objective)
            parts.append((at, losses))
        nll[live] = self._collected(parts, len(live_rows))
        return nll

    def _collected(self, parts: list[tuple], *shape: int) -> torch.Tensor:
        """What each micro-batch gave, (positions, values), of all ranks: float32 [R, ...].

        The values come from the device here, once, so that no micro-batch waits for the one before.
        """
        found = torch.zeros(shape, dtype=torch.float32)
        found[[at for positions, _ in parts for at in positions]] = torch.cat(
            [values for _, values in parts]
        ).cpu()
        return self.strategy.all_reduce(found)

    def _plan(self, rows: np.ndarray) -> list[list[int]]:
        lengths = self.dataset.lengths[rows]
        if not self.engine.module.packed:  # each row takes as much room as the longest
            lengths = np.full_like(lengths, lengths.max())
        return plan_micro_batches(lengths, self.strategy.world_size, self.capacity)[
            self.strategy.rank
        ]

    def _batches(
        self, rows: np.ndarray, plan: list[list[int]] | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """This rank's micro-batches: positions in `rows`, and those rows on the device."""
        if self.adapter:
            self.engine.module.use_adapter(self.adapter)
        for positions in plan or self._plan(rows):
            # A rank without rows still takes the pass, which ZeRO-3 waits for, on one row that
            # counts for nothing.
            held = rows[positions] if positions else rows[:1]
            yield positions, self.dataset.batch(held).to(self.strategy.device)

    def _micro_steps(
        self,
        rows: np.ndarray,
        coefficients: torch.Tensor | None = None,
        plan: list[list[int]] | None = None,
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """This rank's micro-batches: (positions in `rows`, losses, objective, auxiliary loss).

        Without coefficients the losses are those of `half_sums`.
        """
        for positions, batch in self._batches(rows, plan):
            if coefficients is None:
                losses, *rest = self.engine(_in_halves(batch))
                losses = losses.view(-1, 2)
            else:
                counted = coefficients[positions] if positions else torch.zeros(1)
                counted = counted.to(self.strategy.device)
                losses, *rest = self.engine(batch, counted)
            yield positions, losses[: len(positions)], *rest


def pooled(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What is kept of a row's states: [K, T, H] to [K, R, 3, H].

    In this order: the mean over the supervised tokens, the state at the last token before them, the
    state at the last of them.
    """
    counts = batch.counts()
    ends = counts.cumsum(0)
    learned = states[:, batch.positions + 1]
    sums = states.new_zeros(len(states), len(counts), states.shape[2])
    means = sums.index_add(1, batch.segments, learned) / counts[:, None]
    before = states[:, batch.positions[ends - counts]]
    return torch.stack([means, before, learned[:, ends - 1]], dim=2)


def _in_halves(batch: Batch) -> Batch:
    """Even and odd supervised tokens of each row as two rows, one after the other."""
    counts = batch.counts()
    places = torch.arange(len(batch.segments), device=batch.segments.device)
    places -= (counts.cumsum(0) - counts)[batch.segments]
    segments = 2 * batch.segments + places % 2
    return batch._replace(segments=segments, rows=batch.rows.repeat_interleave(2))


def require_finite(nll: torch.Tensor, rows: np.ndarray, dataset: SFTDataset, step: int) -> None:
    """Stops the run, on every rank, at the first loss that is not a number.

    Raises:
        NonFiniteLoss: naming the step and up to three row ids.
    """
    bad = (~nll.isfinite()).nonzero().flatten().tolist()
    if bad:
        named = ", ".join(bytes(dataset.ids[rows[at]]).hex() for at in bad[:3])
        raise NonFiniteLoss(
            f"step {step}: {len(bad)} of {len(rows)} rows have a loss that is not finite "
            f"(first ids: {named}); lower the learning rate or look at these rows"
        )
