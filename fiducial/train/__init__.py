"""One loop for every method, on one process or many."""

from fiducial.train.loop import TrainingError
from fiducial.train.run import train

__all__ = ["TrainingError", "train"]
