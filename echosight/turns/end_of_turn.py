"""Whether a user who pauses has finished the turn, by the last word of the transcript so far."""

from __future__ import annotations

import re

_NON_FINAL_WORDS = {
    word
    for words in (
        "a an the my your his our their and or but because although if when while whose which as than of in into on at "
        "for from by to with about i we they let let's some very um uh uhm er erm hmm mhm",
        "der die das ein eine einen einem mein und oder aber weil wenn dass ich wir für mit von zu zum zur äh ähm",
        "le la les un une des du de et ou mais parce que qui dans avec pour sur je il elle nous mon son ce cette euh",
        "el los las una unos de del y o pero porque que con por para en su mi este",
    )
    for word in words.split()
}
"""Words of English, German, French and Spanish that cannot end a sentence."""

_FINAL_PUNCTUATION = re.compile(r"[.!?。！？]['\"”’)»]*$")
_NON_FINAL_PUNCTUATION = re.compile(r"(\.\.\.|[…,;:–—-])['\"”’)»]*$")


def is_end_of_turn(text: str) -> bool:
    """False after a comma, an ellipsis or a word that cannot end a sentence. True otherwise, also for empty text."""
    text = text.strip()
    if not text:
        return True
    if _NON_FINAL_PUNCTUATION.search(text):
        return False
    if _FINAL_PUNCTUATION.search(text):
        return True
    return text.split()[-1].lower().strip("'\"") not in _NON_FINAL_WORDS
