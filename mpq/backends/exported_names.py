"""Names of modules that torch cannot export: it writes them into Python as they are."""

from collections.abc import Iterable
from keyword import iskeyword

from torch import nn


def why_unwritable(errors: Iterable[BaseException], root: nn.Module) -> str:
    """The sentence for a name that ends its own text, or is a word of Python's.

    Args:
        errors: What torch's export raised, with what it was caused by.
        root: The module that was exported.

    Returns:
        Empty where the errors come of something else.
    """
    if not any(isinstance(error, SyntaxError | ValueError) for error in errors):
        return ""
    names = (n for n, _ in root.named_modules() if any(map(_is_unwritable, n.split("."))))
    name = next(names, None)
    if name is None:
        return ""
    return (
        f"torch writes the names of modules into a program as they are, and {name!r} is none that "
        "can be written (a quote, a line's end, a backslash at the end, a word of Python's such as "
        "class): give it another name"
    )


def _is_unwritable(name: str) -> bool:
    # As torch writes it: behind a point where it could be an attribute, else between double quotes.
    if iskeyword(name):
        return True
    try:
        compile(f'"{name}"', "name", "eval")
    except (SyntaxError, ValueError):
        return True
    return False
