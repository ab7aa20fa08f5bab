"""Ranks, engines and collectives; `engine_state` saves and loads what the engines learn."""

import contextlib
import inspect
import logging
import math
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import torch
import transformers

from seal.errors import InputError, NonFiniteLoss, known
from seal.files import claim, no_room
from seal.progress import Progress, say
from seal.utils import engine_state
from seal.utils.stopping import stop_requests

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

T = TypeVar("T")
GRAD_ACCUM_DTYPES = ("fp32", "bf16")
# Operations a second of a dense product in bf16, by the makers' data sheets: part of a name, peak.
PEAKS = {
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
# Launchers set them.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ROLL_CALL_SECONDS = 5
CACHED = "_PartitionedParameterCoordinator__params_to_release"


class _NotFinite(Exception):
    """A gradient norm that no step may be taken with."""


@dataclass(frozen=True)
class Precision:
    """Number formats of the engine: bf16 weights or float32; what gradients add up in (fp32)."""

    bf16: bool = False
    grad_accum_dtype: str | None = None


@dataclass(frozen=True)
class Zero:
    """ZeRO: the stage, ZeRO++ partition size, Adam on the CPU, the stage-3 trace cache."""

    stage: int = 2
    zpg: int = 1
    adam_offload: bool = False
    disable_trace_cache: bool = False


class DeepspeedStrategy:
    """Processes, devices and the DeepSpeed engine, configured by plain numbers.

    Args:
        zero: ZeRO settings.
        precision: number formats.
        max_norm: gradient norm limit; 0 for none.
        seed: of every random generator on every rank.
        timeout_minutes: longest wait for another rank before the run fails.

    Raises:
        InputError: a ZeRO stage or accumulator type DeepSpeed does not have.
    """

    def __init__(
        self,
        zero: Zero | None = None,
        precision: Precision | None = None,
        max_norm: float = 1.0,
        seed: int = 42,
        timeout_minutes: float = 30.0,
    ):
        self.zero = zero or Zero()
        self.precision = precision or Precision()
        if self.zero.stage not in range(4):
            raise InputError(f"--zero_stage must be 0, 1, 2 or 3, got {self.zero.stage}")
        self.accumulator = accumulator = self.precision.grad_accum_dtype or "fp32"
        if accumulator not in GRAD_ACCUM_DTYPES:
            values = known(accumulator, GRAD_ACCUM_DTYPES)
            raise InputError(f"--grad_accum_dtype {accumulator}: {values}")
        if accumulator == "bf16" and not self.precision.bf16:
            raise InputError("--grad_accum_dtype bf16 needs --bf16; fp32 is the default")
        if self.precision.bf16 and accumulator == "fp32" and self.zero.stage == 0:
            self.zero = replace(self.zero, stage=1)  # DeepSpeed 0.19.8 lacks it in stage 0
        self.max_norm = max_norm
        self.seed = seed
        self.timeout = timedelta(minutes=timeout_minutes)
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cpu")
        self._plain = self.zero.stage == 0 and not self.precision.bf16
        layouts = ("parameters" if self._plain else "copies", "pieces", "pieces", "partitions")
        self.layout: engine_state.Layout = layouts[self.zero.stage]
        self._norms: list[torch.Tensor] = []
        self._asked_to_stop: Callable[[], bool] | None = None
        self._claims: list = []
        self._said: set[str] = set()

    def setup_distributed(self) -> None:
        """Joins the process group (alone: rank 0 of 1) and seeds every random generator."""
        _quieten(bars=self.is_rank_0() and sys.stderr.isatty())
        self.seed_everything()
        accelerator = get_accelerator()
        if accelerator.device_name() != "cpu":
            accelerator.set_device(self.local_rank)
            self.device = torch.device(accelerator.device_name(self.local_rank))
        # DeepSpeed would compile its shared-memory operator, which serves inference only: half a
        # minute at the first start, and a process killed meanwhile leaves a lock file behind that
        # every later run waits for without end (torch.utils.file_baton; deepspeed 0.19.8).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "gloo" if self.device.type == "cpu" else None
        missing = [name for name in RENDEZVOUS if name not in os.environ]
        if missing and not torch.distributed.is_initialized():
            if self.rank or self.world_size > 1:
                raise InputError(
                    f"rank {self.rank} of {self.world_size}, and {missing[0]} is not set; start "
                    "with deepspeed or torchrun, which set it, or unset RANK and WORLD_SIZE"
                )
            # Alone: no port to find, no rank that a child process would inherit. DeepSpeed would
            # ask mpi4py for them. A parent that uses accelerate leaves RANK and WORLD_SIZE behind.
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        if self.zero.stage == 3:  # reads it while a model loads, and in the first steps
            os.environ.setdefault("LOCAL_RANK", str(self.local_rank))
        try:
            deepspeed.init_distributed(dist_backend=backend, timeout=self.timeout, verbose=False)
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            raise InputError(
                f"port {os.environ['MASTER_PORT']} is in use, perhaps by another run; give the "
                "launcher another one: --master_port N"
            ) from error

    def seed_everything(self) -> None:
        """Puts every random generator of this rank back to the start."""
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)

    def is_rank_0(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def print(self, *message: object) -> None:
        """Prints on rank 0."""
        say(*message)

    def print_once(self, message: str) -> None:
        """Prints on rank 0 what it has not printed before."""
        if message not in self._said:
            self._said.add(message)
            self.print(message)

    def barrier(self) -> None:
        """Waits for every rank."""
        dist.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over the ranks, in place; any shape, on any device; returns it."""
        moved = tensor.to(self.device)
        dist.all_reduce(moved)
        return tensor.copy_(moved)

    def all_gather_object(self, value: T) -> list[T]:
        """One small picklable value from each rank, in rank order."""
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, SIGTERM, Ctrl-C and SIGUSR1 end nothing: `must_stop` tells of them."""
        with stop_requests() as self._asked_to_stop:
            try:
                yield
            finally:
                self._asked_to_stop = None

    def must_stop(self, failure: Exception | None = None) -> bool:
        """Whether any rank has been asked to stop inside `stoppable`; the same answer on each.

        Args:
            failure: of what this rank alone does; it is raised on every rank.
        """
        if self._asked_to_stop is None:
            return False
        asked = self._asked_to_stop()
        stopping, failed = self.all_reduce(torch.tensor([float(asked), float(failure is not None)]))
        if failed:
            self.agree(failure)
        return bool(stopping)

    def main_first(self, work: Callable[[], T]) -> T:
        """Runs `work` on the first rank of each node, then on the others (who find its caches).

        Raises:
            InputError: on every rank, when it was raised on a first rank.
        """
        leader = self.local_rank == 0
        with Progress("preparing rows"):
            result, failure = _attempt(work) if leader else (None, None)
            self.agree(failure)
            return result if leader else work()

    def on_every_rank(self, fact: bool) -> bool:
        """Whether it holds on all ranks; the same answer on each."""
        return all(self.all_gather_object(fact))

    def agree(self, failure: BaseException | None) -> None:
        """Raises on every rank when any rank failed, so that none is left waiting."""
        failure = no_room(failure) or failure
        own = None if failure is None else (isinstance(failure, InputError), str(failure))
        failures = [found for found in self.all_gather_object(own) if found is not None]
        if failure is not None:
            raise failure
        if failures:
            foreseen, message = failures[0]
            raise InputError(message) if foreseen else RuntimeError(message)

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Runs `work` on every rank; the failure of any is raised on all."""
        result, failure = _attempt(work)
        self.agree(failure)
        return result

    def on_rank_0(self, work: Callable[[], T]) -> T | None:
        """Runs `work` on rank 0 alone while the others wait; its failure is raised everywhere."""
        result, failure = _attempt(work) if self.is_rank_0() else (None, None)
        self.agree(failure)
        return result

    def from_rank_0(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, a small picklable value, on every rank."""
        return self.all_gather_object(self.on_rank_0(work))[0]

    def claim(self, *outputs: str | Path) -> None:
        """Makes outputs this run's own until it ends.

        Raises:
            InputError: on every rank, when another run holds one of them.
        """
        self._claims += self.on_rank_0(lambda: [claim(path) for path in outputs]) or []

    def ds_config(self, micro_batch: int = 1) -> dict:
        """The DeepSpeed configuration, every number explicit.

        The caller owns the accumulation boundary (`managed_gradient_accumulation` off): any number
        of `backward` calls, then one `step`; the loss already carries its global scale.
        """
        zero = {
            "stage": self.zero.stage,
            "overlap_comm": False,
            "offload_optimizer": {"device": "cpu" if self.zero.adam_offload else "none"},
            "stage3_gather_16bit_weights_on_model_save": False,
            "zero_hpz_partition_size": self.zero.zpg,
        }
        if self.zero.disable_trace_cache:
            zero |= {
                "stage3_prefetch_bucket_size": 0,
                "stage3_max_live_parameters": 0,
                "stage3_max_reuse_distance": 0,
            }
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.max_norm,
            "zero_optimization": zero,
            "bf16": {"enabled": self.precision.bf16},
            "zero_force_ds_cpu_optimizer": False,
            "prescale_gradients": False,
            "steps_per_print": None,
            "wall_clock_breakdown": False,
            "data_types": {"grad_accum_dtype": self.accumulator},
            # Stage 1 reduces once a step, after the sum; the others every micro-step.
            **({"communication_data_type": self.accumulator} if self.zero.stage == 1 else {}),
        }

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Loads a model inside: to this rank's device, or in partitions under ZeRO-3."""
        keep_alive, place = None, torch.device(self.device)
        if self.zero.stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            keep_alive = HfDeepSpeedConfig(self.ds_config())  # held by weak reference elsewhere
            place = contextlib.nullcontext()
        with Progress("loading the model"), place:
            yield
        del keep_alive

    def create_optimizer(
        self, model: torch.nn.Module, learning_rate: float, l2: float, apart: Iterable = ()
    ):
        """AdamW (0.9, 0.95) on `parameter_groups`."""
        groups = self.parameter_groups(model, l2, apart)
        settings = {"lr": learning_rate, "betas": (0.9, 0.95)}
        if self.zero.adam_offload and self.device.type != "cpu":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return torch.optim.AdamW(groups, fused=True, **settings)

    def parameter_groups(self, model: torch.nn.Module, l2: float, apart: Iterable = ()) -> list:
        """What trains, with weight decay `l2` on matrices and none on vectors.

        Args:
            apart: parameters of the model that are clipped by a norm of their own; none or, of one
                group each, these and all others.
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        own = {id(p) for p in apart}
        if own:
            units = [[p for p in trainable if (id(p) in own) == other] for other in (False, True)]
            return [{"params": unit, "weight_decay": l2, "apart": True} for unit in units]
        groups = [
            {"params": [p for p in trainable if _dimensions(p) > 1], "weight_decay": l2},
            {"params": [p for p in trainable if _dimensions(p) <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]  # DeepSpeed drops empty ones

    def prepare(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int], float] | None = None,
    ) -> deepspeed.DeepSpeedEngine:
        """Wraps the model in a DeepSpeed engine.

        Args:
            model: on any device; moved to this rank's.
            optimizer: over the model's trainable parameters.
            factor: learning-rate factor by optimizer step; None for constant.
        """
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if factor else None
        config = self.ds_config()
        if self._plain or any("apart" in group for group in optimizer.param_groups):
            optimizer.register_step_pre_hook(self._clip_before_step)
            config["gradient_clipping"] = 0.0
        with _local_rank_given(), Progress("preparing the engine"):
            engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config
            )
        # DeepSpeed 0.19.8 makes groups of its own with torch's default of half an hour.
        for group in dist.distributed_c10d._world.pg_map:
            dist.distributed_c10d._set_pg_timeout(self.timeout, group)
        return engine

    def release(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """Ends an engine; its memory is free once the caller drops it."""
        engine.destroy()
        # deepspeed 0.19.8 keeps every model of ZeRO-3: on a stack that is pushed to at the start
        # and never popped, and in the cache of a method, shared by all engines.
        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module is not engine.module]
        cached = vars(PartitionedParameterCoordinator)[CACHED]
        inspect.getclosurevars(cached).nonlocals["func"].cache_clear()

    def backward(self, engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` summed over the ranks; call any number of times a step.

        DeepSpeed averages over ranks; multiplying by their number makes it the plain sum.
        """
        engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, engine: deepspeed.DeepSpeedEngine, number: int = 1) -> float:
        """One optimizer step.

        Args:
            number: of the step, for the message.

        Returns:
            Global gradient norm before clipping; of the first group where groups are apart.

        Raises:
            NonFiniteLoss: on every rank, a norm is not finite; nothing has been changed.
        """
        self._norms = []
        with contextlib.suppress(_NotFinite):
            engine.step()  # under ZeRO, DeepSpeed 0.19.8 leaves out a step of such a norm itself
        if self.zero.stage == 3:
            # Its buffers are overwritten in the first backward of a step and added to in the later
            # ones, so a parameter that the first one does not reach would keep an old gradient.
            engine.optimizer.grad_partitions_flat_buffer.zero_()
        norms = [float(norm) for norm in self._norms] or [float(engine.get_global_grad_norm())]
        if not all(map(math.isfinite, norms)):
            told = ", ".join(f"{norm:g}" for norm in norms)
            raise NonFiniteLoss(
                f"step {number}: the gradient norm is {told}; lower --learning_rate"
            )
        return norms[0]

    def gathered(self, parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager:
        """Whole parameters inside the context, whatever the ZeRO stage (read only)."""
        return deepspeed.zero.GatheredParameters(parameters, enabled=self.zero.stage == 3)

    def writable(self, parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager:
        """As `gathered`, and what rank 0 writes is what every rank holds afterwards."""
        partitioned = self.zero.stage == 3
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=partitioned)

    def save_model(self, engine: deepspeed.DeepSpeedEngine, tokenizer, directory: str) -> None:
        """Writes the model (or its LoRA adapter) and the tokenizer; call on every rank."""
        with Progress("writing the model"):
            engine_state.save_model(self, engine, tokenizer, Path(directory))

    def save_engine(self, engine: deepspeed.DeepSpeedEngine, directory: Path, name: str) -> None:
        """Writes what the engine has learned; call on every rank."""
        engine_state.save_engine(self, engine, directory, name)

    def load_engine(self, engine: deepspeed.DeepSpeedEngine, directory: Path, name: str) -> None:
        """Restores what `save_engine` wrote on any number of ranks under any ZeRO stage."""
        engine_state.load_engine(self, engine, directory, name)

    def sizes(self, engines: list[deepspeed.DeepSpeedEngine]) -> tuple[int, int]:
        """Bytes of a checkpoint of the engines, and of the first one's model as it is saved."""
        learned = [p for engine in engines for p in engine_state.trainable(engine).values()]
        actor = engines[0].module
        saved = actor.parameters_of(engine_state.MAIN)
        if not actor.has_adapter:
            saved = engine_state.named_tensors(engines[0], trainable_only=False).values()
        # of each number that trains a float32 weight and two moments
        return 12 * sum(map(_count, learned)), sum(_count(t) * t.element_size() for t in saved)

    def peak_memory(self) -> int:
        """Most bytes that this rank has held of its device, or as a process on a CPU."""
        if self.device.type == "cpu":
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return get_accelerator().max_memory_reserved()

    def speed(self, engine, seconds: float, forward: int, backward: int) -> dict[str, float]:
        """What the log says of a step's speed.

        Args:
            forward: tokens that all ranks passed forward; backward: those passed backward.

        Returns:
            Tokens a second of all ranks; peak memory of this rank, GiB; TFLOP/s a rank of the
            arithmetic that the weights need (recomputed layers and attention count nothing), left
            out for experts and packed weights; its share of the device's peak, where known.

        Source: model FLOPs utilisation, PaLM (arXiv 2204.02311), appendix B.
        """
        found = {
            "train/tokens_per_second": forward / seconds,
            "train/peak_gib": self.peak_memory() / 2**30,
        }
        actor = engine.module
        parameters = list(actor.parameters())
        whole = all(p.is_floating_point() for p in parameters)
        if actor.experts or not whole:
            return found
        embedding = actor.causal.get_input_embeddings().weight
        tied = actor.causal.get_output_embeddings().weight is embedding
        weights = sum(map(_count, parameters)) - (0 if tied else _count(embedding))
        passes = forward + backward * (1 if actor.has_adapter else 2)
        flops = 2 * weights * passes / seconds / self.world_size
        found["train/tflops"] = flops / 1e12
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            peak = next((peak for part, peak in PEAKS.items() if part in name), None)
            found |= {"train/utilisation": flops / peak} if peak else {}
        return found

    def rng_state(self) -> dict[str, torch.Tensor]:
        """State of this rank's torch generators (nothing else draws during training)."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            state["device"] = get_accelerator().get_rng_state()
        return state

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores `rng_state`'s value."""
        torch.set_rng_state(state["cpu"])
        if self.device.type != "cpu":
            get_accelerator().set_rng_state(state["device"])

    def _clip_before_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """What DeepSpeed does not clip right: stage 0 in float32 (it keeps no norm there), and
        groups that have a norm each. Under ZeRO it steps on one group after another."""
        units = [group["params"] for group in optimizer.param_groups if group["params"]]
        if "apart" not in optimizer.param_groups[0]:
            units = [[p for unit in units for p in unit]]
        for unit in units:
            grads = [p.grad for p in unit if p.grad is not None]
            square = torch.stack([grad.float().square().sum() for grad in grads]).sum()
            if self.zero.stage:  # each rank holds a piece
                self.all_reduce(square)
            self._norms.append(square.sqrt())
            if not self._norms[-1].isfinite():
                raise _NotFinite
            if self.max_norm:
                for grad in grads:
                    grad.mul_((self.max_norm / (self._norms[-1] + 1e-6)).clamp(max=1.0))


def lost_ranks(failure: Exception) -> list[int]:
    """The ranks that do not answer after a failure to communicate; [] for any other failure.

    Every rank that is well fails too, a moment after the first one, and says so in the store.
    """
    if not isinstance(failure, dist.DistError) and "gloo" not in str(failure):
        return []
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a launcher that has lost a rank as well
    try:
        return ThreadPoolExecutor(1).submit(_roll_call).result(2 * ROLL_CALL_SECONDS)
    except (TimeoutError, dist.DistError):
        return [0]  # which holds the store


def _roll_call() -> list[int]:
    store, ranks = dist.distributed_c10d._get_default_store(), range(dist.get_world_size())
    store.set(f"failed/{dist.get_rank()}", "")
    time.sleep(ROLL_CALL_SECONDS)
    return [rank for rank in ranks if not store.check([f"failed/{rank}"])]


@contextlib.contextmanager
def _local_rank_given() -> Iterator[None]:
    """DeepSpeed wants the launcher's variable; a child that inherits it looks for a group."""
    alone = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if alone:
            del os.environ["LOCAL_RANK"]


def leave() -> bool:
    """Leaves the process group; whether there was one."""
    joined = dist.is_initialized()
    if joined:
        dist.destroy_process_group()
    return joined


def _attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _quieten(bars: bool) -> None:
    """Leaves DeepSpeed's warnings, and the progress bars of datasets where someone looks."""
    if not bars:
        datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    for library in ("torch.distributed", "transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)


def _count(tensor: torch.Tensor) -> int:
    """Numbers in a tensor; ZeRO-3 leaves a piece of each and keeps the count aside."""
    return tensor.ds_numel if is_zero_param(tensor) else tensor.numel()


def _dimensions(parameter: torch.nn.Parameter) -> int:
    """Dimensions of a parameter; ZeRO-3 flattens it and keeps its shape aside."""
    shape = parameter.ds_shape if is_zero_param(parameter) else parameter.shape
    return len(shape)
