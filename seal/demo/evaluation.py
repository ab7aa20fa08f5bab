"""How a model fares in a demo world: does it refuse, refuse too much, and answer right."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from seal.assess import rules
from seal.assess.engine import HFEngine, answer_texts, load_model
from seal.assess.evaluation import Findings, Judges, PromptSet
from seal.assess.generation import Sampling, Template, resolve, tokenizer_source
from seal.assess.prompts import read_prompts
from seal.assess.rendering import encode_prompts
from seal.errors import InputError

HELD_OUT = {
    "harmful": "eval_refusal",
    "over_refusal": "eval_over_refusal",
    "references": "eval_utility",
}
REFUSAL_TOKENS = 12
ANSWER_TOKENS = 40
TOKEN_BUDGET = 8192  # padded, a batch


def load(model_dir: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model directory, or a PEFT adapter directory with its base, in float32 on the CPU.

    Raises:
        InputError: the directory holds neither.
    """
    base, adapter = resolve(str(model_dir), None)
    model = load_model(base, adapter, bf16=False, device="cpu")
    return model, AutoTokenizer.from_pretrained(tokenizer_source(str(model_dir), base))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """Answers each prompt greedily through the chat template; returns the texts in order."""
    engine = HFEngine(model, tokenizer, Sampling(max_new_tokens))
    encoded = encode_prompts(prompts, tokenizer, Template(chat=True))
    return answer_texts(engine, encoded, TOKEN_BUDGET)


def held_out(data_dir: str | Path) -> list[PromptSet]:
    """The held-out prompts of a demo world: to refuse, to answer, to answer right."""
    paths = {kind: str(Path(data_dir) / f"{name}.jsonl") for kind, name in HELD_OUT.items()}
    return [
        PromptSet(HELD_OUT[kind], kind, path, read_prompts(path)) for kind, path in paths.items()
    ]


def ask(
    found: Findings,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: list[PromptSet],
) -> None:
    """Adds to `found` how the model called `name` answers the held-out prompts, greedily."""
    was_training = model.training
    model.eval()
    for one in sets:
        tokens = ANSWER_TOKENS if one.kind == "references" else REFUSAL_TOKENS
        answers = generate(model, tokenizer, [prompt.text for prompt in one.prompts], tokens)
        found.add(name, one, answers, Judges([rules.judge], None, None))
    model.train(was_training)


def shares(found: Findings) -> dict[str, dict[str, float]]:
    """Model -> refusal, over_refusal and utility, in [0, 1]."""
    models: dict[str, dict[str, float]] = {}
    for one in found.measures:
        name = "utility" if one.measure == "exact_match" else one.measure
        models.setdefault(one.model, {})[name] = one.value
    return models


def measure_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path
) -> dict[str, float]:
    """The same as `measure`, for a model in memory."""
    found = Findings()
    ask(found, "", model, tokenizer, held_out(data_dir))
    return shares(found)[""]


def measure(model_dir: str | Path, data_dir: str | Path) -> dict[str, float]:
    """Measures a model on the held-out prompts of a demo world, by greedy generation.

    Args:
        model_dir: a Hugging Face model directory, or a PEFT adapter directory.
        data_dir: a directory that `build` made.

    Returns:
        Shares in [0, 1]. refusal: forbidden prompts that are refused. over_refusal: benign prompts
        that look forbidden and are refused, in part too. utility: benign prompts whose whole
        answer is the reference.

    Raises:
        InputError: `model_dir` holds no model, or `data_dir` is not a finished demo world.
    """
    require_world(data_dir)
    return measure_model(*load(model_dir), data_dir)


def require_world(data_dir: str | Path) -> None:
    """Refuses a directory that `build` did not make."""
    if not (Path(data_dir) / "manifest.json").is_file():
        raise InputError(
            f"{data_dir} has no manifest.json; make it: python -m seal.demo --out {data_dir}"
        )
