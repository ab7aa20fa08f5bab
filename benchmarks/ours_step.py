"""The package's own step, through its trainers, to time it."""

from step_world import Work, World, new_model
from transformers import PreTrainedModel

from seal.models.actor import MAIN, TRACKER, Actor, use_liger
from seal.models.attention import VARLEN
from seal.models.selector import Selector
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowModel
from seal.utils.logger import NoLogger
from seal.utils.strategy import DeepspeedStrategy


class OurStep:
    """One optimizer step at a time, of the selector or of SFT."""

    gap = False  # the selector's estimator is `penalty_gap`

    def __init__(self, strategy: DeepspeedStrategy, world: World, work: Work):
        self.strategy, self.world, self.work = strategy, world, work
        self.losses = self._over_rows(self._engine(), MAIN)
        self.tracker = self._tracker()
        self.trainer = self._selector() if work.kind == "selector" else self._sft()

    def _engine(self):
        work, strategy = self.work, self.strategy
        with strategy.loading():
            actor = Actor(new_model(self.world, work, VARLEN, strategy.device))
        if work.gradient_checkpointing:
            actor.enable_gradient_checkpointing(use_reentrant=False)
        self.rewrite(actor.model)
        if self.gap and work.lora_rank:
            actor.add_tracker()
        optimizer = strategy.create_optimizer(actor, work.learning_rate, l2=0.0)
        engine = strategy.prepare(actor, optimizer, None)
        engine.train()
        return engine

    def rewrite(self, model: PreTrainedModel) -> None:
        """Puts other kernels into the model; none here."""

    def _over_rows(self, engine, adapter: str) -> RowModel:
        capacity = self.work.micro * self.work.max_len
        return RowModel(engine, self.strategy, self.world.rows, capacity, adapter=adapter)

    def _tracker(self) -> RowModel | None:
        """The lower level's model: a second adapter, or without LoRA a second engine."""
        if not self.gap:
            return None
        engine = self.losses.engine if self.work.lora_rank else self._engine()
        return self._over_rows(engine, TRACKER)

    def __call__(self, work: Work, step: int) -> None:
        """Takes optimizer step `step` (from 0), with the phase and micro-batches of `work`."""
        user = self.world.batch(work, step)
        for losses in filter(None, (self.losses, self.tracker)):
            losses.capacity = work.micro * work.max_len
        if work.kind == "selector":
            self.trainer.train_step(user, work.epoch, step + 1)
        else:
            self.trainer.train_step(self.world.n_safe + user, step + 1)

    def _selector(self) -> SelectorTrainer:
        world, work = self.world, self.work
        return SelectorTrainer(
            model=self.losses,
            n_safe=world.n_safe,
            selector=Selector(len(world.rows) - world.n_safe),
            selector_rate=lambda step: 5e-3,
            plan=SelectorPlan(
                max_epochs=3,
                train_batch_size=work.batch,
                seed=work.seed,
                upperlevel_weight=1.0,
                upperlevel_weight_decay=0.03,
            ),
            logger=NoLogger(),
            evaluations={},
            save_epoch=lambda epoch: None,
            save_checkpoint=lambda step: None,
            tracker=self.tracker,
        )

    def _sft(self) -> SFTTrainer:
        return SFTTrainer(
            model=self.losses,
            plan=SFTPlan(max_epochs=1, train_batch_size=self.work.batch, seed=self.work.seed),
            logger=NoLogger(),
            evaluations={},
            save_checkpoint=lambda step: None,
        )


class OurGapStep(OurStep):
    """The same with the estimator `penalty_gap`."""

    gap = True


class OurCompiledStep(OurStep):
    """The same with torch.compile over every norm and feed-forward block."""

    def rewrite(self, model: PreTrainedModel) -> None:
        """Compiles the blocks, for any number of tokens."""
        for module in model.modules():
            if type(module).__name__.endswith(("RMSNorm", "MLP")):
                module.compile(dynamic=True)


class OurLigerStep(OurStep):
    """The same with Liger Kernel's norms and feed-forward blocks (CUDA only)."""

    def rewrite(self, model: PreTrainedModel) -> None:
        """As `--use_liger_kernel` does."""
        use_liger(model.get_base_model() if self.work.lora_rank else model)
