"""Reading LoRA adapters from disk onto their base models."""

from pathlib import Path

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

from seal.errors import InputError, said


def adapter_config(directory: str | Path) -> PeftConfig | None:
    """What a directory's adapter is; None where it holds none.

    Raises:
        InputError: an adapter that is more than layers beside the model's own.
    """
    path = Path(directory)
    if not (path / "adapter_config.json").is_file():
        return None
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}/adapter_config.json does not read: {said(error)}") from error
    if config.is_prompt_learning or config.peft_type != "LORA" or config.alora_invocation_tokens:
        raise InputError(f"{path} is an adapter of kind {config.peft_type.value}; give one of LoRA")
    if not config.base_model_name_or_path:
        raise InputError(f"{path}/adapter_config.json names no base: fill base_model_name_or_path")
    return config


def load_adapter(model: PreTrainedModel, directory: str | Path, train: bool = False) -> PeftModel:
    """Puts the adapter of a directory on its base, whose vocabulary grows where the adapter's did.

    Raises:
        InputError: the weights are missing, damaged, or of another base.
    """
    path = Path(directory)
    try:
        rows = _vocabulary(model, path / "adapter_model.safetensors")
        if rows not in (None, model.get_input_embeddings().num_embeddings):
            model.resize_token_embeddings(rows, mean_resizing=False)
        adapted = PeftModel.from_pretrained(model, str(path), is_trainable=train)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"adapter {path} does not load on its base model: {reason}") from error
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(path))
    return adapted


def _vocabulary(model: PreTrainedModel, weights: Path) -> int | None:
    """Rows of the embedding or head that an adapter holds whole; None where it holds neither."""
    if not weights.is_file():
        return None
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in tables]
    with safe_open(weights, "pt") as file:
        for key in file.keys():
            if "lora_" not in key and any(f".{name}." in key for name in names):
                return file.get_slice(key).get_shape()[0]
    return None
