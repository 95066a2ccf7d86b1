"""The programs of a page in Markdown, each followed by what it prints."""

import re
from typing import Any

import numpy as np

NUMBER = r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?"


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def programs_of(text: str) -> list[tuple[str, str]]:
    """(code, what stands below it) of every program in Python that is followed by its output."""
    return re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def check(name: str, code: str, printed: str, capsys: Any) -> None:
    """Run a program, and compare what it prints; of numbers only the first digits."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        exec(compile(code, name, "exec"), {})
    words, numbers = words_and_numbers(capsys.readouterr().out)
    expected_words, expected_numbers = words_and_numbers(printed)
    assert words == expected_words
    # A training differs in its last digits from machine to machine.
    np.testing.assert_allclose(numbers, expected_numbers, rtol=0.02, atol=0.02)


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """The words of a text, with a placeholder for each number, and the numbers."""
    found = [float(x.replace(",", "")) for x in re.findall(NUMBER, text)]
    return re.sub(NUMBER, "#", text).split(), found
