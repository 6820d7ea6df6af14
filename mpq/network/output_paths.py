"""Where tensors are in what a network returns: ``boxes.xy``, ``0.boxes``, ``*.boxes``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

EVERY: Final = "*"
"""The step of a path that goes over the images of a list: ``*.boxes``."""
_MOST_SHOWN: Final = 12


def found_at(output: Any, path: str) -> Any:
    """What lies at a path: behind ``*`` a list of it, an entry for each image.

    Args:
        output: What a network returned.
        path: Keys, attributes and indices, joined by dots; at most one step is ``*``.

    Returns:
        ``None`` where there is no such path.
    """
    before, _, after = path.partition(EVERY)
    if not _has_every(path):
        return _at(output, path)
    images = _at(output, before.removesuffix("."))
    if not isinstance(images, tuple | list) or not images:
        return None
    found = [_at(image, after.removeprefix(".")) for image in images]
    return None if any(value is None for value in found) else found


def tensor_outputs(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors in a network's output, with their paths."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
        return
    for name, value in _items(output):
        yield from tensor_outputs(value, f"{path}.{name}" if path else str(name))


def paths_of(output: Any, path: str = "") -> tuple[str, ...]:
    """Paths of all floating-point tensors, as ``--outputs`` takes them, each once.

    Lists of dicts with the same keys have one path over all of them: ``*.boxes``.
    """
    if isinstance(output, Tensor):
        return (path,) if output.is_floating_point() else ()
    items = _items(output)
    # A path has one such step, so that lists in lists are shown by their places.
    if _is_of_images(output) and not _has_every(path):
        items = [(EVERY, image) for image in output]
    found = (p for name, x in items for p in paths_of(x, f"{path}.{name}" if path else str(name)))
    return tuple(dict.fromkeys(found))


def shown_paths(paths: Sequence[str]) -> str:
    """Paths for people, of very many the first ones."""
    told = ", ".join(path or "the output itself" for path in paths[:_MOST_SHOWN])
    more = len(paths) - _MOST_SHOWN
    return f"{told} and {more} more" if more > 0 else told


def how_to_score(output: Any) -> str:
    """What to write to have some of the outputs compared, for people; empty: there are none.

    Args:
        output: What a network returned.
    """
    paths = [path for path in paths_of(output) if path]
    if not paths:
        return ""
    few = ",".join(paths[:2])
    return (
        f"it has the outputs {shown_paths(paths)}; name those that count, each with a metric "
        f"where it needs another one (--outputs '{few}'; in Python "
        f"metric='outputs:terms={few.replace(',', '+')}')"
    )


def _has_every(path: str) -> bool:
    return EVERY in path.split(".")


def _is_of_images(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not value:
        return False
    if not all(isinstance(image, Mapping) for image in value):
        return False
    return len({frozenset(image) for image in value}) == 1


def _items(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, tuple | list):
        return enumerate(output)
    return vars(output).items() if hasattr(output, "__dict__") else ()


def _at(value: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        value = _step(value, step)
    return value


def _step(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step)
    if step.isdigit() and isinstance(value, tuple | list):
        return value[int(step)] if int(step) < len(value) else None
    return getattr(value, step, None)
