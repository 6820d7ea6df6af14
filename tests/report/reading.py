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


class Tables(HTMLParser):
    """The tables of a page: caption to rows, of which each has its cells' texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._caption: str | None = None
        self._rows: list[list[str]] = []
        self._is_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._rows, self._caption = [], None
        elif tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._rows.append([])
        # The end of a cell may be left out: the next one ends it.
        self._is_cell = tag in ("td", "th") or (self._is_cell and tag != "tr")
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption" and self._caption is not None:
            self.found[" ".join(self._caption.split())] = self._rows
            self._caption = None
        elif tag in ("td", "th", "tr", "table"):
            self._is_cell = False

    def handle_data(self, data: str) -> None:
        if self._caption is not None:
            self._caption += data
        elif self._is_cell:
            self._rows[-1][-1] += data


def tables(page: bytes) -> dict[str, list[list[str]]]:
    """The tables of a page: caption to rows of texts, the headings first."""
    found = Tables()
    found.feed(page.decode())
    return {
        caption: [[" ".join(cell.split()) for cell in row] for row in rows]
        for caption, rows in found.found.items()
    }
