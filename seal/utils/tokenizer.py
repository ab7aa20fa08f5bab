"""Loading a tokenizer."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seal.errors import InputError


def get_tokenizer(
    pretrain: str, use_fast: bool = True, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, with a padding token (its end token when it has none).

    Raises:
        InputError: no tokenizer there, or one without an end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            pretrain, use_fast=use_fast, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"no tokenizer can be loaded from {pretrain}: {reason}") from error
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {pretrain} has no end-of-sequence token; set eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
