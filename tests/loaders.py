"""What loads an output directory elsewhere: transformers, its pipelines, PEFT and TRL."""

from importlib.util import find_spec
from pathlib import Path

import datasets
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

PROMPT = "the river"


def trl_model(model, scratch: Path):
    """The model of TRL's SFTTrainer, given a directory or, of an adapter, what PEFT has loaded."""
    from trl import SFTConfig, SFTTrainer

    settings = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no"}
    args = SFTConfig(output_dir=str(scratch), max_length=32, **settings)
    rows = datasets.Dataset.from_list([{"text": PROMPT}])
    return SFTTrainer(model, args=args, train_dataset=rows).model.float()


def answer_of(directory: Path, trl: bool = True) -> str:
    """The greedy answer of a directory's model, which every loader must give.

    An adapter's base must be where the adapter says it is.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    models, given = (
        {"transformers": AutoModelForCausalLM.from_pretrained(directory)},
        str(directory),
    )
    if (directory / "adapter_config.json").exists():
        models["peft"] = given = AutoPeftModelForCausalLM.from_pretrained(directory)
    if trl and find_spec("trl"):
        models["trl"] = trl_model(given, directory.parent / "trl")
    said = {}
    for name, model in models.items():
        answer = model.eval().generate(input_ids=prompt, max_new_tokens=4, do_sample=False)
        assert answer.shape[1] > prompt.shape[1]
        said[name] = tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True)
    plain = pipeline("text-generation", str(directory), max_new_tokens=4, do_sample=False)
    said["pipeline"] = plain(PROMPT, return_full_text=False)[0]["generated_text"]
    assert len(set(said.values())) == 1, said
    return said["transformers"]
