"""fiducial sample MODEL"""

from __future__ import annotations

import sys
from math import isfinite
from pathlib import Path
from typing import Any

from fiducial.cli import show
from fiducial.core.seeds import mix
from fiducial.core.types import Prompt, Request


def prompts(args: Any) -> list[Prompt]:
    """The prompts of --prompt or --file, as user messages under --chat."""
    if args.file:
        from fiducial.data import open_rows

        path = Path(args.file)
        if path.suffix == ".txt":
            texts: list[Prompt] = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        else:
            rows = open_rows(path)
            missing = [rows.where(i) for i in range(len(rows)) if "prompt" not in rows[i]]
            if missing:
                raise ValueError(f"{missing[0]} has no field 'prompt'")
            texts = [row["prompt"] for row in rows]
    else:
        texts = [args.prompt if args.prompt is not None else sys.stdin.read()]
    if args.chat:
        return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in texts]
    return texts


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "sample",
        "Completions of a prompt; --trace adds for each token the probabilities it was drawn from.",
        "fiducial sample runs/demo/grpo/model --prompt 'Gus has 17.' -n 3 --temperature 0.7",
    )
    parser.add_argument("model", help="a Hugging Face folder, a run's folder, or http://HOST:PORT/v1#MODEL")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text (default: standard input)")
    source.add_argument("--file", help="a .txt file with a prompt on each line, or rows with a field 'prompt'")
    parser.add_argument("-n", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--chat", action="store_true", help="the text is what a user says")
    parser.add_argument("--trace", nargs="?", type=int, const=5, metavar="K", help="the K likeliest tokens (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    show.add_decoding(parser)
    args = parser.parse_args(argv)
    if args.n < 1:
        raise ValueError(f"-n must be at least 1; it is {args.n}")
    from fiducial.sampling.endpoint import is_endpoint, open_sampler
    from fiducial.sampling.local import LocalSampler
    from fiducial.sampling.trace import trace

    if args.trace and is_endpoint(args.model):
        raise ValueError(f"--trace reads all probabilities, which {args.model} does not give: name a model's folder")
    sampler, encode = open_sampler(show.model_folder(args.model))
    requests = [
        Request(encode(prompt), mix(args.seed, "cli", i, copy), prompt, group=i)
        for i, prompt in enumerate(prompts(args))
        for copy in range(args.n)
    ]
    out = []
    for rollout in sampler.sample(requests, show.decoding(args)):
        row: dict[str, Any] = {"prompt": rollout.prompt, "completion": rollout.completion, "finish": rollout.finish}
        told = [p for p, written in zip(rollout.sampler_logprobs, rollout.mask, strict=True) if written]
        row["logprobs"] = [p if isfinite(p) else None for p in told]
        if rollout.score:  # a server failed on this one
            row["why"] = rollout.score.why
        if args.trace:
            assert isinstance(sampler, LocalSampler)
            row["trace"] = trace(sampler.model, sampler.tokenizer, rollout, args.trace)
        out.append(row)
    if args.json:
        show.emit(out)
        return 0
    for row in out:
        print(f"{row['completion']}   [{row['finish']}{': ' + row['why'] if 'why' in row else ''}]")
        for step in row.get("trace", []):
            others = "  ".join(f"{t['text']!r} {t['prob']:.3f}" for t in step["topk"])
            print(f"  {step['action_text']!r:>12} {step['prob']:.3f}  rank {step['rank']}  of  {others}")
    return 0
