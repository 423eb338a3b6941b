"""fiducial data spec_distill"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fiducial.cli import prompts, show
from fiducial.cli.data_feedback import finish


def spec_distill(argv: list[str]) -> int:
    """Demonstrations that keep to a specification that their prompts do not hold; returns the exit code."""
    parser = show.parser(
        "data spec_distill",
        "Deliberative alignment, stage 1: a model that is shown a specification thinks about it and answers; what a\n"
        "judge who knows it too finds to comply is kept, without the specification in the prompt. Rows name a\n"
        "`category` of the specification; without one all of it is shown.",
        "fiducial data spec_distill models/chat prompts.jsonl --judge spec.toml --chat --out demos.jsonl",
    )
    parser.add_argument("model", help="writes the completions: a folder, or http://HOST:PORT/v1#MODEL")
    parser.add_argument("file", help="rows with a prompt")
    parser.add_argument("--judge", required=True, metavar="FILE.toml", help="a judge's file of kind spec")
    parser.add_argument("--n", type=int, help="prompts (default all)")
    parser.add_argument("--k", type=int, default=4, help="completions of each (default 4)")
    parser.add_argument("--threshold", type=float, default=0.8, help="lowest score that stays, 0 to 1 (default 0.8)")
    parser.add_argument("--runs", type=int, default=1, help="of the judge; the lowest counts (default 1)")
    parser.add_argument("--chat", action="store_true", help="prompts are what a user says to a chat model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the rows go")
    show.add_decoding(parser, max_new_tokens=512)
    args, flags = parser.parse_known_args(argv)
    if Path(args.out).suffix != ".jsonl":
        raise ValueError(f"--out is a .jsonl file; it is {args.out}")
    from fiducial.data.feedback.spec_distill import build_context_distilled
    from fiducial.judges import judge
    from fiducial.judges.spec import SpecJudge
    from fiducial.sampling.endpoint import open_policy

    scorer = judge(args.judge)
    if not isinstance(scorer, SpecJudge):
        raise ValueError(f'{args.judge} holds no specification: name a judge\'s file with kind = "spec"')
    problems, counted = prompts.problems(args.file, args.n, args.seed, "train", flags, args.chat)
    policy = open_policy(show.model_folder(args.model))
    made = build_context_distilled(
        policy,
        scorer,
        problems,
        n=args.k,
        threshold=args.threshold,
        runs=args.runs,
        decoding=show.decoding(args),
        seed=args.seed,
        fits=policy.fits,
        progress=show.progress("judging"),
    )
    made.counted = dict(Counter(made.counted) + counted)
    return finish(made, args)
