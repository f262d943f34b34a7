"""How much of a summary is its source's own words: copied n-grams, extractive fragments, compression.

Fragments, their coverage and density as in Grusky, Naaman & Artzi, "Newsroom: A Dataset of 1.3 Million Summaries with
Diverse Extractive Strategies" (2018), figure 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def fragments(summary: Sequence[str], source: Sequence[str]) -> list[int]:
    """Lengths in words of the runs of the summary that stand in the source too, found greedily from the left.

    Where several places of the source go on alike, the longest run counts.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(source):
        places[word].append(place)
    found = []
    begin = 0
    while begin < len(summary):
        longest = 0
        for place in places.get(summary[begin], ()):
            length = 1
            while (
                begin + length < len(summary)
                and place + length < len(source)
                and summary[begin + length] == source[place + length]
            ):
                length += 1
            longest = max(longest, length)
        if longest:
            found.append(longest)
        begin += max(1, longest)
    return found


def copied_ngrams(summary: Sequence[str], source: Sequence[str], size: int) -> tuple[int, int]:
    """How many of the summary's n-grams of this size stand in the source, and how many it has."""
    there = {tuple(source[place : place + size]) for place in range(len(source) - size + 1)}
    own = [tuple(summary[place : place + size]) for place in range(len(summary) - size + 1)]
    return sum(ngram in there for ngram in own), len(own)
