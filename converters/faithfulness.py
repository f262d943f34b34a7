"""Numbers, dates and names of a summary that its source does not have: the mistakes that hurt most.

Looked for by form, in any text, without a model:

- **numbers**: "1,000", "1000", "1 000" and "one thousand" are one number; "5 %" and "five percent" one share; a unit
  or currency has to be the same where both texts name one ("$3 million", "3,000,000 dollars"). Where a comma or a
  point may be read in two ways ("1.000"), either will do. Times ("10:30", "10.30 am") go by hour and minute.
- **dates**: "12 March 2024", "March 12th, 2024", "2024-03-12", "12.3.2024"; a summary may say less ("March 2024"), not
  other.
- **names**: words with a capital letter inside a sentence, and at its beginning if another follows or the word has
  more capitals ("IBM"). A name is supported when all its words stand in the source in any case, or when it is made of
  the first letters of words there ("EU"). German writes all nouns so, which makes this a count of new nouns; scripts
  without capitals have no names here.

What it cannot see: a number or name of the source in a wrong place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from .words import words

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = _BELOW_TWENTY.split()
_TENS = {word: 10 * place for place, word in enumerate(_TENS_NAMES.split(), 2)}
_NUMBER_WORDS = {word: number for number, word in enumerate(_SMALL)} | _TENS
_SCALES = {
    "hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "mio": 10**6, "m": 10**6, "mn": 10**6,
    "billion": 10**9, "bn": 10**9, "trillion": 10**12, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_UNITS = {
    "%": "% percent pct prozent pourcent 百分",
    "USD": "$ us$ usd dollar dollars",
    "EUR": "€ eur euro euros",
    "GBP": "£ gbp",
    "JPY": "¥ jpy yen",
    "km": "km kilometre kilometres kilometer kilometers",
    "m": "metre metres meter meters",
    "cm": "cm centimetre centimetres centimeter centimeters",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "mile": "mile miles",
    "kg": "kg kilo kilos kilogram kilograms",
    "g": "g gram grams",
    "tonne": "t tonne tonnes ton tons",
    "litre": "l litre litres liter liters",
    "second": "s sec second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "GB": "gb gigabyte gigabytes",
    "MB": "mb megabyte megabytes",
    "°C": "°c",
    "°F": "°f",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar janvier", "february feb februar février", "march mar märz mars", "april apr avril",
            "may mai", "june jun juni juin", "july jul juli juillet", "august aug août",
            "september sep sept septembre", "october oct oktober octobre", "november nov novembre",
            "december dec dezember décembre",
        ),
        1,
    )
    for name in names.split()
}  # fmt: skip

_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![\w-])(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?![\w-])",
        rf"(?<!\w)(?P<d>\d{{1,2}})(?:st|nd|rd|th|\.|er)?\s+(?:of\s+)?(?P<n>{_MONTH})\b\.?,?(?:\s+(?P<y>\d{{4}})\b)?",
        rf"(?<!\w)(?P<n>{_MONTH})\b\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?![\w:])(?:,?\s+(?P<y>\d{{4}})\b)?",
        rf"(?<!\w)(?P<n>{_MONTH})\b\.?,?\s+(?P<y>\d{{4}})\b",
        r"(?<![\w.])(?P<d>\d{1,2})\.\s?(?P<m>\d{1,2})\.\s?(?P<y>\d{4})(?!\w)",
        r"(?<![\w/])(?P<a>\d{1,2})/(?P<b>\d{1,2})/(?P<y>\d{4})(?![\w/])",
        r"(?P<y>\d{4})年(?:(?P<m>\d{1,2})月(?:(?P<d>\d{1,2})[日号])?)?",
        r"(?P<m>\d{1,2})月(?:(?P<d>\d{1,2})[日号])?",
    )
)
_TIME = re.compile(
    r"(?<![\w:.,])(\d{1,2})[:.](\d{2})(?::\d{2})?\s*([ap]\.?m\b\.?)?(?![\w:]|[.,]\d)"
    r"|(?<![\w:.,])(\d{1,2})\s*([ap]\.?m\b\.?)",
    re.IGNORECASE,
)
_DIGITS = r"\d{1,3}(?:[  '’]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)*"
_SIMPLE_WORDS = "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))
_WORDS = rf"(?:{'|'.join(_TENS)})[- ](?:{'|'.join(_SMALL[1:10])})|{_SIMPLE_WORDS}"
_SCALE = "|".join(sorted((name for name in _SCALES if len(name) > 2), key=len, reverse=True))
_UNIT = "|".join(re.escape(name) for name in sorted(_UNIT_OF, key=len, reverse=True))
_NUMBER = re.compile(
    rf"(?:(?P<before>us\$|[$€£¥])\s?)?(?:(?<![\w.,])(?:(?P<digits>{_DIGITS})|(?P<words>{_WORDS})(?!\w))"
    rf"|(?<=[\u3000-\u9fff])(?P<inside>{_DIGITS}))"
    rf"(?:[\s-]?(?P<scale>(?:{_SCALE}|bn|mn|k|m)(?!\w)|[万亿]))?(?:[\s-]?(?P<unit>{_UNIT})(?![^\W\d_\u3000-\u9fff]))?",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"(\d)(?:st|nd|rd|th)\b", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n•\"“(\[]|\s[-–—])\s*$")
_CAPITALISED = re.compile(r"[^\W\d_a-z][\w'’&.-]*\w|[A-Z]")  # its first letter is looked at once more
_LOWER_NO_MONTH = ("may", "mar", "mars")
_NO_NAMES = frozenset(("I", "I'm", "I'll", "I've", "I'd", "I’m", "I’ll", "I’ve", "I’d", "OK"))
_OPENING_WORDS = (
    "A After All Also An And As At Before But By Each Every For From He Her His If In It Its Most My New No Not Of On "
    "Our She So Some That The Their Then There These They This Those To Today Tomorrow Two Three Under Until We When "
    "While With Yesterday You Your"
)
_OPENERS = frozenset(_OPENING_WORDS.split())


@dataclass(frozen=True, slots=True)
class Entity:
    """A number, date or name as it stands in a summary. ``kind``: ``number``, ``date`` or ``name``."""

    kind: str
    text: str
    supported: bool


@dataclass(frozen=True, slots=True)
class _Number:
    text: str
    values: frozenset[Decimal]
    unit: str | None


@dataclass(frozen=True, slots=True)
class _Date:
    """``days``: (year, month, day) in each way it may be read, 0 where the text does not say."""

    text: str
    days: frozenset[tuple[int, int, int]]


def entities(summary: str, source: str) -> list[Entity]:
    """The summary's numbers, dates and names with whether the source has them, kind by kind, each once."""
    dates, rest = _dates(summary)
    source_dates, source_rest = _dates(source)
    numbers, source_numbers = list(_numbers(rest)), list(_numbers(source_rest))
    years = {day[0] for date in source_dates for day in date.days}
    found: dict[Entity, None] = {}
    for number in numbers:
        supported = any(_same_number(number, other) for other in source_numbers) or (
            number.unit is None and any(value in years for value in number.values)
        )
        found[Entity("number", number.text, supported)] = None
    plain_years = {value for other in source_numbers if not other.unit for value in other.values}
    for date in dates:
        supported = any(_same_date(date, other) for other in source_dates) or any(
            not month and not day and year in plain_years for year, month, day in date.days
        )
        found[Entity("date", date.text, supported)] = None
    source_words = set(words(source)) | set(words(source_rest))  # a date may have stood right behind a name
    initials: set[str] = set()
    for name in _names(rest):
        parts = words(re.sub(r"['’]s\b", "", name))
        supported = all(part in source_words for part in parts)
        if not supported and name.isupper() and name.isalpha():
            initials = initials or _initials(source)
            supported = name in initials
        found[Entity("name", name, supported)] = None
    return list(found)


