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
        # The second is what Python uses in the locales C and POSIX.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_NAME)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replaces letters that an encoding lacks, for its encoder; bytes of a file's name that are no letters stay."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    if not any(map(_is_byte, letters)):
        return "".join(map(_letters, letters)), error.end
    return b"".join(bytes([ord(each) - 0xDC00]) if _is_byte(each) else _letters(each).encode() for each in letters), (
        error.end
    )


def _is_byte(letter: str) -> bool:
    """Whether this stands for a byte that could not be decoded, as Python has it in names of files."""
    return "\udc80" <= letter <= "\udcff"


def _letters(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _PLAIN.get(letter) or plain or "?"
