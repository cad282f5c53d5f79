"""One interface to a judge: anything that answers chat messages. No network is touched unless an endpoint is given.

:class:`ChatJudge` speaks to an OpenAI-compatible endpoint, :class:`ScriptedJudge` replays answers.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

Message = Mapping[str, Any]


class JudgeError(RuntimeError):
    """The judge gave no usable answer; the message says what it gave instead."""


@dataclass(frozen=True)
class Reply:
    """A judge's answer.

    `text` as it was written; `raw` the endpoint's whole answer; `logprobs` of the first tokens, if they were asked
    for: for each token the most likely ones as (text, log probability); `usage` tokens as the endpoint counts them;
    `attempts` how many requests it took.
    """

    text: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Sequence[Sequence[tuple[str, float]]] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1


class Judge(Protocol):
    """What answers chat messages."""

    def ask(self, messages: Sequence[Message], top_logprobs: int = 0) -> Reply:
        """Answers, with the log probabilities of that many alternatives for each token if it can. Raises JudgeError."""


def rating(reply: Reply, yes: str = "yes", no: str = "no") -> float:
    """P(yes) / (P(yes) + P(no)) at the first token of an answer, from its log probabilities (UVE, arXiv 2503.09949).

    Tokens count that are the word without case and exactly, so without a leading space, as there. Raises JudgeError if
    the reply has no log probabilities or neither word is among them.
    """
    first = reply.logprobs[0] if reply.logprobs else ()
    share = {w: sum(math.exp(p) for text, p in first if text.lower() == w) for w in (yes.lower(), no.lower())}
    total = sum(share.values())
    if not total > 0:
        raise JudgeError(f"neither {yes!r} nor {no!r} is among the {len(first)} likeliest first tokens")
    return share[yes.lower()] / total


class ScriptedJudge:
    """Gives the answers it was made with, one after the other, and keeps what it was asked in `asked`."""

    def __init__(self, answers: Iterable[str]) -> None:
        self._answers = iter(answers)
        self.asked: list[list[Message]] = []

    def ask(self, messages: Sequence[Message], top_logprobs: int = 0) -> Reply:
        """The next answer; JudgeError if there is none."""
        self.asked.append(list(messages))
        for text in self._answers:
            return Reply(text)
        raise JudgeError("the scripted judge has no answer left")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuses: the key and the trace are meant for one host."""
        return


@dataclass(frozen=True)
class ChatJudge:
    """A model behind `base_url`/chat/completions.

    base_url: http or https, as "http://localhost:8000/v1". `seed`, `temperature` and `max_tokens` are sent along.
    A refused connection, a time-out, status 408, 409, 429 and 5xx, and an answer that is not of the protocol's form
    are tried again up to `retries` times, after `backoff` seconds, doubled each time, or what Retry-After says if that
    is at most a minute. Other answers raise JudgeError at once. Redirects are not followed.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    timeout: float = 120.0
    retries: int = 3
    backoff: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"argument 'base_url' must be an http or https address, got {self.base_url!r}")
        if self.retries < 0 or self.timeout <= 0:
            raise ValueError("argument 'retries' must be >= 0 and 'timeout' > 0")

    def ask(self, messages: Sequence[Message], top_logprobs: int = 0) -> Reply:
        """One answer to the messages."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        wait, problem = self.backoff, ""
        for attempt in range(1, self.retries + 2):
            try:
                return _reply(self._post(body), attempt)
            except urllib.error.HTTPError as e:
                with e:
                    problem = f"status {e.code}: {e.read(500).decode(errors='replace')}"
                if e.code not in (408, 409, 429) and e.code < 500:
                    raise JudgeError(f"{self.base_url}: {problem}") from None
                after = e.headers.get("Retry-After", "")
                wait = max(wait, float(after)) if after.isdigit() and float(after) <= 60 else wait
            except (OSError, ValueError, JudgeError) as e:
                problem = str(e) or type(e).__name__
            if attempt <= self.retries:
                self.sleep(wait)
                wait *= 2
        raise JudgeError(f"{self.base_url}: no answer after {self.retries + 1} attempts; the last: {problem}")

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "core-agents"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address = self.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        answer: IO[bytes]
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as answer:
            return json.load(answer)


def _reply(raw: Any, attempts: int) -> Reply:
    try:
        choice = raw["choices"][0]
        text = choice["message"]["content"]
        listed = (choice.get("logprobs") or {}).get("content") or ()
        logprobs = [[(str(t["token"]), float(t["logprob"])) for t in at["top_logprobs"]] for at in listed]
        usage = {k: v for k, v in (raw.get("usage") or {}).items() if isinstance(v, int)}
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        raise JudgeError(f"not an answer of the chat protocol ({e!r})") from None
    if not isinstance(text, str):
        raise JudgeError("the answer has no text")
    return Reply(text, raw, logprobs, usage, attempts)
