"""Loading a tokenizer."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seal.errors import InputError, said
from seal.files import model_is_here

HUB_SECONDS = 5


def get_tokenizer(pretrain: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, with a padding token (its end token when it has none).

    Raises:
        InputError: no model there, no tokenizer with it, or one without an end-of-sequence token.
    """
    is_here = model_is_here(pretrain)
    answers = is_here or _hub_answers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            pretrain,
            trust_remote_code=trust_remote_code,
            local_files_only=is_here or not answers,
        )
    except Exception as error:  # transformers raises nearly any type on a damaged directory
        if is_here:
            remedy = "copy tokenizer.json and tokenizer_config.json there from the model it is of"
        else:
            remedy = "it is no directory here, and the hub does not give it; give a local directory"
        reason = f" ({said(error)})" if answers else ""
        raise InputError(f"no tokenizer in {pretrain}: {remedy}{reason}") from error
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {pretrain} has no end-of-sequence token; set eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _hub_answers() -> bool:
    """Whether the hub can be reached; else its client would try for a minute."""
    if HF_HUB_OFFLINE or getproxies():
        return not HF_HUB_OFFLINE
    place = urlsplit(ENDPOINT)
    try:
        address = (place.hostname, place.port or 443)
        socket.create_connection(address, timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True
