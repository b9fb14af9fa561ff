"""The direction of imports: modules form layers without cycles, as docs/architecture.md lists them."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import weft

ROOT = Path(weft.__file__).parent
ARCHITECTURE = Path(__file__).parents[1] / "docs/architecture.md"
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}


def layer_of(module: str) -> str:
    """The folder of a module, or the module itself at the top level."""
    return module.split(".")[1]


def imports_of(source: str) -> set[str]:
    """The modules of weft that a source imports anywhere: at the top, in functions, and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "weft":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "weft")
    return found & MODULES.keys()


IMPORTS = {module: imports_of(path.read_text("utf-8")) for module, path in MODULES.items()}


def documented_layers() -> list[str]:
    """The layers in the order of docs/architecture.md, the lowest first."""
    paragraphs = re.findall(r"^\*\*`(\w+)(?:/|\.py)`\*\*", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)
    return paragraphs[::-1]


def test_every_folder_and_top_level_module_has_one_layer() -> None:
    layers = documented_layers()
    assert len(set(layers)) == len(layers)
    assert set(layers) == {layer_of(module) for module in MODULES}


def test_modules_import_only_from_lower_layers_or_their_own() -> None:
    height = {name: i for i, name in enumerate(documented_layers())}
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if height[layer_of(other)] > height[layer_of(module)]
    ]
    assert not upward


def test_no_import_cycle_exists() -> None:
    assert set(TopologicalSorter(IMPORTS).static_order()) == MODULES.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from weft.data import job",
        "def f():\n    from weft.data.job import run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from weft.data.job import Report",
        "import weft.data.job",
    ],
)
def test_imports_are_found_wherever_they_are(source: str) -> None:
    assert imports_of(source) == {"weft.data.job"}


def test_a_cycle_would_be_found() -> None:
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
