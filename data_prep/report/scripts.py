"""The script that a caption is written in: a coarse, certain answer where a language would be a guess.

Of 4,000 captions of a real list, nearly all English, py3langid 0.4.0 called 30 % something else (292 Nigerian Pidgin,
99 Latin, 83 Central Bikol); at a probability of one half it decided on a quarter.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

NONE = "no letters"
_NAMES = {
    "CJK": "Chinese characters",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "KATAKANA-HIRAGANA": "Japanese",
    "HANGUL": "Korean",
}


def script(text: str) -> str:
    """Which script most letters are of: `Latin (ASCII)`, `Latin with accents`, `Cyrillic`, `Japanese`, ...

    Latin counts as accented when any Latin letter is outside ASCII; Chinese characters beside kana are Japanese.
    """
    letters = Counter(_script_of(character) for character in text if character.isalpha())
    if not letters:
        return NONE
    if letters["Japanese"] and letters["Japanese"] + letters["Chinese characters"] > letters.total() / 2:
        return "Japanese"
    most = max(letters, key=lambda name: letters[name])
    if most != "Latin":
        return most
    return "Latin (ASCII)" if all(c.isascii() for c in text if c.isalpha()) else "Latin with accents"


@lru_cache(maxsize=2**14)
def _script_of(character: str) -> str:
    first = unicodedata.name(character, "UNKNOWN").split()[0]
    return _NAMES.get(first, first.capitalize())
