"""Where sentences begin: a rule over characters, not a parser."""

import re

END = re.compile(r"[.!?][\"'”’)\]]*\s+|\s*\n\s*")  # with the space that follows
OPENING = "\"'“\u2018(["
ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:[^\W\d_]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Maj|Rev|Hon|Gov|Sen|Rep|"
    r"Pres|Mt|Ft|No|Nos|Vol|Fig|Eq|Ch|pp|vs|cf|ca|approx|Inc|Ltd|Co|Corp|Bros|Univ|Dept|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)
LONGEST_ABBREVIATION = 8  # characters before a full stop that have to be looked at


def sentence_starts(text: str) -> list[int]:
    """Characters at which sentences begin; the first is 0.

    A sentence ends at a line break, and at . ! or ? before a space and then a capital, a digit or
    a quotation mark or bracket - unless the full stop belongs to an initial ("J. Smith", "U.S.")
    or a common abbreviation. It errs now and then, so what is built on it must bear that.
    """
    starts = [0]
    for match in END.finditer(text):
        at = match.end()
        if at < len(text) and ("\n" in match[0] or _ends(text, match.start(), at)):
            starts.append(at)
    return starts


def _ends(text: str, stop: int, following: int) -> bool:
    """Whether the mark at ``stop`` ends a sentence; ``following`` is the next character."""
    character = text[following]
    if not (character.isupper() or character.isdigit() or character in OPENING):
        return False
    before = text[max(0, stop - LONGEST_ABBREVIATION) : stop + 1]
    return not (text[stop + 1].isspace() and ABBREVIATION.search(before))
