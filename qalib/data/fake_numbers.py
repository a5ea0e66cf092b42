"""Numbers and dates, in digits and in words, moved to other ones of the same form.

    1915 -> 1932    25 million -> 64 million    19th -> 8th    May 5 -> October 17    three -> five

The fakes of the two splits never meet: the last digit that is not 0 is odd in "train" and even in
"test", and words are drawn from every other place of their list.
"""

import random
import re

PARITY = {"train": 1, "test": 0}
LATEST_YEAR = 2024
MOST_DIGITS = 12
LISTS = tuple(
    row.split()
    for row in (
        "one two three four five six seven eight nine",
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
        "second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth",
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "II III IV V VI VII VIII IX XI XII XIV XV XVI XVII",
        "half quarter",
    )
)
MONTHS = frozenset(LISTS[4])
_FORM = re.compile(r"(\D*?)(\d[\d,]*(?:\.\d+)?)(.*)", re.DOTALL)


def alter_number(token: str, rng: random.Random, split: str) -> str | None:
    """Another number of the same form ("$5.2bn" -> "$7.4bn"), or None if it is no number."""
    for words in LISTS:
        proper = words[0][0].isupper()
        spelled = token if proper else token.lower()
        if spelled in words:
            options = [word for word in words[PARITY[split] :: 2] if word != spelled]
            word = rng.choice(options) if options else None
            return word.capitalize() if word and not proper and token[0].isupper() else word
    form = _FORM.fullmatch(token)
    if not form or len(re.findall(r"\d", token)) > MOST_DIGITS:
        return None
    before, digits, behind = form.groups()
    if behind in ("s", "'s") and len(digits) == 4:  # a decade
        return before + _year(digits[:3], rng, PARITY[split], 4) + "0" + behind
    other = _digits(digits, rng, PARITY[split])
    if behind[:2] in ("st", "nd", "rd", "th"):
        behind = _ordinal(int(re.sub(r"\D", "", other))) + behind[2:]
    parts = re.split(r"(\d+)", behind)  # "1914-18", "4:30": every number moves
    parts[1::2] = [_digits(part, rng, PARITY[split]) for part in parts[1::2]]
    return before + other + "".join(parts)


def alter_numbers(text: str, rng: random.Random, split: str) -> str | None:
    """``text`` with every number in it moved; None if there is none."""
    found = False
    tokens = re.split(r"(\s+|(?<=[a-z])-(?=[a-z])|(?<=\d)[-–](?=\d))", text)
    for i, token in enumerate(tokens):
        core = token.strip("()\"'“”,.;:")
        other = alter_number(core, rng, split) if core else None
        if other is not None:
            found = True
            tokens[i] = token.replace(core, other, 1)
    return "".join(tokens) if found else None


def has_number(text: str) -> bool:
    """Whether ``text`` holds something that :func:`alter_numbers` moves."""
    return alter_numbers(text, random.Random(0), "test") is not None


def _digits(digits: str, rng: random.Random, parity: int) -> str:
    """Another number with as many digits and the same zeros at its end, of the right parity.

    A year stays within 40 years, and what may be a day or a minute stays one.
    """
    plain = re.sub(r"\D", "", digits)
    if len(digits) == 4 and digits.isdigit() and 1000 <= int(digits) <= LATEST_YEAR:
        return _year(digits, rng, parity, 40)
    kept = plain.rstrip("0") or plain
    low, high = 10 ** (len(kept) - 1), 10 ** len(kept) - 1
    if len(plain) == 2 and int(plain) < 60:
        high = {1: 5, 2: 28 if int(plain) <= 31 else 59}[len(kept)]
    made = kept
    while made == kept or int(made[-1]) % 2 != parity or made[-1] == "0":
        made = str(rng.randint(low, high))
    source = iter(made + plain[len(kept) :])
    return "".join(mark if mark in ",." else next(source) for mark in digits)


def _year(digits: str, rng: random.Random, parity: int, reach: int) -> str:
    """A number at most about ``reach`` away whose last digit is not 0 and has the parity."""
    value = made = int(digits)
    latest = max(int(str(LATEST_YEAR)[: len(digits)]), value)
    while made == value or made % 10 == 0 or made % 2 != parity or made > latest:
        made = value + rng.randint(-reach, reach)
    return str(made)


def _ordinal(value: int) -> str:
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
