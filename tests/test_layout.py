"""The direction of imports: a module imports only from floors below its own, or from its own folder."""

import ast
from pathlib import Path

import weft

ROOT = Path(weft.__file__).parent
FLOORS = [
    {"errors", "records", "audio", "artifacts", "config", "progress", "wer", "weights", "espeak", "launch"},
    {"training", "data", "vocab", "voices", "rhythm", "sentences"},
    {"tokenizer", "decoder", "lm", "engine", "speak"},
    {"text_to_token", "eval"},
    {"interleave", "chat"},
    {"demo"},
    {"cli", "info"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Within a floor, what may use what: each pair is one way, so that no circle can form.
SIDEWAYS = {
    ("audio", "artifacts"), ("audio", "errors"), ("artifacts", "errors"), ("config", "errors"), ("espeak", "errors"),
    ("wer", "errors"), ("weights", "errors"),
    ("voices", "data"), ("training", "data"), ("vocab", "data"), ("lm", "engine"), ("eval", "text_to_token"),
    ("chat", "interleave"), ("lm", "tokenizer"), ("vocab", "rhythm"), ("progress", "launch"),
}  # fmt: skip


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "weft":
            names = [f"weft.{a.name}" for a in node.names] if node.module == "weft" else [node.module]
            found.update(part_of(n) for n in names if n != "weft.__version__")
    return found


def test_imports_go_down_the_floors() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).with_suffix("").parts[0]
        if here.startswith("__"):
            continue
        assert here in FLOOR_OF, f"{here} has no floor"
        wrong += [
            f"{path.relative_to(ROOT)} imports {used}"
            for used in imports_of(path) - {here}
            if FLOOR_OF[used] >= FLOOR_OF[here] and (here, used) not in SIDEWAYS
        ]
    assert not wrong
