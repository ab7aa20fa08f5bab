"""The model card: inert whatever the values hold, over peft's own, without private flags."""

import yaml

from seal.cli import flags as cli
from seal.utils import record
from seal.utils.card import write_card


def test_a_card_is_inert_and_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_sft.py", "--use_wandb", "s3cret", "--seed", "1"])
    words = ["--pretrain", "org/base", "--dataset", "a|b`c\nd", "--use_wandb", "s3cret"]
    args = cli.sft_parser().parse_args([*words, "--wandb_org", "people"])
    (tmp_path / "adapter_config.json").touch()
    (tmp_path / "README.md").write_text("what peft wrote")
    facts = {"Rows": {"rows": 3, "loss": 1 / 3, "skipped": {"empty": 2}}, "Metrics": {}}
    write_card(tmp_path, "Tuned.", facts, record.run_config(vars(args)))

    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "peft" and front["base_model"] == "org/base"
    assert "s3cret" not in text and "people" not in text and "what peft wrote" not in text
    assert "| dataset | `a\\|b'c\\nd` |" in text  # still one cell of one line
    assert "| loss | 0.333333 |" in text and '| skipped | `{"empty": 2}` |' in text
    assert "## Metrics" not in text and "| seed | `42` |" in text
    assert "| command | `train_sft.py --use_wandb '***' --seed 1` |" in text
