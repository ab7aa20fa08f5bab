"""A model served behind an OpenAI-compatible endpoint: retries, concurrency, tokens counted."""

import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from seal.errors import InputError

try:
    import openai
except ImportError as error:
    raise InputError("a served model needs the openai package: pip install openai") from error

KEY_VARIABLES = ("SEAL_JUDGE_API_KEY", "OPENAI_API_KEY")
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for

# Statuses that another try may cure; the rest mean that the request itself is wrong.
TRANSIENT_STATUS = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Completion(NamedTuple):
    """What the served model said, why it stopped, and what it cost in tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """One served model.

    The key is read from SEAL_JUDGE_API_KEY or OPENAI_API_KEY and is never stored or printed; local
    servers need none.

    Args:
        base_url: Up to and with "/v1".
        model: Name the server knows it by.
        retries: Further tries after a transient failure; waits backoff * 2^k seconds, with jitter,
            or what the server's Retry-After asks for.
        backoff: First wait in seconds.
        timeout: Seconds allowed for one answer.
        concurrency: Requests in flight at most.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        retries: int = 6,
        backoff: float = 1.0,
        timeout: float = 120.0,
        concurrency: int = 8,
    ):
        if concurrency < 1 or retries < 0:
            raise InputError(
                f"concurrency must be at least 1 and retries at least 0, got {concurrency} and "
                f"{retries}"
            )
        self.base_url, self.model = base_url, model
        self.retries, self.backoff, self.concurrency = retries, backoff, concurrency
        key = next((os.environ[k] for k in KEY_VARIABLES if os.environ.get(k)), "none")
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)
        self._stop = threading.Event()

    def check(self) -> None:
        """Asks the server for its models.

        Raises:
            InputError: unreachable, key refused, or the model is not served there.
        """
        try:
            served = self._retried(lambda: [m.id for m in self._client.models.list().data])
        except openai.NotFoundError:
            return  # some servers have no model list: the first request will tell
        except openai.OpenAIError as error:
            raise InputError(self._reason(error)) from error
        if served and self.model not in served:
            raise InputError(
                f"{self.base_url} serves {', '.join(served[:8])}, not {self.model!r}; name one of "
                "them"
            )

    def complete(
        self,
        messages: list[dict],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Completion:
        """One answer, tried again after transient failures.

        Raises:
            InputError: the server refused the request, or failed on every try.
        """
        try:
            return self._retried(
                lambda: _completion(
                    self._client.chat.completions.create(
                        model=self.model,
                        messages=messages,
                        max_tokens=max_tokens,
                        temperature=temperature,
                        top_p=top_p,
                        seed=seed,
                    )
                )
            )
        except openai.OpenAIError as error:
            raise InputError(self._reason(error)) from error

    def map(self, work: Callable[[int], None], items: Sequence[int]) -> None:
        """Runs `work` on every item with the endpoint's concurrency.

        The first failure stops the rest at their next try and is raised; what was done is done.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                self._stop.clear()
            for future in futures:
                if not future.cancelled():
                    future.result()

    def _retried(self, call: Callable):
        for attempt in range(self.retries + 1):
            try:
                return call()
            except openai.OpenAIError as error:
                if attempt == self.retries or not _is_transient(error):
                    raise
                pause = _retry_after(error) or self.backoff * 2**attempt * random.uniform(0.5, 1)
                if self._stop.wait(min(pause, LONGEST_WAIT)):
                    raise

    def _reason(self, error: openai.OpenAIError) -> str:
        what = " ".join(str(error).split())[:200]
        tries = f" after {self.retries + 1} tries" if _is_transient(error) else ""
        return (
            f"{self.model} at {self.base_url} failed{tries}: {type(error).__name__}: {what}; what "
            "was answered is kept, run again to go on"
        )


def _completion(response) -> Completion:
    """Takes the reply apart; one without a choice is as broken as a cut connection."""
    if not isinstance(response, openai.types.chat.ChatCompletion) or not response.choices:
        raise MalformedReply("the reply is not a chat completion")
    usage = response.usage
    return Completion(
        text=response.choices[0].message.content or "",
        finish_reason=response.choices[0].finish_reason or "",
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
    )


class MalformedReply(openai.OpenAIError):
    """The server answered 200 with something that is not a chat completion."""


def _is_transient(error: openai.OpenAIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in TRANSIENT_STATUS
    return isinstance(
        error, openai.APIConnectionError | openai.APIResponseValidationError | MalformedReply
    )


def _retry_after(error: openai.OpenAIError) -> float | None:
    """Seconds the server asks to wait, when it says so as a number."""
    if not isinstance(error, openai.APIStatusError):
        return None
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
