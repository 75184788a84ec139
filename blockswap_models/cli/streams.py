"""Text for streams in encodings that lack some of its letters.

This module needs the standard library only.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import TextIO

__all__ = ["make_writable"]

# For letters that do not decompose into plain ones.
_PLAIN = {"±": "+-", "×": "x", "β": "beta", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'"}
_NAME = "blockswap_models.plain"


def make_writable(*streams: TextIO) -> None:
    """Makes streams replace letters that their encoding lacks by plain ones, instead of raising an error.

    Args:
        streams: Standard output and standard error by default; other kinds of streams are not changed.
    """
    codecs.register_error(_NAME, _plain)
    for stream in streams or (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_NAME)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replaces letters that an encoding lacks, for its encoder."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letters, error.object[error.start : error.end])), error.end


def _letters(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _PLAIN.get(letter) or plain or "?"
