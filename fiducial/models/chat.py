"""Prompts and completions to token ids, and which of them train.

What trains is tokenised apart from what precedes it, because that is how a sampler produces it: the prompt's tokens are
fixed before the first token of the completion is written, so no token spans the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fiducial.core.types import Encoded, Message, Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The ids that a completion is sampled after.

    Text: the bos token, if the tokenizer begins texts with one, and the text. Messages: the chat template up to where
    the assistant begins to write.
    """
    if isinstance(prompt, str):
        return [*_leading_bos(tokenizer), *_ids(tokenizer, prompt)]
    return _ids(tokenizer, _render_prompt(tokenizer, prompt))


def encode(tokenizer: Any, prompt: Prompt, completion: str | list[Message], train_prompt: bool = False) -> Encoded:
    """Ids and mask of one row. The completion and the stop token that ends it train; the prompt if `train_prompt`.

    Text after text: the ids of the prompt, the ids of the completion, the stop token. An empty prompt makes it plain
    text, of which everything trains. Messages after messages: the chat template, of which the assistant's turns after
    the prompt train; text after messages is one assistant turn. Several turns, or messages after an empty prompt, need
    a template that marks what the assistant writes (`{% generation %}`). ValueError where the template would train
    something else than a sampler writes.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = encode_prompt(tokenizer, prompt)
        written = [*_ids(tokenizer, completion), tokenizer.eos_token_id]
        encoded = Encoded([*ids, *written], [False] * len(ids) + [True] * len(written))
    elif isinstance(prompt, str) and prompt:
        raise ValueError("the prompt is text but its completion is messages; write both as text or both as messages")
    else:
        messages = [] if isinstance(prompt, str) else prompt
        turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        encoded = _encode_chat(tokenizer, messages, turns)
    if not train_prompt:
        return encoded
    first = len(_leading_bos(tokenizer)) if isinstance(prompt, str) else 0
    return Encoded(encoded.token_ids, [i >= first for i in range(len(encoded.token_ids))])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _leading_bos(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer begins every text with it, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _render_prompt(tokenizer: Any, prompt: Sequence[Message]) -> str:
    _need_template(tokenizer)
    if prompt and prompt[-1]["role"] == "assistant":
        raise ValueError(
            "a prompt must end with what the assistant answers to, but its last message is the assistant's"
        )
    return _render(tokenizer, prompt, add_generation_prompt=True)


def _need_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            "the rows are chat messages, but the model's tokenizer has no chat template: begin with a chat model, put "
            "one into the model's folder as chat_template.jinja, or write the rows as text (prompt and completion)"
        )


def _render(tokenizer: Any, messages: Sequence[Message], **settings: Any) -> str:
    with _template_errors():
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)


@contextmanager
def _template_errors() -> Iterator[None]:
    """What a template objects to is the data's fault, so it is a ValueError."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error


def _encode_chat(tokenizer: Any, prompt: list[Message], turns: list[Message]) -> Encoded:
    """The template over prompt and turns, the assistant's turns after the prompt masked True."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("the messages hold no assistant turn after the prompt, so nothing would train; add one")
    start = _render_prompt(tokenizer, prompt) if prompt else ""
    if prompt and len(turns) == 1:
        text = _render(tokenizer, [*prompt, *turns])
        spans = [(len(start), len(text))]
    else:
        text, spans = _render_marked(tokenizer, [*prompt, *turns])
        spans = [(a, b) for a, b in spans if a >= len(start)]
    if not text.startswith(start):
        raise ValueError(
            "the chat template writes the prompt differently once an answer follows, so training would see another "
            "prompt than sampling; use a template that leaves earlier turns as they are"
        )
    contents = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if len(spans) != len(contents):
        raise ValueError(f"the chat template marks {len(spans)} assistant turns, the messages have {len(contents)}")
    return _tokenize_spans(tokenizer, text, spans, contents)


def _render_marked(tokenizer: Any, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered chat and where in it the template's generation blocks lie."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _need_template(tokenizer)
    template = tokenizer.chat_template
    if "generation" not in template.replace("add_generation_prompt", ""):
        raise ValueError(
            "the chat template does not mark what the assistant writes; put {% generation %} and {% endgeneration %} "
            "around the assistant's content and stop token in it"
        )
    with _template_errors():
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    texts, spans = rendered
    return texts[0], spans[0]


def _tokenize_spans(tokenizer: Any, text: str, spans: list[tuple[int, int]], contents: list[str]) -> Encoded:
    """Tokenise `text` with cuts at the spans, whose tokens train up to their stop token; the last one ends the row."""
    ids: list[int] = []
    mask: list[bool] = []
    end = 0
    for (start, stop), content in zip(spans, contents, strict=True):
        context, written = _ids(tokenizer, text[end:start]), _ids(tokenizer, text[start:stop])
        kept = _through_stop(tokenizer, written, content)
        # A template may write a line break after the stop token: never sampled, so context of what follows.
        ids += [*context, *written]
        mask += [False] * len(context) + [True] * kept + [False] * (len(written) - kept)
        end = stop
    length = len(mask) - mask[::-1].index(True)
    return Encoded(ids[:length], mask[:length])


def _through_stop(tokenizer: Any, written: list[int], content: str) -> int:
    """How many tokens of an assistant's turn a sampler would write: up to the stop token, which ends its text."""
    eos = tokenizer.eos_token_id
    if eos not in written:
        raise ValueError(
            f"the chat template does not end the assistant's turn with the stop token {tokenizer.eos_token!r}, so it "
            "would never be learned; write it inside the generation block, or name the template's own end as eos_token"
        )
    kept = len(written) - written[::-1].index(eos)
    found, wanted = (
        _squeeze(x) for x in (tokenizer.decode(written[: kept - 1]), tokenizer.decode(_ids(tokenizer, content)))
    )
    if found != wanted:
        raise ValueError(
            f"the chat template trains {found!r:.80} where the assistant's turn is {wanted!r:.80}; correct the template"
        )
    return kept


def _squeeze(text: str) -> str:
    """Without white space, which templates trim and word tokenizers do not keep."""
    return "".join(text.split())
