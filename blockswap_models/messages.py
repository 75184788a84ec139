"""Parts of messages: quoted text, numbers of things, and suggestions for mistyped names.

A message speaks of arguments as Python does, `num_classes=146`; the command line rewrites these as its options.

This module needs the standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile

__all__ = ["counted", "did_you_mean", "listed", "plural", "quote"]


def quote(text: object, limit: int = 200) -> str:
    """Quotes text on one line, shortened where it is very long."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 2]}…{shown[-1]}"


def listed(numbers: Iterable[object]) -> str:
    """Joins numbers or names: 3, 4, 6 and 3."""
    texts = [str(number) for number in numbers] or ["0"]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def plural(word: str) -> str:
    """Returns the plural of a regular noun: images, minibatches; and epochs, whose ch is spoken as a k."""
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) and word != "epoch" else "s")


def counted(number: int, word: str) -> str:
    """Writes a number of things: 1 epoch, 2 minibatches, 1,000 images."""
    return f"{number:,} {word if number == 1 else plural(word)}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Suggests the known name closest to a mistyped one, or returns `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=5)

    def likeness(other: str) -> tuple[float, int]:
        # Of names that are equally close, the one with the longest common start.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(other, name, strict=False))
        return difflib.SequenceMatcher(None, other, name).ratio(), sum(1 for _ in same)

    return f"did you mean {quote(max(close, key=likeness))}?" if close else otherwise
