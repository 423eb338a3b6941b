"""One loop for every method, on one process or many."""

import sys
import types
from typing import Any

from fiducial.train.parts import TrainingError
from fiducial.train.pipeline import train

__all__ = ["TrainingError", "train"]


class _Package(types.ModuleType):
    """`fiducial.train` is a function for users and this package once it is imported: so the package is callable."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return train(*args, **options)


sys.modules[__name__].__class__ = _Package
