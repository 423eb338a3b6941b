"""fiducial data inspect | pairs | raters"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fiducial.cli import prompts, show
from fiducial.cli.data_feedback import finish

if TYPE_CHECKING:
    from fiducial.data.inspection import Inspection
    from fiducial.data.preferences.population import Population

SHOWN_RATERS = 12


def inspect(argv: list[str]) -> int:
    """Look at a file of rows; returns the exit code."""
    parser = show.parser(
        "data inspect",
        "What the rows of a file are, how long, and what is wrong with them; of preferences also ties, raters and\n"
        "what they agree on, contradictory judgements, habits of position, and whether the longer side wins.\n"
        "No text is printed. Columns are renamed as in a recipe: --prompt-field question.",
        "fiducial data inspect pairs.jsonl",
    )
    parser.add_argument("file", help="JSONL, JSON, CSV, parquet, text, or a saved `datasets` folder")
    parser.add_argument("--split", default="", help="of a saved DatasetDict")
    parser.add_argument(
        "--kind", choices=("demos", "pairs", "costs", "labels", "problems", "steps"), help="read every row as this"
    )
    parser.add_argument("--model", help="count tokens of this model instead of characters")
    parser.add_argument("--ratings", default="hard", help="hard, soft, margin or filter_slight, as data.ratings")
    parser.add_argument("--rating-scale", type=float, default=0.0, help="as data.rating_scale")
    parser.add_argument("--ties", default="drop", help="drop, half or keep, as data.ties")
    args, flags = parser.parse_known_args(argv)
    from fiducial.data import Grading, open_rows
    from fiducial.data.inspection import characters, inspect_rows

    found = inspect_rows(
        open_rows(args.file, args.split),
        {name.removesuffix("_field"): value for name, value in show.overrides(flags).items()},
        Grading(args.ratings, args.rating_scale, args.ties),
        args.kind,
        _tokens(args.model) if args.model else characters,
        "tokens" if args.model else "characters",
        show.progress("reading"),
    )
    if args.json:
        show.emit(found.summary())
    else:
        _tell(found)
    if found.used:
        return 0
    why = ", ".join(f"{number:,} {reason} (first {found.first[reason][0]})" for reason, number in found.counted.items())
    print(f"fiducial data: {found.name}: no row can train: {why or 'there are none'}", file=sys.stderr)
    return 1


def _tokens(folder: str) -> Any:
    """How many tokens of a model's tokenizer a text or a chat has."""
    from fiducial.data.feedback.writer import transcript
    from fiducial.models import load_tokenizer

    tokenizer = load_tokenizer(show.model_folder(folder))
    return lambda side: len(tokenizer.encode(transcript(side), add_special_tokens=False))


def _tell(found: Inspection) -> None:
    """An inspection for eyes."""
    print(f"{found.name}: {found.used:,} of {found.rows:,} rows can train")
    show.table(["rows", "fields"], [(f"{n:,}", shape) for shape, n in found.shapes.items()])
    if found.left_out:
        told = (f"{n:,} {why}" for why, n in found.left_out.items())
        print(f"comparisons within rankings left out: {', '.join(told)}\n")
    lengths = [(name, *(f"{value:,}" for value in q.values())) for name, q in found.quantiles.items()]
    show.table([found.unit, "min", "50 %", "90 %", "99 %", "max"], lengths)
    if found.labels:
        whole = sum(found.labels.values())
        show.table(["labels", "", ""], [(name, f"{n:,}", f"{n / whole:.1%}") for name, n in found.labels.items()])
    if found.preferences:
        _tell_preferences(found.preferences)
    if not found.notes:
        print("nothing looks wrong")
    for note in found.notes:
        advice = f": {note.advice}" if note.advice else ""
        print(f"{note.severity:<8} {note.what} ({note.where}){advice}")


def _tell_preferences(seen: dict[str, Any]) -> None:
    facts = [("judgements", f"{seen['judgements']:,}"), ("pairs", f"{seen['pairs']:,}"), ("ties", f"{seen['ties']:,}")]
    if seen["ratings"]:
        facts.append(("ratings", ", ".join(f"{float(r):+g}: {n:,}" for r, n in seen["ratings"].items())))
    if seen["sources"]:
        facts.append(("sources", ", ".join(f"{name}: {n:,}" for name, n in seen["sources"].items())))
    if seen["chosen_longer"] is not None:
        facts.append(("chosen is longer", f"{seen['chosen_longer']:.1%} (equal: {seen['equally_long']:.1%})"))
    if seen["kappa"] is not None:
        facts.append(("agreement (Fleiss' kappa)", f"{seen['kappa']:.3f}"))
    show.table(["preferences", ""], facts)
    named = [(name, rater) for name, rater in seen["raters"].items() if name]
    rows = []
    for name, rater in named[:SHOWN_RATERS]:
        shown = [f"{rater[key]:,}" if key in rater else "" for key in ("n", "a", "b", "ties")]
        rows.append((name, *shown, f"{rater['majority']:.1%}" if "majority" in rater else ""))
    if rows:
        show.table(["rater", "judgements", "for A", "for B", "ties", "with the majority"], rows)
    if len(named) > SHOWN_RATERS:
        print(f"... and {len(named) - SHOWN_RATERS} more raters (--json lists all)\n")


