"""A page, parsed."""

from html.parser import HTMLParser


class Read(HTMLParser):
    """The elements of a page, and the text of the JSON that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.data = ""
        self._is_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._is_data = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        self.data += data if self._is_data else ""

    def handle_endtag(self, tag: str) -> None:
        self._is_data = False


def read(page: bytes) -> Read:
    """A page, parsed."""
    found = Read()
    found.feed(page.decode())
    return found
