"""Whether an answer is right, without the answers: the code of a worksheet's first cell, run here and in a notebook.

A notebook has, for each answer, a salted hash of its rounded numbers. Everything below the line is copied into it.
"""

# ---
import hashlib
from typing import Any


def seal(salt: str, name: str, answer: Any, decimals: int) -> str:
    """A hash of the rounded numbers of an answer. It takes a moment on purpose: guessing must not be quick."""
    answer = plain(answer)
    digits = " ".join(str(round(float(number) * 10**decimals)) for number in numbers(answer))
    text = f"{[size for size in shape(answer) if size != 1]} {digits}"  # a row may stand for a column
    return hashlib.pbkdf2_hmac("sha256", text.encode(), f"{salt}/{name}".encode(), 20_000).hex()[:32]


def plain(answer: Any) -> Any:
    """An array or a tensor as lists; lists and numbers as they are."""
    return answer.tolist() if hasattr(answer, "tolist") else answer


def numbers(answer: Any) -> list[Any]:
    """The numbers of nested lists, row by row."""
    return [each for row in answer for each in numbers(row)] if isinstance(answer, (list, tuple)) else [answer]


def shape(answer: Any) -> list[int]:
    """How many rows and columns nested lists have."""
    return [len(answer), *shape(answer[0])] if isinstance(answer, (list, tuple)) and answer else []


def check(name: str, answer: Any) -> bool:
    """Whether the answer called `name` is right, when its numbers are rounded as the question says."""
    decimals, sealed = SEALS[name]
    if any(each is ... for each in numbers(plain(answer))):
        print(f"{name}: not answered yet")
        return False
    try:
        right = seal(SALT, name, answer, decimals) == sealed
    except (TypeError, ValueError, OverflowError):
        print(f"{name}: these are not numbers")
        return False
    print(f"{name}: {'right' if right else 'not right yet'}")
    return right


# ---
SALT: str = ""
SEALS: dict[str, tuple[int, str]] = {}
