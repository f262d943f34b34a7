"""METEOR by nltk (Banerjee & Lavie, 2005; weights of Lavie & Agarwal, 2007), without anything to be fetched.

Words match by form, then by Porter's stem, then as synonyms of WordNet. WordNet does not come with nltk: without its
folder the third step is left out, and scores are a little lower than published ones, which have it. Debian's package
``wordnet-base`` installs it as ``/usr/share/wordnet``; nltk's own corpus folder does as well. nltk pairs equal words
from the end, where the authors' program looks for the pairing with the fewest runs: texts that repeat words score a
little lower.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError

_PARTS = ("adj", "adv", "noun", "verb")
_LEXNAMES = 45  # files of the lexicographers in WordNet 3; synonyms do not depend on their names


class _NoSynonyms:
    """In WordNet's place: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def meteor_scorer(wordnet: str | os.PathLike[str] | None = None) -> Callable[[Sequence[str], Sequence[str]], float]:
    """A function from a reference's words and a prediction's words to the score, a share of 0 to 1.

    Args:
        wordnet: folder of WordNet's ``index.*``, ``data.*`` and ``*.exc`` files; None leaves synonyms out.

    Raises:
        DataError: the folder lacks some of them.
    """
    from nltk.translate.meteor_score import single_meteor_score

    synonyms = _NoSynonyms() if wordnet is None else _read_wordnet(Path(wordnet))

    def score(reference: Sequence[str], prediction: Sequence[str]) -> float:
        return float(single_meteor_score(reference, prediction, wordnet=synonyms))

    return score


def _read_wordnet(folder: Path) -> Any:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    names = [f"{kind}.{part}" for kind in ("index", "data") for part in _PARTS] + [f"{part}.exc" for part in _PARTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: WordNet's files {', '.join(missing)} are not there; give the folder that Debian's package "
            "wordnet-base installs (/usr/share/wordnet), or none"
        )

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """nltk's reader; Debian leaves ``lexnames`` out, which nltk reads at its start and synonyms do not need."""

        _FILES = tuple(names)

        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02} {number} 0\n" for number in range(_LEXNAMES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Numbers of other versions of WordNet are not asked for."""

        def __del__(self) -> None:
            for file in getattr(self, "_data_file_map", {}).values():
                file.close()

    root = str(folder.resolve())
    if root not in nltk.data.path:
        nltk.data.path.append(root)  # nltk reads from folders that are named there, and from no others
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that other languages are not there
        return Reader(root, None)
