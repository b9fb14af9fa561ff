"""What can execute code is confined to a few modules, which get it from recipes and from weft, never from data."""

import ast
import re
from pathlib import Path

import pytest

import weft

ROOT = Path(weft.__file__).parent

# Where each name may be used, and what it executes there.
ALLOWED = {
    "subprocess": {
        "voices/program.py",  # the programs of `command:` voices, which a recipe or a flag names
        "data/cluster.py",  # Slurm's own programs
    },
    "pickle": {
        "data/job.py",  # from a command to its own worker processes
        "pretrained.py",  # the exception of torch's loader of tensors
    },
    "ctypes": {"voices/espeak.py"},  # the library of espeak
    "_ctypes": {"voices/espeak.py"},
    "yaml": {"decoder/glm.py"},  # a loader that reads names of objects as data
    "importlib": {"cli.py", "__init__.py", "training/trackers.py"},  # modules by names in weft's own tables
}
FORBIDDEN_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "webbrowser", "runpy", "code", "pty"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN = re.compile(
    r"shell=True|torch\.load\((?!.*weights_only=True)|np\.load\((?!.*allow_pickle=False)|read_pickle"
    r"|os\.(?:system|popen|exec\w+|spawn\w+)\(|trust_remote_code=True|allow_pickle=True|torch\.hub"
    r"|yaml\.(?!SafeLoader|\w*Node|load\(file, _Loader\))"
)
DOWNLOADS = re.compile(r"snapshot_download|hf_hub_download|urlretrieve")
SOURCES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in ROOT.rglob("*.py")}


def found_in(source: str) -> tuple[set[str], set[str]]:
    """Return the top-level modules that a source imports, and the names of the functions that it calls."""
    modules, calls = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
    return modules, calls


FOUND = {name: found_in(source) for name, source in SOURCES.items()}


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_that_can_execute_code_is_used_only_where_it_is_needed(module: str) -> None:
    assert {name for name, (modules, _) in FOUND.items() if module in modules} == ALLOWED[module]


def test_nothing_else_can_execute_code() -> None:
    for name, (modules, calls) in FOUND.items():
        assert not modules & FORBIDDEN_MODULES, name
        assert not calls & FORBIDDEN_CALLS, name
        assert not FORBIDDEN.search(SOURCES[name]), name


def test_only_models_of_the_hub_are_downloaded_without_code() -> None:
    assert {name for name, source in SOURCES.items() if DOWNLOADS.search(source)} == {"hub.py"}
    assert not re.search(r"\.py\b", SOURCES["hub.py"])  # in the patterns of what is downloaded


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "def f():\n    from pickle import loads",
        "import torch, yaml",
        "x = eval('1')",
        "exec(text)",
    ],
)
def test_such_uses_are_found(source: str) -> None:
    modules, calls = found_in(source)
    assert modules & (ALLOWED.keys() | FORBIDDEN_MODULES) or calls & FORBIDDEN_CALLS
