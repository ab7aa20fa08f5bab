"""The logger's refusals."""

import pytest

from seal.errors import InputError
from seal.utils.logger import Logger, WandbSettings


def test_wandb_without_a_key_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    with pytest.raises(InputError, match=r"wandb does not start .*API key.*WANDB_MODE=offline"):
        Logger(tmp_path / "run", {}, 1, wandb=WandbSettings("seal", "test"))


def test_what_fails_on_rank_0_is_kept_for_all(tmp_path):
    """A log that cannot be written: raised on rank 0 alone, it would leave the others waiting."""
    logger = Logger(tmp_path, {}, 4)
    logger._file.close()
    logger.log(1, {"train/loss": 1.0})
    assert isinstance(logger.failure, ValueError)
