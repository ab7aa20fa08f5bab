"""The check of a loaded model: does each row of a batch get the loss that it has alone?

Models differ in what they do with rows that lie in one stream: some keep a state across them, some
have an attention of their own, some change their logits after the head. Two short rows tell.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from seal.errors import InputError, said
from seal.models.attention import VARLEN

if TYPE_CHECKING:
    from seal.models.actor import Actor

LENGTHS = (9, 14)  # tokens of the two rows
# Relative difference of the states of a model of up to 4 layers: the largest of all tokens in
# float32, the median in half precision, where a few round far (SmolLM2: 0.15, the median 0.018).
# Rounding adds up like a walk: a median of 0.045 after 32 layers of random weights.
LIMITS = {torch.float32: 1e-4, torch.float16: 0.025, torch.bfloat16: 0.025}
# What another token may change where it should change nothing: measured 0 to 1e-7, and 6e-3 to 1.5
# in models whose rows are not apart. Experts in half precision are inexact: they round by how many
# tokens they get, and a token may go to another expert. They get a few tries.
LEAK = 1e-3
OTHERS = (31, 57, 83)  # how far the token is moved


Rows = namedtuple(  # the fields of seal.datasets.Batch
    "Rows", "input_ids position_ids cu_seqlens max_seqlen positions targets segments rows"
)


class Way(NamedTuple):
    """How rows are run: with which attention, in one stream or padded, losses by `LossHead`."""

    attention: str
    packed: bool
    fused: bool


def settle(actor: Actor, run: Callable, reset: Callable[[], None] = lambda: None) -> str:
    """Finds the fastest way of running rows that is right, and leaves the actor with it.

    Args:
        actor: on its device.
        run: called as the actor is: the actor itself, or an engine around it.
        reset: called after a failed pass, and after the last.

    Returns:
        A line that says how rows are run.

    Raises:
        InputError: no way is right, or the model cannot be run.
    """
    kind, first = actor.model.config.model_type, _way(actor)
    limit = LIMITS[actor.model.dtype] * max(1, actor.n_layers / 4) ** 0.5
    inexact = limit > LEAK and actor.experts
    reasons = []
    with torch.no_grad(), _evaluating(actor):
        try:
            expected = _alone(actor, run)
        except Exception as error:
            raise InputError(f"a model of kind {kind} does not run: {said(error)}") from error
        if not expected[0].isfinite().all():
            raise InputError(
                f"this {kind} model's losses are not finite before any step: its weights are "
                "damaged, or overflow in this precision; give another, or drop --bf16"
            )
        for way in _ways(actor, first):
            try:
                _take(actor, way)
                found = _results(actor, run, LENGTHS)
                right = _agree(found, expected, limit)
                right = right and _rows_apart(actor, run, found[1], limit if inexact else LEAK)
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {said(error)}")
                reset()
                continue
            if right:
                actor.settled = True
                reset()
                return "; ".join([_note(kind, way), *actor.notes])
            reasons.append("a row's loss depends on the row beside it, or is not the model's own")
    raise InputError(
        f"models of kind {kind} cannot be trained or scored on rows here ({reasons[-1]}); "
        "docs/architectures.md lists those that can"
    )


def _way(actor: Actor) -> Way:
    return Way(actor.causal.config._attn_implementation, actor.packed, actor.fused)


def _ways(actor: Actor, first: Way) -> Iterator[Way]:
    """Every way, fastest first."""
    names = [first.attention]
    if actor.causal._can_set_attn_implementation():
        names = [name for name in dict.fromkeys([*names, "sdpa", "eager"]) if name != VARLEN]
    plain = [(first.attention, True)] if first.packed else []
    for attention, packed in [*plain, *((name, False) for name in names)]:
        for fused in (True, False) if first.fused else (False,):
            yield Way(attention, packed, fused)


def _take(actor: Actor, way: Way) -> None:
    if way.attention != actor.causal.config._attn_implementation:
        actor.causal.set_attn_implementation(way.attention)
    actor.packed, actor.fused = way.packed, way.fused


def _alone(actor: Actor, run: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_results` should be: each row by itself, as transformers runs it, its logits whole."""
    own = _way(actor).attention
    if actor.causal._can_set_attn_implementation():
        own = "eager"
    _take(actor, Way(own, packed=False, fused=False))
    rows = [_results(actor, run, (length,)) for length in LENGTHS]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def _results(actor: Actor, run: Callable, lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Losses of rows of such lengths, [R], and the last states of their tokens, [T, H]."""
    batch = _batch(actor, lengths)
    return run(batch)[0], run(batch, layers=[actor.n_layers])[0].float()


def _agree(found: tuple, expected: tuple, limit: float) -> bool:
    (losses, states), (own_losses, own_states) = found, expected
    apart = _distance(states, own_states)
    apart = apart.median() if limit > LEAK else apart.max()
    close = torch.allclose(losses, own_losses, rtol=limit, atol=limit)
    return close and bool(apart <= limit)


def _rows_apart(actor: Actor, run: Callable, states: torch.Tensor, limit: float) -> bool:
    """Whether the last token of the first row changes its own state alone."""
    batch, changed = _batch(actor, LENGTHS), LENGTHS[0] - 1
    others = torch.arange(sum(LENGTHS)) != changed
    for step in OTHERS if limit > LEAK else OTHERS[:1]:
        ids = batch.input_ids.clone()
        ids[0, changed] = (ids[0, changed] + step) % actor.vocabulary
        moved = run(batch._replace(input_ids=ids), layers=[actor.n_layers])[0].float()
        if _distance(moved, states)[others].max() <= limit:
            return True
    return False


def _distance(states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Relative difference of each token's states, [T]."""
    return (states - others).norm(dim=1) / others.norm(dim=1)


def _batch(actor: Actor, lengths: tuple[int, ...]) -> Rows:
    """Rows of such lengths, tokens from all over the vocabulary, all supervised but the first."""
    device, vocabulary = actor.model.device, actor.vocabulary
    counts = torch.tensor(lengths)
    rows = torch.arange(len(lengths)).repeat_interleave(counts)
    places = torch.cat([torch.arange(length) for length in lengths])
    tokens = (places + 1) * 7919 * counts[rows] % vocabulary
    ends = torch.tensor([0, *lengths]).cumsum(0)
    predicted = places > 0
    positions = predicted.nonzero().flatten() - 1
    return Rows(
        input_ids=tokens[None].to(device),
        position_ids=places[None].to(device),
        cu_seqlens=ends.int().to(device),
        max_seqlen=max(lengths),
        positions=positions.to(device),
        targets=tokens[predicted].to(device),
        segments=rows[predicted].to(device),
        rows=torch.arange(len(lengths)),
    )


def _note(kind: str, way: Way) -> str:
    attention = way.attention.replace(VARLEN, "torch varlen")
    rows = f"rows {'packed' if way.packed else 'padded'}, {attention} attention"
    slower = [] if way.packed else ["padding costs time"]
    slower += [] if way.fused else ["whole logits cost memory"]
    return f"{kind}: {rows}" + (f" (exact; {', '.join(slower)})" if slower else "")


@contextmanager
def _evaluating(actor: Actor) -> Iterator[None]:
    """Without dropout."""
    training = actor.training
    actor.eval()
    try:
        yield
    finally:
        actor.train(training)
