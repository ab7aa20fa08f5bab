"""A model served behind an OpenAI-compatible endpoint: concurrency, tokens counted."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from seal.errors import InputError, said

try:
    import openai
except ImportError as error:
    raise InputError("a served model needs the openai package: pip install openai") from error

KEY_VARIABLES = ("SEAL_JUDGE_API_KEY", "OPENAI_API_KEY")

# Parameters that some models refuse: the server's own default, or another name, serves then.
OPTIONAL = ("max_tokens", "temperature", "top_p", "seed")


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
        retries: Further tries after a transient failure, by the openai client's own rule.
        timeout: Seconds allowed for one answer.
        concurrency: Requests in flight at most.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        retries: int = 6,
        timeout: float = 120.0,
        concurrency: int = 8,
    ):
        if concurrency < 1 or retries < 0:
            raise InputError(
                f"concurrency must be at least 1 and retries at least 0, got {concurrency} and "
                f"{retries}"
            )
        self.base_url, self.model = base_url, model
        self.retries, self.concurrency = retries, concurrency
        key = next((os.environ[k] for k in KEY_VARIABLES if os.environ.get(k)), "none")
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout, max_retries=retries
        )
        self._refused: set[str] = set()  # parameters of OPTIONAL
        self._stop = threading.Event()

    def check(self) -> None:
        """Asks the server for its models.

        Raises:
            InputError: unreachable, key refused, or the model is not served there.
        """
        try:
            served = [m.id for m in self._client.models.list().data]
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
        """One answer. A parameter that the model refuses is left out from then on, and said.

        Raises:
            InputError: the server refused the request, or failed on every try.
        """
        asked = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        try:
            for _ in range(self.retries + 1 + len(OPTIONAL)):
                if self._stop.is_set():
                    break
                kept = {k: v for k, v in asked.items() if k not in self._refused}
                if "max_tokens" in self._refused:
                    kept["max_completion_tokens"] = max_tokens
                try:
                    response = self._client.chat.completions.create(
                        model=self.model, messages=messages, **kept
                    )
                except openai.BadRequestError as error:
                    self._leave_out(error, kept)
                    continue
                if isinstance(response, openai.types.chat.ChatCompletion) and response.choices:
                    return _completion(response)
        except openai.OpenAIError as error:
            raise InputError(self._reason(error)) from error
        raise InputError(f"{self.model} at {self.base_url} sends no chat completion; run again")

    def _leave_out(self, error: openai.BadRequestError, kept: dict) -> None:
        """Notes the parameter that a 400 names; raises it when it names none that can go."""
        text = str(error)
        named = [k for k in OPTIONAL if k in kept and (k == error.param or f"'{k}'" in text)]
        if not named:
            raise error
        if named[0] not in self._refused:
            self._refused.add(named[0])
            other = "max_completion_tokens" if named[0] == "max_tokens" else "its default"
            print(f"{self.model} refuses {named[0]}: {other} is used", file=sys.stderr)

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

    def _reason(self, error: openai.OpenAIError) -> str:
        lasting = isinstance(error, openai.APIStatusError) and error.status_code < 500
        tries = "" if lasting else f" after {self.retries + 1} tries"
        return (
            f"{self.model} at {self.base_url} failed{tries}: {type(error).__name__}: "
            f"{said(error)}; what was answered is kept, run again to go on"
        )


def _completion(response: openai.types.chat.ChatCompletion) -> Completion:
    usage = response.usage
    return Completion(
        text=response.choices[0].message.content or "",
        finish_reason=response.choices[0].finish_reason or "",
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
    )