def pairs(argv: list[str]) -> int:
    """Pairs that a verifier makes; returns the exit code."""
    parser = show.parser(
        "data pairs",
        "Sample completions of a task's problems, or of a file's prompts, verify them, and write pairs: a correct\n"
        "completion against a wrong one of the same problem. A task's settings are flags (--n-people 3); for a file,\n"
        "--prompt-field and its like.",
        "fiducial data pairs runs/sft/model arith --n 500 --out pairs.jsonl",
    )
    parser.add_argument("model", help="a Hugging Face folder, a run's folder, or http://HOST:PORT/v1#MODEL")
    parser.add_argument("task", help="a task's id, or a file of problems (with --reward)")
    parser.add_argument("--n", type=int, help="problems (default 100 of a task, all of a file)")
    parser.add_argument("--k", type=int, default=8, help="completions of each problem (default 8)")
    parser.add_argument("--pairs-per-problem", type=int, default=1, help="at most (default 1)")
    parser.add_argument("--unparseable", action="store_true", help="completions without an answer count as wrong")
    parser.add_argument("--reward", default="", help="what verifies problems from a file: math, file.py:function, ...")
    parser.add_argument("--split", default="train", choices=("train", "dev", "test"), help="of a task (default train)")
    parser.add_argument("--chat", action="store_true", help="prompts are what a user says to a chat model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the rows go")
    show.add_decoding(parser)
    args, flags = parser.parse_known_args(argv)
    if not (prompts.is_task(args.task) or args.reward):
        raise ValueError(f"problems from {args.task} need something that verifies them: --reward math, or yours")
    from fiducial.evals.verified_pairs import verified_pairs
    from fiducial.judges import judge
    from fiducial.sampling.endpoint import open_sampler

    problems, counted = prompts.problems(args.task, args.n, args.seed, args.split, flags, args.chat)
    made = verified_pairs(
        *open_sampler(show.model_folder(args.model)),
        problems,
        judge(args.reward or args.task),
        show.decoding(args),
        args.k,
        args.seed,
        pairs_per_problem=args.pairs_per_problem,
        unparseable=args.unparseable,
        progress=show.progress("sampling"),
    )
    made.counted = {**{f"row: {reason}": n for reason, n in counted.items()}, **made.counted}
    return finish(made, args)


def raters(argv: list[str]) -> int:
    """Judgements of a simulated population; returns the exit code."""
    parser = show.parser(
        "data raters",
        "Judgements of simulated raters. The population is `condorcet` (three consistent raters whose majority goes\n"
        "round in a circle), a .json file of prompts, responses and raters, or a file of pairs: then --raters raters\n"
        "judge its pairs anew, with the noise and the habits that the flags give them.",
        "fiducial data raters pairs.jsonl --raters 5 --noise 0.2 --raters-per-pair 3 --out judged.jsonl",
    )
    parser.add_argument("population", help="condorcet, population.json, or rows of pairs")
    parser.add_argument("--n", type=int, help="pairs shown, each once (default: all there are)")
    parser.add_argument(
        "--with-replacement", action="store_true", help="draw --n pairs of which any may come again (condorcet has 3)"
    )
    parser.add_argument("--raters-per-pair", type=int, default=1, help="different raters for each (default 1)")
    parser.add_argument("--poison", type=float, default=0.0, help="share of raters who say the opposite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the rows go")
    of_pairs = parser.add_argument_group("of raters over a file of pairs")
    of_pairs.add_argument("--raters", type=int, default=3, help="how many (default 3)")
    for name, help in (
        ("temperature", "of their Bradley-Terry choice; 0 always takes the chosen side (default 0)"),
        ("noise", "share of answers turned round"),
        ("length-bias", "reward for each word"),
        ("position-bias", 'share answered "A" without a look'),
    ):
        of_pairs.add_argument(f"--{name}", type=float, default=0.0, help=help)
    args, flags = parser.parse_known_args(argv)
    from fiducial.data.feedback.writer import Made
    from fiducial.data.preferences.agreement import Votes
    from fiducial.data.preferences.raters import poison, simulate

    if args.with_replacement and args.n is None:
        raise ValueError("--with-replacement needs --n: how many pairs to draw")
    (who, asked, responses), counted = _population(args, flags)
    who = poison(who, args.poison, args.seed) if args.poison else who
    records = simulate(who, asked, responses, args.n, args.seed, args.raters_per_pair, args.with_replacement)
    votes = Votes(records)
    metrics: dict[str, float] = {"raters": len(who), "pairs": len(votes.pairs), "disputed": votes.disputed()}
    if (kappa := votes.kappa()) is not None:
        metrics["kappa"] = kappa
    metrics |= {f"majority/{name}": share for name, (share, _) in votes.accuracy().items()}
    return finish(Made([record.to_row() for record in records], counted, metrics), args)


def _population(args: Any, flags: list[str]) -> tuple[Population, dict[str, int]]:
    """Raters, prompts and responses, and the rows of a file of pairs that have none, by reason."""
    from collections import Counter

    from fiducial.data import BadRow, open_rows
    from fiducial.data.preferences import population, shapes
    from fiducial.data.view import Row

    name = args.population
    if name == "condorcet":
        return population.condorcet(), {}
    if population.is_population(name):
        return population.read_population(name), {}
    fields = {key.removesuffix("_field"): value for key, value in show.overrides(flags).items()}
    records, counted = [], Counter[str]()
    for i, row in enumerate(open_rows(name)):
        try:
            records.append(shapes.judgement(Row(row, fields, i)))
        except BadRow as bad:
            counted[bad.reason] += 1
    settings = {key: getattr(args, key) for key in ("temperature", "noise", "length_bias", "position_bias")}
    counted["not text"] += sum(not isinstance(r.response_a, str) or not isinstance(r.response_b, str) for r in records)
    return population.over_pairs(records, args.raters, **settings), dict(+counted)
