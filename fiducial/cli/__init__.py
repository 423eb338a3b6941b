"""The command `fiducial`: one verb per thing a person does.

Exit code 0: done. 1: the run or a check failed. 2: the command, a recipe or the data was wrong. Tables are for eyes;
`--json` prints one JSON document on standard output and nothing else there.
"""

from fiducial.cli.main import main

__all__ = ["main"]
