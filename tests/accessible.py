"""What pages must have for those who do not see them, read from their text: the rules that need no browser."""

from collections import Counter
from html.parser import HTMLParser

# elements without content of their own
VOID = {"meta", "link", "img", "input", "br", "rect", "path", "line", "circle", "polyline"}
HEADINGS = ("h1", "h2", "h3", "h4")


class _Reader(HTMLParser):
    """Elements in their order, each with its attributes, the text in it, and the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, list[str], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        words: list[str] = []
        self.elements.append((tag, dict(attributes), words, [name for name, _, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attributes), words))

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes), [], [name for name, _, _ in self.open]))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, _, words in self.open:
            words.append(data)


def find_faults(text: str) -> list[str]:
    """What a page lacks, an entry for each place; empty if nothing."""
    elements = _Reader(text).elements
    # drawings have titles of their own
    tags = Counter(tag for tag, _, _, around in elements if "svg" not in around)
    faults = [f"{tag}: {tags[tag]} of them" for tag in ("html", "title", "main", "h1") if tags[tag] != 1]
    names = {attributes.get("name") for tag, attributes, *_ in elements if tag == "meta"}
    faults += ["no viewport"] * ("viewport" not in names)
    ids = Counter(attributes["id"] for _, attributes, *_ in elements if "id" in attributes)
    faults += [f"id {name} twice" for name, count in ids.items() if count > 1]
    level = 0
    for tag, attributes, words, around in elements:
        if tag in HEADINGS and "dialog" not in around:
            faults += [f"{tag} after h{level}"] * (int(tag[1]) > level + 1)
            level = int(tag[1])
        name = "".join(words).strip() or attributes.get("aria-label", "").strip()
        faults += [f"{tag}: {fault}: {attributes}" for fault in _faults(tag, attributes, name, around)]
    return faults


def _faults(tag: str, attributes: dict, name: str, around: list[str]) -> list[str]:
    named = bool(name) or "aria-labelledby" in attributes or attributes.get("aria-hidden") == "true"
    rules = {
        "no language": tag == "html" and not attributes.get("lang"),
        "no alt": tag == "img" and "alt" not in attributes,
        "no name": tag in ("svg", "a", "button", "summary", "title") and not named,
        "no label": tag in ("input", "select") and "label" not in around and not named,
        "no scope": tag == "th" and attributes.get("scope") not in ("row", "col"),
        "no focus where it scrolls": (tag == "pre" or "wide" in attributes.get("class", "").split())
        and "command" not in attributes.get("class", "")
        and attributes.get("tabindex") != "0",
        "a region without a name": attributes.get("role") == "region" and not attributes.get("aria-label"),
    }
    return [fault for fault, holds in rules.items() if holds]
