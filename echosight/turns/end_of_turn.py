"""Whether somebody who pauses sounds finished, judged by the last word of what was understood."""

from __future__ import annotations

import re

_GOES_ON = {
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
"""Words of English, German, French and Spanish that nobody ends on."""

_TERMINAL = re.compile(r"[.!?。！？]['\"”’)»]*$")
_OPEN = re.compile(r"(\.\.\.|[…,;:–—-])['\"”’)»]*$")


def is_end_of_turn(text: str) -> bool:
    """A last word that wants another one, a comma or an ellipsis say no; nothing understood says nothing, so yes."""
    text = text.strip()
    if not text:
        return True
    if _OPEN.search(text):
        return False
    if _TERMINAL.search(text):
        return True
    return text.split()[-1].lower().strip("'\"") not in _GOES_ON
