"""Completions from an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama, OpenAI itself), behind the same
protocols as a model in this process.

Its name is `http://HOST:PORT/v1#MODEL`; without `#MODEL` the server's only model is taken. A prompt of messages goes to
/chat/completions, text and token ids go to /completions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Prompt, Request, Rollout, Sampler, Score
from fiducial.models.chat import encode_prompt
from fiducial.sampling.http import EndpointError, Server
from fiducial.sampling.local import LocalSampler
from fiducial.sampling.policy import Policy, asked_prompts

TOP = 20  # likeliest tokens that a server is asked for: the most that OpenAI and, by default, vLLM give
Tokens = list[tuple[str, float]]  # texts and log-probs
ENDS: dict[Any, Literal["stop", "length"]] = {"stop": "stop", "eos": "stop", None: "stop", "length": "length"}


def is_endpoint(name: str) -> bool:
    """Whether a name is a server's address rather than a folder."""
    return name.startswith(("http://", "https://"))


def open_policy(name: str, **server: Any) -> Policy | Endpoint:
    """The model of a folder or of a server; `server` are the settings of `Server`, which a folder has no use for."""
    return Endpoint.open(name, **server) if is_endpoint(name) else Policy.load(name)


def open_sampler(name: str) -> tuple[Sampler, Callable[[Prompt], list[int]]]:
    """The sampler of a folder's or a server's model, and what makes token ids of a prompt (a server does that)."""
    if is_endpoint(name):
        return Endpoint.open(name).sampler(), lambda prompt: []
    policy = Policy.load(name)
    return LocalSampler(policy.model, policy.tokenizer), lambda prompt: encode_prompt(policy.tokenizer, prompt)


