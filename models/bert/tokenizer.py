"""WordPiece (Schuster and Nakajima, ICASSP 2012) as BERT's uncased models use it: text to token numbers.

1. Control characters go, white space becomes a blank, Chinese characters stand alone.
2. Words are lower-cased and lose their accents (NFD, category Mn); every punctuation mark is a word.
3. Of each word the longest known beginning is taken, then the longest known continuation (``##…``) of the
   rest, and so on; a word that cannot be covered this way is ``[UNK]`` as a whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import DataError

Numbers = npt.NDArray[np.int32]

PAD, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
#: A longer word is unknown.
LONGEST = 100
#: Blocks of CJK ideographs.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class Tokenizer:
    """Splits sentences by a vocabulary, a token a line, whose line number is its number.

    Raises:
        DataError: The vocabulary lacks one of the tokens that every sentence needs.
    """

    def __init__(self, vocabulary: Sequence[str], *, where: str = "vocabulary") -> None:
        self.numbers = {token: number for number, token in enumerate(vocabulary)}
        missing = [token for token in (PAD, UNKNOWN, FIRST, LAST) if token not in self.numbers]
        if missing:
            raise DataError(f"the vocabulary lacks {', '.join(missing)}", where=where)

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """From a vocabulary file, UTF-8."""
        return cls(path.read_text(encoding="utf-8").splitlines(), where=str(path))

    def split(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [token for word in words(text) for token in self._pieces(word)]

    def encode(self, texts: Sequence[str], length: int | None = None) -> tuple[Numbers, Numbers]:
        """Token numbers and mask, int32 [N, length], of texts between ``[CLS]`` and ``[SEP]``.

        What exceeds ``length`` is cut, what is missing is padding, whose mask is 0. Without a length, that of
        the longest text.
        """
        rows = [[self.numbers[t] for t in (FIRST, *self.split(text))] for text in texts]
        length = length or max((len(row) for row in rows), default=1) + 1
        tokens = np.full((len(rows), length), self.numbers[PAD], np.int32)
        mask = np.zeros_like(tokens)
        for index, row in enumerate(rows):
            cut = [*row[: length - 1], self.numbers[LAST]]
            tokens[index, : len(cut)], mask[index, : len(cut)] = cut, 1
        return tokens, mask

    def _pieces(self, word: str) -> list[str]:
        if len(word) > LONGEST:
            return [UNKNOWN]
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self.numbers:
                    break
            else:
                return [UNKNOWN]
            found.append(prefix + word[start:end])
            start = end
        return found


def words(text: str) -> Iterator[str]:
    """Lower-case words and punctuation marks of a text, without accents."""
    plain = unicodedata.normalize("NFD", "".join(_spaced(c) for c in text).lower())
    for chunk in plain.split():
        word = ""
        for character in chunk:
            if unicodedata.category(character) == "Mn":
                continue
            if _is_punctuation(character):
                if word:
                    yield word
                yield character
                word = ""
            else:
                word += character
        if word:
            yield word


def _spaced(character: str) -> str:
    code = ord(character)
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(character).startswith("C"):
        return ""
    if any(low <= code <= high for low, high in _CHINESE):
        return f" {character} "
    return character


def _is_punctuation(character: str) -> bool:
    # Marks of ASCII such as $ and ^, which Unicode calls symbols, count too.
    return character in _ASCII_MARKS or unicodedata.category(character).startswith("P")


_ASCII_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
