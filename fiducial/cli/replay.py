"""fiducial replay RUN --step N"""

from __future__ import annotations

from fiducial.cli import show
from fiducial.store import RunFolder


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "replay",
        "Recompute a step of a run from its newest earlier checkpoint; compare tokens, rewards, log-probs, gradients.",
        "fiducial replay runs/first --step 40",
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--step", type=int, required=True)
    args = parser.parse_args(argv)
    from fiducial.train.replay import replay
    from fiducial.train.run import refuse_changed_data

    refuse_changed_data(RunFolder(args.run))
    found = replay(args.run, args.step)
    same = found["tokens_equal"] and found["rewards_equal"]
    same = same and found["max_logprob_error"] is not None and found["max_grad_error"] is not None
    if args.json:
        show.emit(found)
    else:
        show.table(["", ""], list(found.items()))
    return 0 if same else 1