class HTTPSampler:
    """Draws completions from a server; implements `fiducial.core.types.Sampler`.

    Each request has its own seed, which most servers honour on one machine with one load and none beyond that. With
    `prompts` "ids" a request's token ids are sent (and asked for: vLLM gives them), else its text or messages.

    `sampler_logprobs` are what the server reports, NaN where it reports none. Where it names no token ids, `token_ids`
    number the different texts of its tokens, or without log-probs its words: enough to count, nothing to train on. A
    request that failed for itself has finish "error", no text, and a score that says why.
    """

    def __init__(self, server: Server, model: str, *, prompts: Literal["text", "ids"] = "text", logprobs: bool = True):
        self.server, self.model, self.prompts, self.logprobs = server, model, prompts, logprobs
        self.version = 0
        self._numbers: dict[str, int] = {}

    def update(self, weights: dict[str, Tensor] | None, version: int) -> None:
        """Count what the server holds as `version`. ValueError for weights: they cannot be sent."""
        if weights is not None:
            raise ValueError(f"{self.server.url} takes no weights: sample from a model in this process to train it")
        self.version = version

    def sample(self, requests: Sequence[Request], decoding: Decoding) -> list[Rollout]:
        """One rollout per request, in the order of the requests."""
        try:
            replies = self._ask(requests, decoding)
        except EndpointError as error:
            if not (self.logprobs and "logprob" in str(error)):
                raise
            self.logprobs = False  # some servers and models give none, and refuse to be asked
            replies = self._ask(requests, decoding)
        return [self._rollout(*pair, decoding) for pair in zip(requests, replies, strict=True)]

    def _ask(self, requests: Sequence[Request], decoding: Decoding) -> list[Any]:
        return self.server.each([self._body(request, decoding) for request in requests])

    def _body(self, request: Request, decoding: Decoding) -> tuple[str, dict[str, Any]]:
        """The path and what is sent there; what is off is not sent, for not every server knows it."""
        ids = self.prompts == "ids" and request.prompt_ids
        path, body = question(self.model, request.prompt_ids if ids else request.prompt)
        body |= {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
        if decoding.temperature > 0:
            body["seed"] = request.seed % 2**31
        body |= {k: getattr(decoding, k) for k in ("top_k", "min_p") if getattr(decoding, k)}
        if decoding.top_p < 1:
            body["top_p"] = decoding.top_p
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if self.logprobs:
            body["logprobs"] = True if "messages" in body else 1
        if ids:
            body["return_token_ids"] = True
        return path, body

    def _rollout(self, request: Request, reply: Any, decoding: Decoding) -> Rollout:
        if isinstance(reply, EndpointError):
            return self._failed(request, Score(None, reply.verdict, str(reply)))
        choice = first_choice(reply, self.server.url)
        reason = choice.get("finish_reason")
        if reason not in ENDS:
            return self._failed(request, Score(None, "crashed", f"{self.server.url} ended it by {reason!r}"))
        text = written_text(choice, self.server.url)
        ids, logprobs = self._tokens(choice, text)
        stop = choice.get("stop_reason")  # vLLM says which stop string ended it, and leaves it out of the text
        return Rollout(
            prompt=request.prompt,
            completion=text + stop if stop in decoding.stop and not text.endswith(stop) else text,
            token_ids=[*request.prompt_ids, *ids],
            mask=[False] * len(request.prompt_ids) + [True] * len(ids),
            sampler_logprobs=[0.0] * len(request.prompt_ids) + logprobs,
            group=request.group,
            seed=request.seed,
            policy_version=self.version,
            finish=ENDS[reason],
        )

    def _failed(self, request: Request, score: Score) -> Rollout:
        none = [False] * len(request.prompt_ids)
        return Rollout(
            prompt=request.prompt,
            completion="",
            token_ids=request.prompt_ids,
            mask=none,
            sampler_logprobs=[0.0] * len(none),
            group=request.group,
            seed=request.seed,
            policy_version=self.version,
            finish="error",
            score=score,
        )

    def _tokens(self, choice: dict[str, Any], text: str) -> tuple[list[int], list[float]]:
        """Ids and log-probs of what was written."""
        told = understood(reported, choice, self.server.url)
        texts = [token for token, _ in told] or re.findall(r"\s*\S+", text)
        logprobs = [logprob for _, logprob in told] or [math.nan] * len(texts)
        ids = choice.get("token_ids")
        if not isinstance(ids, list):
            return [self._numbers.setdefault(token, len(self._numbers)) for token in texts], logprobs
        return ids, logprobs if len(logprobs) == len(ids) else [math.nan] * len(ids)


class Endpoint:
    """A server's model as a person, or a judge, at a prompt wants it; `Policy` is the same for a folder."""

    chats = True  # what a judge asks is a user's message

    def __init__(self, server: Server, model: str):
        self.server, self.model = server, model
        self.name = f"{server.parts.netloc}#{model}"

    @classmethod
    def open(cls, name: str, **server: Any) -> Endpoint:
        """The endpoint of an address. EndpointError at once if nothing answers there, ValueError if it is no address
        or names no model where there are several."""
        url, _, model = name.partition("#")
        found = Server(url, **server)
        try:
            listed = found.get("/models")
        except EndpointError as error:
            if "status 404" not in str(error) and "status 405" not in str(error):
                raise
            listed = {}
        ids = [entry["id"] for entry in listed.get("data", [])] if isinstance(listed, dict) else []
        if not model and len(ids) != 1:
            there = f"it has {', '.join(ids[:8])}" if ids else "it does not list what it has"
            raise ValueError(f"{name}: name the model behind a #, as in {url}#MODEL; {there}")
        return cls(found, model or ids[0])

    def sampler(self, logprobs: bool = True) -> HTTPSampler:
        """The same as a `Sampler` of requests that name their prompts."""
        return HTTPSampler(self.server, self.model, logprobs=logprobs)

    def fits(self, prompt: Prompt, tokens: int) -> bool:
        """Only the server knows: a prompt that is too long for it comes back as such."""
        return True

    def sample(self, prompts: Prompt | Sequence[Prompt], n: int = 1, seed: int = 0, **decoding: Any) -> list[Rollout]:
        """n completions of each prompt, prompt by prompt; `decoding` are the fields of `core.types.Decoding`."""
        requests = [
            Request([], mix(seed, "policy", i, copy), prompt, group=i)
            for i, prompt in enumerate(asked_prompts(prompts, n))
            for copy in range(n)
        ]
        return self.sampler(logprobs=False).sample(requests, Decoding(**decoding))

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float] | Score]:
        """For each prompt the log-probability that the first token is each of `options`, white space and case aside;
        -inf for one that is not among the likeliest tokens. A score in the place of a prompt that failed alone.

        ValueError where one option begins another: its first token would stand for both.
        """
        spelt = [option.strip().casefold() for option in options]
        for i, one in enumerate(spelt):
            if other := next((x for k, x in enumerate(spelt) if k != i and x.startswith(one)), None):
                raise ValueError(
                    f"a server tells the options {one!r} and {other!r} not apart by their first token: take others "
                    "(of a scale, single digits), or the verdict from the text (mode = 'text')"
                )
        bodies = []
        for prompt in prompts:
            path, body = question(self.model, prompt)
            body |= {"max_tokens": 1, "temperature": 1.0}
            body |= {"logprobs": True, "top_logprobs": TOP} if "messages" in body else {"logprobs": TOP}
            bodies.append((path, body))
        return [self._options(reply, spelt) for reply in self.server.each(bodies)]

    def _options(self, reply: Any, options: Sequence[str]) -> list[float] | Score:
        if isinstance(reply, EndpointError):
            return Score(None, reply.verdict, str(reply))
        likeliest = understood(first_token, first_choice(reply, self.server.url), self.server.url)
        if not likeliest:
            raise EndpointError(
                f"{self.server.url} gives no log-probabilities of the likeliest tokens of {self.model}: take the "
                "verdict from the text (mode = 'text')"
            )
        mass = dict.fromkeys(options, 0.0)
        for token, logprob in likeliest:
            spelt = token.strip().casefold()
            if spelt in mass:
                mass[spelt] += math.exp(logprob)
        return [math.log(mass[option]) if mass[option] else -math.inf for option in options]


