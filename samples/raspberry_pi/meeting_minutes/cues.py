"""Decisions and action items, found in a transcript's own sentences by their wording.

No model is asked: a sentence counts when it has one of the phrases below, in English, or some of them in German,
French and Chinese. So nothing is made up, each find is a quotation that can be checked, and what is worded in another
way is missed. What is denied ("we have not decided") or asked about is no decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """What an action item's sentence says. ``who``: "" where it does not say; ``due``: "" where it names no day."""

    who: str
    what: str
    due: str


_DECISIONS = re.compile(
    r"""
    ^\W*(?:decision|decided|resolved|beschluss|beschlossen|décision|决定|决议)\s?[:：]
    |\bwe(?:'ve|’ve|\ have|\ all)?\s(?:just\s|now\s|finally\s|all\s)?
        (?:decided|agreed|resolved|settled\son|voted|approved)\b
    |\bit\s(?:is|was|has\sbeen)\s(?:hereby\s)?(?:decided|agreed|resolved)\b
    |\b(?:motion|proposal|budget|plan|request|offer)\s(?:is|was|has\sbeen)\s
        (?:approved|accepted|carried|passed|rejected)\b
    |\b(?:let's|let’s|let\sus|we'll|we’ll|we\swill|we're|we’re|we\sare)\s(?:going\sto\s)?go(?:ing)?\swith\b
    |\b(?:that's|that’s|that\sis|it's|it’s)\s(?:decided|agreed|settled|a\sdeal)\b
    |\bthe\s(?:final\s)?decision\sis\b
    |\bwir\shaben\s(?:\w+\s){0,8}?(?:beschlossen|entschieden|uns\s(?:\w+\s){0,6}?geeinigt|vereinbart)\b
    |\b(?:es\s(?:wurde|ist)|wird)\s(?:\w+\s){0,6}?(?:beschlossen|entschieden|vereinbart)\b
    |\bwir\seinigen\suns\s(?:auf|darauf)\b|\bdas\sist\s(?:beschlossen|abgemacht)\b
    |\b(?:nous\savons|on\sa)\s(?:\w+\s)?(?:décidé|convenu|approuvé|voté)\b|\b(?:c'est|c’est|il\sest)\sdécidé\b
    |我们(?:\w{0,4})?(?:决定|同意|通过了|批准|确定了|达成一致)|一致(?:同意|通过)|会议决定
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|nicht|noch|pas|jamais)|n['’]t)\b(?:\s\w+){0,3}?\s(?:yet\s)?"
    r"(?:decide|decided|agree|agreed|resolved|approved|settled|beschlossen|entschieden|geeinigt|vereinbart|décidé|convenu)"
    r"|(?:没有|还没|未|不)(?:决定|同意|通过|批准|确定)",
    re.IGNORECASE,
)

_NAME = r"[^\W\d_a-z][\w'’-]*(?:\s[^\W\d_a-z][\w'’-]*){0,2}"
_NO_NAMES_WORDS = (
    "i you he she it we they this that there who what which and but so then if also maybe someone nobody everyone "
    "ok okay right well yes no ich du er sie es wir das ja gut je tu il elle nous vous on ce oui alors"
)
_NO_NAMES = frozenset(_NO_NAMES_WORDS.split())
# Who says or is said to, then what. ``name``, ``self``, ``we`` and ``you`` tell who.
_TASKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i:^\W*(?:action(?: item)?s?|to-?dos?|aufgabe|tâche|行动项|待办)\s?[:：])\s*"
        rf"(?:(?P<name>{_NAME})(?: to | will |: ))?(?P<what>.+)",
        rf"^\W*(?:\w+\W+){{0,2}}?(?P<name>{_NAME}),\s(?:please|(?:can|could|would|will) you(?: please)?)\s(?P<what>.+)",
        rf"(?i:\b(?:can|could|would|will) you(?: please)?)\s(?P<what>.+?),\s(?P<name>{_NAME})\s?\?$",
        rf"\b(?P<name>{_NAME}) (?:will|is going to|has to|needs to|is to|should|agreed to|volunteered to)"
        r"\s(?P<what>.+)",
        rf"(?i:^\W*(?:\w+\W+){{0,2}}?please)\s(?P<what>.+?),\s(?P<name>{_NAME})\s?[.!]?$",
        r"(?P<self>\bI(?:'ll|’ll| will|(?:'m|’m| am) going to| need to| have to))\s(?P<what>.+)",
        r"(?P<self>\bI can)\s(?P<what>take .+)",
        r"(?i:\b(?:can|could|would|will) (?P<you>you)(?: please)?)\s(?P<what>.+)",
        r"(?i:\b(?:somebody|someone) (?:has to|needs to|must|should))\s(?P<what>.+)",
        r"(?i:(?P<we>\bwe)(?: need to| have to| must|['’]ll have to|['’]ll| will))\s(?P<what>.+)",
        rf"^\W*(?P<name>{_NAME}),\s(?:kannst|könntest|würdest) du (?P<what>.+)",
        rf"\b(?P<name>{_NAME}) (?:wird|soll|muss|kümmert sich um|übernimmt)\s(?P<what>.+)",
        r"(?P<self>\b[Ii]ch (?:werde|kümmere mich um|übernehme|muss))\s(?P<what>.+)",
        r"(?P<we>\b[Ww]ir) (?:müssen)\s(?P<what>.+)",
        rf"^\W*(?P<name>{_NAME}),\s(?:peux-tu|pourrais-tu|pouvez-vous|pourriez-vous|tu peux)\s(?P<what>.+)",
        rf"\b(?P<name>{_NAME}) (?:va|doit|se charge de|s'occupe de|s’occupe de)\s(?P<what>.+)",
        r"(?P<self>\b[Jj]e (?:vais|dois|me charge de|m'occupe de|m’occupe de))\s(?P<what>.+)",
        r"(?P<we>\b(?:[Nn]ous devons|[Oo]n doit|[Ii]l faut))\s(?P<what>.+)",
        r"由(?P<name>\w{1,4}?)(?:来)?(?P<what>负责.*)",
        r"(?P<name>[\u4e00-\u9fff]{2,3})，?请(?:你|您)?(?P<what>.{2,})",
        r"(?P<self>我)(?:来|会|去|负责)(?P<what>.{2,})",
        r"(?P<we>我们)(?:需要|必须|得)(?P<what>.{2,})",
    )
)
_IDLE_WORDS = (
    "be have see say think guess suppose admit repeat stop wait begin start just let leave share hear tell try believe "
    "agree keep never not know like love miss also probably maybe hand move go come sagen sein haben dire être avoir"
)
_IDLE = frozenset(_IDLE_WORDS.split())
_NEVER_WORDS = "be have see hear say think know like love agree repeat wait not never sein haben être avoir"
_NEVER = frozenset(_NEVER_WORDS.split())
_WORK_WORDS = (
    "send prepare check write update call book order draft review schedule organise organize arrange fix add create "
    "forward upload finish ask find contact sign print buy test invite collect share post document translate pay"
)
_WORK = frozenset(_WORK_WORDS.split())
_SELF = re.compile(r"^(?:please|then|now|also|definitely|certainly|gladly|happily|quickly)\s", re.IGNORECASE)

_DAYS = (
    "monday|tuesday|wednesday|thursday|friday|saturday|sunday|montag|dienstag|mittwoch|donnerstag|freitag|samstag|"
    "sonntag|lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche"
)
_MONTHS = (
    "january|february|march|april|may|june|july|august|september|october|november|december|januar|februar|märz|mai|juni|"
    "juli|oktober|dezember|janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre"
)
_DATE = (
    rf"(?:(?:the\s)?\d{{1,2}}(?:st|nd|rd|th|\.|er)?\s(?:of\s)?(?:{_MONTHS})|(?:{_MONTHS})\s\d{{1,2}}(?:st|nd|rd|th)?\b"
    r"|\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}\.?(?:\d{2,4})?)"
)
_TIME = r"(?:noon|midnight|\d{1,2}(?::\d\d)?\s?(?:am|pm|o'clock|uhr)\b|\d{1,2}[:h]\d\d)"
_WHEN = (
    rf"(?:(?:next\s|this\s|the\s|coming\s)?(?:{_DAYS})(?:\s(?:morning|afternoon|evening|noon|night))?|"
    r"tomorrow(?:\s\w+ing)?|today|tonight|(?:the\s)?end\sof\s(?:the\s|this\s|next\s)?"
    r"(?:day|week|month|quarter|year|business)|"
    rf"(?:next|this)\s(?:week|month|quarter|year|meeting|sprint)|the\snext\smeeting|{_DATE}|{_TIME}|eod|eow|cob|"
    rf"(?:{_MONTHS}))"
)
_DUE = re.compile(
    rf"\b(?:(?:by|until|till|before|no\slater\sthan|due|on|for|at)\s{_WHEN}(?:\s(?:at\s)?{_TIME})?"
    rf"|(?:in|within)\s(?:the\snext\s)?(?:a|one|two|three|four|five|six|\d{{1,2}})\s(?:days?|weeks?|months?|hours?)"
    rf"|tomorrow|tonight|(?:next|this)\s(?:week|month)|this\s(?:morning|afternoon|evening)|as\ssoon\sas\spossible|asap|right\saway|first\sthing"
    rf"|(?:bis|vor|am)\s(?:spätestens\s|zum\s|nächste[nrm]?\s|kommende[nrm]?\s)?(?:{_DAYS}|{_DATE}|morgen|heute|"
    r"ende\s(?:der\swoche|des\smonats|des\sjahres)|woche|monat)|nächste\swoche|nächsten\smonat"
    rf"|(?:d'ici|d’ici|avant|pour|au\splus\stard)\s(?:le\s|la\s|à\s)?(?:{_DAYS}|{_DATE}|demain|"
    r"fin\s(?:de\s(?:la\s)?semaine|du\smois)|semaine\sprochaine)|demain|la\ssemaine\sprochaine)"
    r"(?!\w)|(?:在|于)?(?:今天|明天|后天|本周|这周|下周|周|星期|本月|下个?月|月底|年底|\d{1,2}月\d{1,2}[日号])[一二三四五六日天末内]?"
    r"(?:之前|以前|前|内)?",
    re.IGNORECASE,
)
_REASONS = re.compile(r",\s(?:so|because|since|as|otherwise|damit|weil|sonst|parce|car)\b", re.IGNORECASE)
_EDGES = " \t,.;:!?–—-，。；：！？"


def is_decision(sentence: str) -> bool:
    """Whether the sentence is worded as a decision."""
    if sentence.rstrip("\"'”’» ").endswith(("?", "？")) or _DENIED.search(sentence):
        return False
    return _DECISIONS.search(sentence) is not None


def find_task(sentence: str, speaker: str) -> Task | None:
    """The task that a sentence hands out or takes on, or None.

    Args:
        sentence: one sentence.
        speaker: who says it; who says "I" takes the task.
    """
    for pattern in _TASKS:
        match = pattern.search(sentence)
        if match is None:
            continue
        groups = match.groupdict()
        name = (groups.get("name") or "").strip()
        while name and name.split()[0].casefold() in _NO_NAMES:
            name = name.partition(" ")[2]
        if groups.get("name") and not name:
            continue
        what = _SELF.sub("", match["what"].strip())
        first = re.match(r"[\w'’]+", what)
        if first is None or first[0].casefold() in (_NEVER if groups.get("name") else _IDLE):
            continue
        due = _DUE.search(sentence)
        if due is None and (groups.get("we") or (groups.get("you") and first[0].casefold() not in _WORK)):
            continue  # "could you say that again", "we need to talk": without a day mostly small talk
        said = due[0].strip(_EDGES) if due is not None else ""
        return Task(name or (speaker if groups.get("self") else ""), _without(what, said), said)
    return None


def _without(what: str, due: str) -> str:
    """What is to be done, without reasons, and without the day where that comes first or last."""
    what = _REASONS.split(what.strip(_EDGES), maxsplit=1)[0].strip(_EDGES)
    if due and what.casefold().endswith(due.casefold()):
        what = what[: -len(due)].strip(_EDGES)
    elif due and what.casefold().startswith(due.casefold()):
        what = what[len(due) :].strip(_EDGES)
    return what or due