def _dates(text: str) -> tuple[list[_Date], str]:
    """Dates, and the text with blanks in their places."""
    found: list[_Date] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            year = int(parts.get("y") or 0)
            if parts.get("a"):
                first, second = int(parts["a"]), int(parts["b"])
                days = {(year, first, second), (year, second, first)}
            else:
                named = parts.get("n")
                if named in _LOWER_NO_MONTH:
                    continue
                month = _MONTHS[named.lower()] if named else int(parts.get("m") or 0)
                days = {(year, month, int(parts.get("d") or 0))}
            days = {day for day in days if day[1] <= 12 and day[2] <= 31}
            if days:
                found.append(_Date(" ".join(match[0].split()).rstrip(",."), frozenset(days)))
                text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    return found, text


def _numbers(text: str) -> Iterator[_Number]:
    for match in _TIME.finditer(text):
        hour, minute = int(match[1] or match[4]), int(match[2] or 0)
        half = (match[3] or match[5] or "").lower()
        if hour > 24 or minute > 59 or (not half and ":" not in match[0]):
            continue
        if half:
            hour = hour % 12 + (12 if half.startswith("p") else 0)
        yield _Number(match[0].strip(), frozenset({Decimal(60 * hour + minute)}), "time")
        text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    text = _ORDINAL.sub(r"\1  ", text)
    for match in _NUMBER.finditer(text):
        spelled, digits = match["words"], match["digits"] or match["inside"]
        if spelled and spelled.lower() == "one" and not (match["scale"] or match["unit"]):
            continue  # "one of them" is no number
        values = {_spelled(spelled)} if spelled else _readings(digits)
        scale = Decimal(_SCALES[match["scale"].lower()]) if match["scale"] else Decimal(1)
        unit = match["before"] or match["unit"]
        named = _UNIT_OF[unit.lower()] if unit else None
        yield _Number(" ".join(match[0].split()), frozenset(value * scale for value in values), named)


