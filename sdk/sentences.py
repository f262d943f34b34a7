"""Where sentences end, in any script, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator

# An end is followed by white space, in scripts without spaces by anything.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？｡]+[”’」』）】]*\s*|\n\s*")
_SHORT_FORMS = (
    "mr mrs ms dr prof st sr jr vs e.g i.e etc cf no nos fig eq sec vol pp approx dept inc ltd co corp gen col sgt "
    "a.m p.m u.s u.k jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri "
    "z.b d.h u.a bzw ca nr str hr fr usw evtl ggf inkl bsp m p.ex mme mlle"
)
_NO_ENDS = frozenset(_SHORT_FORMS.split())


def sentences(text: str) -> Iterator[str]:
    """The sentences in their order, without white space around them.

    A full stop ends none after a short form ("Dr."), after a single letter, or before a small letter.
    """
    begin = 0
    for match in _END.finditer(text):
        if match[0][0] == "." and match[0].rstrip() == "." and not _ends(text, match.start(), match.end()):
            continue
        if sentence := text[begin : match.end()].strip():
            yield sentence
        begin = match.end()
    if sentence := text[begin:].strip():
        yield sentence


def _ends(text: str, stop: int, following: int) -> bool:
    if text[following : following + 1].islower():
        return False
    word = re.search(r"[\w.]*$", text[max(0, stop - 12) : stop])
    last = word[0].lower() if word is not None else ""
    return not (last in _NO_ENDS or (len(last) == 1 and last.isalpha() and last != "i"))
