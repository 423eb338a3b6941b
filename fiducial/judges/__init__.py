"""What judges completions besides verifiers: language models that rate or compare, rewards as judges, and what a name
in a recipe or a command stands for.

Anything that scores completions compares them too: a reward model by the sigmoid of the score difference
(Bradley-Terry), a verifier or a function of one completion by which score is higher. A language model is an AI judge,
and `file.py:function` with parameters `a` and `b` judges itself. All but those that cannot care about the order are
asked in both orders.
"""

from fiducial.judges.ai_judge import AIJudge, read_verdict
from fiducial.judges.named import judge, pair_judge
from fiducial.judges.ratings import AIScore, AIYesNo

__all__ = ["AIJudge", "AIScore", "AIYesNo", "judge", "pair_judge", "read_verdict"]
