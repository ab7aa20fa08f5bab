"""The package's own step, through its trainers, to time it."""

from step_world import Work, World, model_settings

from seal.models.actor import MAIN, load_actor
from seal.models.selector import Selector
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowLosses
from seal.utils.logger import NoLogger
from seal.utils.strategy import DeepspeedStrategy


class OurStep:
    """One optimizer step at a time, of the selector or of SFT."""

    def __init__(self, strategy: DeepspeedStrategy, world: World, work: Work):
        self.strategy, self.world, self.work = strategy, world, work
        with strategy.loading():
            actor = load_actor(model_settings(world, work))
        optimizer = strategy.create_optimizer(actor, work.learning_rate, l2=0.0)
        self.engine = strategy.prepare(actor, optimizer, None)
        self.engine.train()
        self.losses = RowLosses(
            self.engine, strategy, world.rows, work.micro * work.max_len, adapter=MAIN
        )
        self.trainer = self._selector() if work.kind == "selector" else self._sft()

    def __call__(self, step: int) -> None:
        """Takes optimizer step `step` (from 0)."""
        user = self.world.batch(self.work, step)
        if self.work.kind == "selector":
            self.trainer.train_step(user, self.work.epoch, step + 1)
        else:
            self.trainer.train_step(self.world.n_safe + user, step + 1)

    def _selector(self) -> SelectorTrainer:
        world, work = self.world, self.work
        return SelectorTrainer(
            losses=self.losses,
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
        )

    def _sft(self) -> SFTTrainer:
        return SFTTrainer(
            losses=self.losses,
            plan=SFTPlan(max_epochs=1, train_batch_size=self.work.batch, seed=self.work.seed),
            logger=NoLogger(),
            evaluations={},
            save_checkpoint=lambda step: None,
        )
