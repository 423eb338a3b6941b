"""Preference data from a model's own judgement: AI labels, critiques and revisions, trees of completions.

A model is handed in as a `Writer` (what `fiducial.load` gives) or, where completions go on from tokens, as a `Sampler`.
"""

from fiducial.data.feedback.ai_feedback import ai_feedback
from fiducial.data.feedback.comparing import Comparison, Judgement, PairJudge, both_orders, position_bias
from fiducial.data.feedback.constitutional_ai import mix, principled_pairs, revised_demos
from fiducial.data.feedback.principles import PRINCIPLES, Principle, draw_principle, read_principles
from fiducial.data.feedback.tree_preferences import Shape, chain, grow, tree_preferences
from fiducial.data.feedback.writer import Made, Writer, read_template

__all__ = [
    "PRINCIPLES",
    "Comparison",
    "Judgement",
    "Made",
    "PairJudge",
    "Principle",
    "Shape",
    "Writer",
    "ai_feedback",
    "both_orders",
    "chain",
    "draw_principle",
    "grow",
    "mix",
    "position_bias",
    "principled_pairs",
    "read_principles",
    "read_template",
    "revised_demos",
    "tree_preferences",
]
