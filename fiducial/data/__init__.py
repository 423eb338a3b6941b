"""Rows from files, recognised by their fields, checked before they train."""

from fiducial.data.dataset import DataReport, Dataset, Item, Quantiles, colour_sample
from fiducial.data.files import ListRows, RowSource, open_rows
from fiducial.data.rows import BadRow, Example, Kind, Steps, parse

__all__ = [
    "BadRow",
    "DataReport",
    "Dataset",
    "Example",
    "Item",
    "Kind",
    "ListRows",
    "Quantiles",
    "RowSource",
    "Steps",
    "colour_sample",
    "open_rows",
    "parse",
]
