import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import soundfile

from weft.pages.components import Clip

HOSTILE = "</script></q><img src=http://x/y onerror=alert(1)> \"'& {{ 7*7 }} é"
_VOID = {"meta", "br", "img", "input", "link"}


def random_clip(sec: float, text: str | None = None, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).uniform(-0.9, 0.9, int(sec * 8000)).astype(np.float32), 8000, text)


class Page(HTMLParser):
    """The elements and the visible text of a page. Parsing fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def audio(self) -> list[tuple[np.ndarray, int]]:
        """The samples and sample rates of all audio elements."""
        sources = [str(a["src"]).partition(";base64,")[2] for a in self.all("audio")]
        return [soundfile.read(io.BytesIO(base64.b64decode(source))) for source in sources]


def assert_self_contained(html: str) -> None:
    """Assert that a page loads nothing from outside of its file."""
    for _, attributes in Page(html).elements:
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert not re.search(r"url\(|@import|https?://(?!x/y)", html)
    assert "default-src 'none'" in html