# -- the shapes of replies ---------------------------------------------------------------------------------------------


def question(model: str, prompt: Prompt | list[int]) -> tuple[str, dict[str, Any]]:
    """The path for a prompt and the beginning of what is sent there."""
    if not isinstance(prompt, str) and prompt and isinstance(prompt[0], dict):
        return "/chat/completions", {"model": model, "messages": prompt}
    return "/completions", {"model": model, "prompt": prompt}


def first_choice(reply: Any, url: str) -> dict[str, Any]:
    """The completion in a reply. EndpointError if there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EndpointError(f"{url} answered without choices: {str(reply)[:120]}")
    return choices[0]


def written_text(choice: dict[str, Any], url: str) -> str:
    """What a choice says; nothing where a reasoning model got no further than its thoughts."""
    message = choice.get("message")
    text = message.get("content", False) if isinstance(message, dict) else choice.get("text", False)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise EndpointError(f"{url} answered with a choice that holds no text: {str(choice)[:120]}")
    return text


def understood(read: Callable[[dict[str, Any]], Tokens], choice: dict[str, Any], url: str) -> Tokens:
    """What `read` finds in a choice. EndpointError if its log-probabilities have a form that nobody agreed on."""
    try:
        return read(choice)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        shown = str(choice.get("logprobs"))[:120]
        raise EndpointError(f"{url} answered with log-probabilities in an unknown form: {shown}") from error


def reported(choice: dict[str, Any]) -> Tokens:
    """Text and log-prob of each token, in the form of either path; empty where the server gives none."""
    told = choice.get("logprobs") or {}
    if told.get("content"):
        return [(entry["token"], float(entry["logprob"])) for entry in told["content"]]
    if told.get("tokens") and told.get("token_logprobs"):
        return list(zip(told["tokens"], map(_number, told["token_logprobs"]), strict=True))
    return []


def first_token(choice: dict[str, Any]) -> Tokens:
    """The likeliest first tokens and their log-probs."""
    told = choice.get("logprobs") or {}
    if told.get("content"):
        return [(entry["token"], float(entry["logprob"])) for entry in told["content"][0].get("top_logprobs") or []]
    tops: Iterable[Any] = told.get("top_logprobs") or []
    first = next(iter(tops), None) or {}
    return [(token, float(logprob)) for token, logprob in first.items()]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
