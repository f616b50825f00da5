"""The package's folders: imports go one way, no file circles, and README and tests list each folder."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mdmscale"
# A folder imports only from itself and from folders before it. Modules beside the folders import from all.
ORDER = [
    "system",
    "diffusion",
    "config",
    "weights",
    "models",
    "parallel",
    "data",
    "data/preparation",
    "engine",
    "generation",
    "evaluation",
    "evaluation/likelihood",
    "evaluation/tasks",
    "evaluation/lm_eval",
    "training",
    "conversion",
    "analysis/planning",
    "analysis/bench",
    "analysis/variance",
    "analysis/study",
    "analysis/decision",
]

Imports = dict[str, set[str]]  # module -> the modules of the package that it imports


def modules_of(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name. The name of a folder stands for its __init__.py."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def imports_of(package: Path) -> Imports:
    """The imports of each module from its package: at the top, inside functions and for type checking."""
    modules = modules_of(package)
    return {
        name: {_module_of(imported, modules) for imported in _imported_names(name, file)} - {name}
        for name, file in modules.items()
    }


def _imported_names(module: str, file: Path) -> Iterator[str]:
    """The dotted names that a module imports from its package. The last part may be an object in a module."""
    package = module.split(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, [_start_of(module, file, node.level), node.module]))
            names = [f"{source}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] == package)


def _start_of(module: str, file: Path, level: int) -> str:
    """The package where a relative import with this many dots starts. An absolute import has no dots."""
    if not level:
        return ""
    parts = module.split(".")
    dropped = level - 1 if file.name == "__init__.py" else level
    return ".".join(parts[: len(parts) - dropped])


def _module_of(name: str, modules: dict[str, Path]) -> str:
    """The module that an imported name is, or that defines it."""
    parent = name.rpartition(".")[0]
    assert name in modules or parent in modules, f"{name} is imported, but there is no such module"
    return name if name in modules else parent


def folder_of(file: Path, package: Path) -> str:
    """The folder of a file in a package, as ORDER names it; "." for the package itself."""
    return file.parent.relative_to(package).as_posix()


def upward_imports(package: Path, order: list[str]) -> list[str]:
    """The imports of a folder from a later one, one line each.

    The package's own __init__.py is below all folders, because every import from the package runs it first.
    """
    floors = {package.name: -1}
    for module, file in modules_of(package).items():
        folder = folder_of(file, package)
        floors.setdefault(module, order.index(folder) if folder in order else len(order))
    return [
        f"{module} imports {imported}"
        for module, targets in imports_of(package).items()
        for imported in sorted(targets)
        if floors[imported] > floors[module]
    ]


def circles(package: Path) -> list[str]:
    """Circles of files that import each other, one line each. The lines name every file in a circle."""
    graph, found = imports_of(package), []
    while True:
        try:
            TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).prepare()
            return found
        except CycleError as error:
            circle = error.args[1][::-1]  # graphlib lists a file before those that import it
            found.append(" -> ".join(circle))
            graph[circle[0]].remove(circle[1])


def folders_of(package: Path) -> set[str]:
    """The folders with code. A folder that has only an empty __init__.py just groups other folders."""
    files = [file for file in package.rglob("*.py") if file.name != "__init__.py" or file.stat().st_size]
    return {folder_of(file, package) for file in files} - {"."}


def test_a_folder_imports_nothing_from_a_folder_above_it() -> None:
    upward = upward_imports(PACKAGE, ORDER)
    assert not upward, "a folder imports one that is above it:\n" + "\n".join(upward)


def test_no_files_import_each_other() -> None:
    found = circles(PACKAGE)
    assert not found, "files import each other in a circle:\n" + "\n".join(found)


def test_every_folder_has_its_place_in_the_order() -> None:
    assert sorted(folders_of(PACKAGE)) == sorted(ORDER)


def test_the_readme_maps_every_folder() -> None:
    table = (ROOT / "README.md").read_text().partition("\n## The map\n")[2].partition("\n## ")[0]
    paths = re.findall(r"`mdmscale/([\w/.]+)`", table)
    missing = sorted(folders_of(PACKAGE) - {path.rstrip("/") for path in paths})
    gone = sorted(path for path in paths if not (PACKAGE / path).exists())
    assert not missing, f"folders that README's map does not name: {', '.join(missing)}"
    assert not gone, f"paths of README's map that do not exist: {', '.join(gone)}"


def test_every_folder_of_tests_mirrors_one_of_the_package() -> None:
    tests = ROOT / "tests"
    folders = {folder_of(file, tests) for file in tests.rglob("test_*.py")} - {"."}
    strangers = sorted(folders - folders_of(PACKAGE))
    assert not strangers, f"folders of tests that mirror no folder of mdmscale: {', '.join(strangers)}"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with two folders, `low` and `high`, whose modules import nothing yet."""
    root = tmp_path / "house"
    for folder in (root, root / "low", root / "high"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    for module in ("main", "low/one", "low/two", "high/three"):
        (root / f"{module}.py").touch()
    return root


@pytest.mark.parametrize(
    "line",
    [
        "import house.high.three",
        "from house.high import three",
        "from house.high.three import something",
        "from ..high import three",
        "from ..high.three import something",
        "def late():\n    from house.high.three import something",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os, house.high.three as module",
    ],
)
def test_every_way_to_import_is_seen(package: Path, line: str) -> None:
    (package / "low" / "one.py").write_text(line)
    assert upward_imports(package, ["low", "high"]) == ["house.low.one imports house.high.three"]
    assert not upward_imports(package, ["high", "low"])


def test_an_import_of_what_lies_beside_the_folders_is_upward(package: Path) -> None:
    (package / "main.py").write_text("from house.low import one")
    (package / "high" / "three.py").write_text("from house import main, __version__")
    assert upward_imports(package, ["low", "high"]) == ["house.high.three imports house.main"]


def test_what_the_init_of_a_folder_imports_counts(package: Path) -> None:
    (package / "low" / "__init__.py").write_text("from .one import something\nfrom ..high import three")
    assert imports_of(package)["house.low"] == {"house.low.one", "house.high.three"}
    assert upward_imports(package, ["low", "high"]) == ["house.low imports house.high.three"]


def test_circles_are_found_one_by_one(package: Path) -> None:
    (package / "low" / "one.py").write_text("from house.low import two")
    (package / "low" / "two.py").write_text("def late():\n    from .one import something")
    (package / "main.py").write_text("import house.high.three, house.low.one")
    assert circles(package) == ["house.low.one -> house.low.two -> house.low.one"]
    (package / "high" / "three.py").write_text("from house.main import run")
    assert len(circles(package)) == 2


def test_an_import_of_a_module_that_is_gone_is_an_error(package: Path) -> None:
    (package / "main.py").write_text("def late():\n    from house.low.gone import something")
    with pytest.raises(AssertionError, match=r"house\.low\.gone\.something is imported"):
        imports_of(package)


def test_a_folder_that_only_groups_others_needs_no_place(package: Path) -> None:
    (package / "group" / "inner").mkdir(parents=True)
    (package / "group" / "__init__.py").touch()
    (package / "group" / "inner" / "four.py").touch()
    assert folders_of(package) == {"low", "high", "group/inner"}
