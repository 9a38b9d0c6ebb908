"""Symbols and their numbers."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

PAD, START, END = 0, 1, 2
UNKNOWN = 3  # of the kinds that have one: what the text that they were fitted to did not hold
REPLACEMENT = "\ufffd"


def normalized(text: str, lowercase: bool = False) -> str:
    """The text in Unicode's form NFC, lower-cased first where asked; half of a surrogate pair, in no file, is U+FFFD."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # whole pairs become their character
    return unicodedata.normalize("NFC", text.lower() if lowercase else text)


def up_to_end(numbers: Iterable[int], size: int) -> Iterator[int]:
    """The numbers before the end symbol, without padding and start.

    Raises:
      ValueError: a number that is not from 0 to below `size`.
    """
    for number in map(int, numbers):
        if not 0 <= number < size:
            raise ValueError(f"ids: expected 0 to {size - 1}, got {number}")
        if number == END:
            return
        if number > END:
            yield number


class Characters:
    """A vocabulary of single characters; 0, 1 and 2 are padding, start and end.

    Raises:
      ValueError: an empty alphabet, or a character twice.
    """

    def __init__(self, alphabet: str):
        if not alphabet:
            raise ValueError("alphabet: expected at least one character, got none")
        if len(set(alphabet)) != len(alphabet):
            twice = next(character for character in alphabet if alphabet.count(character) > 1)
            raise ValueError(f"alphabet: expected each character once, got {twice!r} twice")
        self.alphabet = alphabet
        self._number = {character: number for number, character in enumerate(alphabet, start=END + 1)}

    def __len__(self) -> int:
        return END + 1 + len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """The numbers of the characters of `text`.

        Raises:
          ValueError: a character that is not in the alphabet.
        """
        try:
            return [self._number[character] for character in text]
        except KeyError as error:
            raise ValueError(f"text: expected characters of {self.alphabet!r}, got {error.args[0]!r} in {text!r}") from None

    def decode(self, numbers: Iterable[int]) -> str:
        """The characters of `numbers` up to the end symbol; padding and start are left out."""
        text = []
        for number in numbers:
            if number == END:
                break
            if number > END:
                text.append(self.alphabet[number - END - 1])
        return "".join(text)

    def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers [B, length], padded on the right, and how many of each row are valid [B].

        Raises:
          ValueError: a text longer than `length`, or with a character that is not in the alphabet.
        """
        numbers = np.full((len(texts), length), PAD, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            encoded = self.encode(text)
            if len(encoded) > length:
                raise ValueError(f"texts[{row}]: expected at most {length} characters, got {len(encoded)}: {text!r}")
            numbers[row, : len(encoded)] = encoded
            lengths[row] = len(encoded)
        return numbers, lengths


class Bytes:
    """The bytes of UTF-8, 3 to 258; 0, 1 and 2 are padding, start and end. No text of any script is outside of it."""

    def __len__(self) -> int:
        return END + 1 + 256

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the bytes of `text`, int32 [bytes].

        Raises:
          ValueError: half of a surrogate pair, which UTF-8 has no bytes for.
        """
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + (END + 1)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of `numbers` up to the end symbol, without padding and start; bytes that make no character are U+FFFD."""
        kept = bytearray()
        for number in numbers:
            if number == END:
                break
            if number > END:
                kept.append(number - END - 1)
        return kept.decode("utf-8", errors="replace")
