"""Numbers with a unit: `5\\text{ cm}`, `\\$5`, `30^\\circ`, `10 km/h`, `72 dollars`.

A unit may be left out on either side. Where both write one it must be the same one, whatever its spelling; nothing is
converted, so that `50 mm` is not `5 cm`.
"""

from __future__ import annotations

import re

# name: its spellings. Plurals in -s need no entry of their own.
_SPELLINGS = """
km: kilometer kilometre kms; m: meter metre; cm: centimeter centimetre cms; mm: millimeter millimetre
mi: mile; yd: yard; ft: foot feet; in: inch inches; nm: nanometer
kg: kilogram kilo kgs; g: gram gm; mg: milligram; lb: pound lbs; oz: ounce
l: liter litre; ml: milliliter millilitre; gal: gallon
s: second sec secs; min: minute mins; h: hour hr hrs; day: ; week: wk; month: ; yr: year yrs
dollar: usd buck; cent: ; euro: eur; pound sterling: gbp; yuan: rmb; yen: jpy; rupee:
degree: deg; radian: rad; unit: ; hz: hertz; newton: ; joule: ; watt: ; volt: ; pascal: ; mol: mole
mph: ; kmh: kph kmph; person: people; man: men; woman: women; child: children
am: ; pm:
"""
_NAMES = {
    spelling: name.strip()
    for entry in re.split(r"[;\n]", _SPELLINGS.strip())
    for name, _, others in [entry.partition(":")]
    for spelling in [name.strip(), *others.split()]
}
_EXPANDED = {"mph": "mi/h", "kmh": "km/h"}
# Words after a number that are no unit: they change its value, or start another candidate.
_NO_UNIT = re.compile(
    r"\b(?:and|or|nor|not|but|versus|vs|maybe|plus|minus|times|over|to|by|mod|squared|cubed|if|is|no|none|wrong|false|incorrect|"
    r"percent|half|halves|(?:third|quarter|fourth|fifth|tenth|hundredth|thousandth|ten|dozen|score|hundred|thousand|"
    r"million|billion|trillion)s?|one|two|three|four|five|six|seven|eight|nine|eleven|twelve)\b",
    re.IGNORECASE,
)
_SIGNS = {"\\$": "dollar", "$": "dollar", "¢": "cent", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_WORD = r"(?:sq\.?|cu\.?|[A-Za-z]+)"
_POWER = r"(?:\s*\^\s*\{?[23]\}?)?"
_UNIT = re.compile(
    rf"(?P<number>.*[\d}})\]!]|.*(?<![A-Za-z])i|.*\\pi)(?P<gap>\s*)"
    rf"(?P<unit>{_WORD}(?:\s+{_WORD}){{0,3}}{_POWER}(?:\s*/\s*{_WORD}{_POWER})?)\.?",
    re.DOTALL,
)
_DEGREES = re.compile(r"(?P<number>.*\S)\s*\^\s*\{?\s*\\circ\s*\}?\s*(?P<scale>[CF]?)", re.DOTALL)
_NO_LETTERS = re.compile(r"(?:\\[A-Za-z]+|[^A-Za-z])*")
_NOUN = re.compile(r"[A-Za-z]{4,}|[^\Waeiou\d_][aeiou][a-z]")


def split_unit(text: str) -> tuple[str, str]:
    """The number and its unit's name ("" where there is none), of a text whose `\\text{…}` marks are gone.

    A word that is no known unit counts as one if it looks like a noun, so `72 clips` is 72 of something; `2xy` and
    `5m` are products, `5 m` and `5cm` are not.
    """
    if found := _DEGREES.fullmatch(text):
        return found["number"].strip(), "degree" + found["scale"]
    for sign, name in _SIGNS.items():
        number = text.removeprefix("-").lstrip()
        if number.startswith(sign):
            return ("-" if text.startswith("-") else "") + number.removeprefix(sign).strip(), name
        if text.endswith(sign):
            return text.removesuffix(sign).strip(), name
    found = _UNIT.fullmatch(text)
    if found is None or _NO_UNIT.search(found["unit"]):
        return text, ""
    words = re.findall(r"[A-Za-z]+", found["unit"])
    if not all(_known(w) or (found["gap"] and _NOUN.fullmatch(w)) for w in words):
        return text, ""
    if len(words[0]) == 1 and not (found["gap"] and _NO_LETTERS.fullmatch(found["number"])):
        return text, ""
    return found["number"].strip(), _canonical(found["unit"])


def same_unit(one: str, other: str) -> bool:
    """Whether two units agree: equal, or one of them left out, or a noun with more or fewer adjectives."""
    if not one or not other or one == other:
        return True
    words, others = set(one.split()), set(other.split())
    plain = not any(w in _NAMES.values() or not w.isalpha() for w in words | others)
    return plain and (words <= others or others <= words)


def _known(word: str) -> bool:
    return _singular(word) in _NAMES or word.lower() in {"square", "sq", "cubic", "cu", "per", "squared", "cubed"}


def _singular(word: str) -> str:
    word = word.lower()
    return word if word in _NAMES or len(word) < 3 or word.endswith("ss") else word.removesuffix("s")


def _canonical(unit: str) -> str:
    """`square centimeters` -> `cm^2`, `miles per hour` and `mph` -> `mi/h`."""
    unit = re.sub(r"\s+per\s+|\s*/\s*", " / ", re.sub(r"[{}\s.]+", " ", unit.lower()))
    power, out = "", []
    for word in unit.replace("^", " ^").replace("^ ", "^").split():
        if word in ("square", "sq", "cubic", "cu"):
            power = "^2" if word[0] == "s" else "^3"
        elif word[0] in "^/":
            out.append(word)
        else:
            name = _NAMES.get(_singular(word), _singular(word))
            out += [_EXPANDED.get(name, name) + power]
            power = ""
    return re.sub(r" (?=[\^/])|(?<=/) ", "", " ".join(out)) + power
