"""Which language a text is in, by the `langdetect` package: the detector of the published IFEval, seeded.

An optional extra (`pip install 'fiducial[language]'`); whoever asks without it gets a `NoDetector` that says so.
"""

from __future__ import annotations

from functools import cache

MAX_CHARACTERS = 20_000  # of a text; more tells no more


class NoDetector(RuntimeError):
    """The package that tells languages apart is not installed."""


@cache
def languages() -> frozenset[str]:
    """The codes that the detector knows: ISO 639-1, and `zh-cn` and `zh-tw`."""
    factory = _detector_factory()
    return frozenset(factory._factory.get_lang_list())


def detect(text: str) -> str | None:
    """The code of the text's most likely language; None where nothing in it tells, as in numbers.

    Letter case says nothing here (the detector takes a word in capitals for a name and skips it). The same text always
    gets the same answer. Raises NoDetector where the package is absent.
    """
    factory = _detector_factory()
    detector = factory._factory.create()
    detector.append(text[:MAX_CHARACTERS].lower())
    try:
        found = detector.detect()
    except factory.LangDetectException:
        return None
    return None if found == "unknown" else found


def same_language(found: str, wanted: str) -> bool:
    """Whether a detected code is the wanted one, which may leave a variant open.

    >>> same_language("zh-tw", "zh"), same_language("zh-tw", "zh-cn"), same_language("en", "en")
    (True, False, True)
    """
    wanted = wanted.lower()
    return found == wanted or found.split("-")[0] == wanted


@cache
def _detector_factory():
    try:
        from langdetect import detector_factory
    except ImportError as error:
        raise NoDetector("languages are told apart by langdetect: pip install 'fiducial[language]'") from error
    detector_factory.DetectorFactory.seed = 0
    detector_factory.init_factory()
    return detector_factory
