"""XML as elements with their places, read as hostile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from .forms import MAX_DEPTH, MAX_LENGTH, ParseError

MAX_ELEMENTS = 1 << 20
"""Elements of a document at most."""


@dataclass
class Element:
    """An element with its place in the text, from 1."""

    tag: str
    attributes: dict[str, str]
    line: int
    column: int
    children: list[Element] = field(default_factory=list)

    def error(self, message: str, hint: str) -> ParseError:
        """An error at this element."""
        return ParseError(message, self.line, self.column, hint)


def parse(text: str) -> Element:
    """The elements of a document. Refuses document types and entities, and what is too long, too deep or too much."""
    parser = expat.ParserCreate("utf-8")
    open_: list[Element] = []
    top: list[Element] = []
    count = 0

    def error(message: str, hint: str) -> ParseError:
        return ParseError(message, parser.CurrentLineNumber, parser.CurrentColumnNumber + 1, hint)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS:
            raise error(f"the document has more than {MAX_ELEMENTS} elements", "split it")
        if len(open_) > MAX_DEPTH + 1:
            raise error(f"the tree is deeper than {MAX_DEPTH} levels", "flatten it")
        element = Element(tag, attributes, parser.CurrentLineNumber, parser.CurrentColumnNumber + 1)
        (open_[-1].children if open_ else top).append(element)
        open_.append(element)

    def characters(data: str) -> None:
        if data.strip():
            raise error(f"text {data.strip()[:20]!r} between the elements", "write attributes")

    def refuse(*_: Any) -> None:
        raise error("a document type or an entity", "remove <!DOCTYPE ...> and <!ENTITY ...>")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    if len(text) > MAX_LENGTH:
        raise ParseError(f"the text is longer than {MAX_LENGTH} characters", 1, 1, "split it into several trees")
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as e:
        raise ParseError(expat.ErrorString(e.code), e.lineno, e.offset + 1, "write well-formed XML") from None
    except UnicodeEncodeError as e:
        raise ParseError(f"character {text[e.start]!r}", 1, 1, "write valid Unicode") from None
    return top[0]
