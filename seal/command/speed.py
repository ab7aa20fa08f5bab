"""How fast this machine trains a model, and what its activations take: measured on few layers."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch

from seal.datasets import Batch, SFTDataset
from seal.datasets.cache import cache_path, fingerprint
from seal.files import atomic_path
from seal.models.actor import Actor, ModelSettings, untrained_actor

LAYERS = (1, 2)  # what is measured; the cost of the others follows on the line through both
REPEATS = 3
TOKENS = 2048  # of the micro-batch that is timed, at most


class Speed(NamedTuple):
    """What one rank needs, without communication.

    Attributes:
        learn: seconds a token, forward and backward.
        read: seconds a token, forward alone.
        step: seconds an optimizer step over all that trains.
        kept: bytes a token that a forward pass keeps for backward, without checkpointing.
        kept_by_layer: bytes a token of that for one layer.
    """

    learn: float
    read: float
    step: float
    kept: float
    kept_by_layer: float


def device() -> torch.device:
    """What training would run on here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def given_speed(tokens_per_s: float, frozen: bool) -> Speed:
    """The speed of a run that is known to learn so fast; activations are not known then.

    A forward pass is a third of a step, half of it where the base is frozen.
    """
    learn = 1 / tokens_per_s
    return Speed(learn, learn / (2 if frozen else 3), step=0.0, kept=0.0, kept_by_layer=0.0)


def measured_speed(
    settings: ModelSettings, layers: int, rows: SFTDataset, tokens: float, refresh: bool
) -> Speed:
    """The speed of a model of `layers` layers on this machine, measured once and then remembered.

    Args:
        rows: typical rows; as many as hold `tokens`, or `TOKENS`, make the micro-batch.
        tokens: of a micro-batch of the run.
        refresh: measure again.
    """
    ends = rows.lengths.cumsum()
    fitting = int((ends <= min(tokens, TOKENS)).sum())
    batch = rows.batch(range(max(1, fitting))).to(device())
    tokens = batch.input_ids.numel()
    where = torch.cuda.get_device_name() if device().type == "cuda" else torch.get_num_threads()
    key = [asdict(settings), layers, tokens, where, torch.__version__]
    path = cache_path(f"speed-{fingerprint(*key)}.json")
    if path.exists() and not refresh:
        return Speed(**json.loads(path.read_text()))
    counts = LAYERS if layers > max(LAYERS) else (layers,)
    points = [_measure(settings, count, batch) for count in counts]
    first, last = points[0], points[-1]
    by_layer = [max(0.0, b - a) for a, b in zip(first, last, strict=True)]
    more = layers - counts[-1]
    learn, read, step, kept = (b + more * d for b, d in zip(last, by_layer, strict=True))
    layer = by_layer[-1] if len(points) > 1 else last[-1] / layers
    speed = Speed(learn / tokens, read / tokens, step, kept / tokens, layer / tokens)
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(speed._asdict(), indent=1))
    return speed


def _measure(settings: ModelSettings, layers: int, batch: Batch) -> tuple[float, ...]:
    """(seconds of forward and backward, of forward, of an optimizer step, bytes kept)."""
    with torch.device(device()):
        actor = untrained_actor(settings, layers)
    trainable = [p for p in actor.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, fused=device().type == "cuda")

    def read() -> None:
        with torch.no_grad():
            actor(*batch[:7], len(batch.rows))

    def learn() -> None:
        _objective(actor, batch).backward()

    return _seconds(learn), _seconds(read), _seconds(optimizer.step), _bytes_kept(actor, batch)


def _objective(actor: Actor, batch: Batch) -> torch.Tensor:
    """The sum of the rows' losses, with its graph."""
    n_rows = len(batch.rows)
    return actor(*batch[:7], n_rows, torch.ones(n_rows, device=batch.input_ids.device))[1]


def _seconds(work: Callable[[], object]) -> float:
    """The fastest of a few runs after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device().type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _bytes_kept(actor: Actor, batch: Batch) -> float:
    """Bytes of the tensors that a forward pass saves for backward, weights left out."""
    actor.eval()  # transformers checkpoints in training mode only
    weights = {p.untyped_storage().data_ptr() for p in actor.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective = _objective(actor, batch)  # its graph holds what was counted
    del objective
    return float(sum(kept.values()))
