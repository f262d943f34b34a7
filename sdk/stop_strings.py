"""Stop strings in a text that arrives in pieces: what may be the beginning of one is held back until it is known."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError

MOST = 16
LONGEST = 1024


class StopStrings:
    """Passes a text on up to the first stop string.

    The first is the one whose last character comes first, so that it does not matter how the text is cut into
    pieces; of several that end together, the longest. Searched with the failure function of Knuth, Morris and Pratt
    ("Fast Pattern Matching in Strings", 1977): the work for a character does not depend on the strings' lengths.

    Args:
        stops: the strings; none lets everything pass.

    Raises:
        UsageError: one is empty or no str, or there are too many or too long ones.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        if len(stops) > MOST:
            raise UsageError(f"{len(stops)} stop strings were given; {MOST} are the most")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= LONGEST:
                raise UsageError(f"a stop string is {stop!r:.60}; give texts of 1 to {LONGEST} characters")
        # the longest first: of those that end together it is met first
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text, or None so far."""

    def feed(self, piece: str) -> str:
        """What of the text may go out now; nothing more once a stop string was found."""
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        for place in range(len(self._held), len(text)):
            character = text[place]
            for index, stop in enumerate(self._stops):
                matched = self._matched[index]
                while matched and stop[matched] != character:
                    matched = self._fallbacks[index][matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    self.found, self._held = stop, ""
                    return text[: place + 1 - matched]
                self._matched[index] = matched
        kept = len(text) - max(self._matched)
        self._held = text[kept:]
        return text[:kept]

    def rest(self) -> str:
        """What was still held back, when the text ends without a stop string."""
        rest, self._held = self._held, ""
        return rest


def _fallbacks(stop: str) -> list[int]:
    """For each beginning of ``stop``, the length of its longest proper beginning that is its end too."""
    found = [0] * len(stop)
    matched = 0
    for place in range(1, len(stop)):
        while matched and stop[matched] != stop[place]:
            matched = found[matched - 1]
        matched += stop[matched] == stop[place]
        found[place] = matched
    return found