def _spelled(text: str) -> Decimal:
    return Decimal(sum(_NUMBER_WORDS[part] for part in re.split(r"[- ]", text.lower())))


def _readings(digits: str) -> set[Decimal]:
    """What a number written in digits may mean: a comma or a point before three digits may group or divide."""
    digits = re.sub(r"[  '’]", "", digits)
    forms = {digits}
    separators = re.findall(r"[.,]", digits)
    if separators:
        grouped = re.fullmatch(r"\d{1,3}(?:([.,])\d{3})(?:\1\d{3})*(?:[.,]\d+)?", digits)
        last = max(digits.rfind("."), digits.rfind(","))
        divided = re.sub(r"[.,]", "", digits[:last]) + "." + digits[last + 1 :]
        forms = set()
        if len(set(separators)) == 2 or len(separators) == 1:
            forms.add(divided)
        if grouped and len(set(separators)) == 1:
            forms.add(re.sub(r"[.,]", "", digits))
        if not forms:  # 1.2.3: a version; compared as the digits it has
            forms.add(re.sub(r"[.,]", "", digits))
    found = set()
    for form in forms:
        try:
            found.add(Decimal(form).normalize())
        except InvalidOperation:  # digits of a script that Decimal does not read
            continue
    return found


def _same_number(one: _Number, other: _Number) -> bool:
    units = {one.unit, other.unit}
    alike = len(units) == 1 or (None in units and "time" not in units)
    return alike and not one.values.isdisjoint(other.values)


def _same_date(said: _Date, there: _Date) -> bool:
    """Whether every part that the summary says is what the source says."""
    return any(all(not a or a == b for a, b in zip(one, two, strict=True)) for one in said.days for two in there.days)


def _names(text: str) -> Iterator[str]:
    """Runs of capitalised words, as the module says."""
    run: list[str] = []
    run_begins = end = 0
    capitalised = (match for match in _CAPITALISED.finditer(text) if match[0][0].isupper())
    for match in itertools.chain(capitalised, (None,)):
        if match is not None and run and text[end : match.start()] == " " and not _ends_sentence(text, end):
            run.append(match[0])
            end = match.end()
            continue
        if run:
            yield from _as_name(text, run_begins, run)
            run = []
        if match is not None and not re.fullmatch(r"[\w@/'’-]", text[max(0, match.start() - 1) : match.start()]):
            run, run_begins, end = [match[0]], match.start(), match.end()


def _ends_sentence(text: str, place: int) -> bool:
    return text[place - 1 : place] in (".", "!", "?")


def _as_name(text: str, begin: int, run: list[str]) -> Iterator[str]:
    at_start = _SENTENCE_START.search(text[max(0, begin - 20) : begin]) is not None or begin == 0
    if at_start and len(run) == 1 and not any(letter.isupper() for letter in run[0][1:]):
        return
    if at_start and len(run) > 1 and run[0] in _OPENERS:
        run = run[1:]  # "The Navy"
    kept = [word for word in run if word not in _NO_NAMES]
    if kept:
        yield " ".join(kept)


def _initials(source: str) -> set[str]:
    """First letters of each run of 2 to 6 words that begin with capitals, small joining words left out."""
    found = (word for word in re.findall(r"[^\W\d_]+", source) if word not in ("of", "the", "and", "for"))
    capitals = [word[0] if word[0].isupper() else "" for word in found]
    return {
        "".join(capitals[begin : begin + length])
        for begin in range(len(capitals))
        for length in range(2, 7)
        if all(capitals[begin : begin + length])
    }
