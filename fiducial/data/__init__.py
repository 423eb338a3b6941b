"""Rows from files, recognised by their fields, checked before they train."""

from fiducial.data.dataset import DataReport, Dataset, Item, Quantiles, colour_sample
from fiducial.data.files import ListRows, RowSource, open_rows
from fiducial.data.preferences.grading import Criteria, Grading
from fiducial.data.preferences.record import Preference
from fiducial.data.rows import Example, Kind, Steps, parse
from fiducial.data.view import BadRow

__all__ = [
    "BadRow",
    "Criteria",
    "DataReport",
    "Dataset",
    "Example",
    "Grading",
    "Item",
    "Kind",
    "ListRows",
    "Preference",
    "Quantiles",
    "RowSource",
    "Steps",
    "colour_sample",
    "open_rows",
    "parse",
]
