"""The words of a text in any script, as the overlap metrics count them.

Words are runs of letters and digits, folded to lower case; where a script puts no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) each character is a word, as is usual in evaluation. On ASCII text the words are
exactly those of the rouge-score package.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Han with its extensions, kana, Thai and Lao, Burmese, Khmer.
_UNSPACED_RANGES = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003134f"
)
# Vowel signs and accents that stay with the letter before them.
_SIGNS = "".join(chr(code) for code in range(0x300, 0xFE30) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
_WORD = re.compile(rf"[{_UNSPACED_RANGES}][{_SIGNS}]*|(?:(?![{_UNSPACED_RANGES}])[^\W_][{_SIGNS}]*)+")
_UNSPACED = re.compile(rf"[{_UNSPACED_RANGES}]")
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_LETTER = re.compile(r"[^\W\d_]")
_MOST_LOOKED_AT = 200_000  # characters that decide which script a set of texts is in


def words(text: str) -> list[str]:
    """The words, in lower case, in their order."""
    return _WORD.findall(text.lower())


def without_spaces(texts: Sequence[str]) -> str:
    """Which way of writing most letters of the texts are in: ``""`` with spaces, ``han``, or ``other`` without."""
    sample = "".join(text[:2000] for text in texts[:_MOST_LOOKED_AT // 2000])
    letters = len(_LETTER.findall(sample))
    unspaced = len(_UNSPACED.findall(sample))
    if 2 * unspaced <= letters:
        return ""
    return "han" if 10 * len(_HAN.findall(sample)) >= 9 * unspaced else "other"
