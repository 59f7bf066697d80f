"""The rooms of the package: imports point one way, few rooms know one another, and files stay short."""

import ast
from pathlib import Path

import hf_esc

PACKAGE = Path(hf_esc.__file__).parent
MODULES = {
    (*file.relative_to(PACKAGE).with_suffix("").parts,): file
    for file in PACKAGE.rglob("*.py")
    if not file.is_relative_to(PACKAGE / "metrics") and not file.is_relative_to(PACKAGE / "space")
}
# The face imports names of every room when they are first used; errors and the version import nothing of ours but the
# errors that travel, and everybody may raise.
FACE, LEAVES = "__init__", {"errors", "version"}
LONGEST = 420


def room(module: tuple[str, ...]) -> str:
    return module[0]


def imports(module: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules of ours that a module imports anywhere: at its top, in functions, for types alone."""
    package, found = module[:-1], set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] == "hf_esc" for name in node.names), (
                module,
                "imports by full name",
            )
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
        for name in node.names:
            target = (*base, name.name)
            while target and target not in MODULES and (*target, "__init__") not in MODULES:
                target = target[:-1]
            found.add(target if target in MODULES else (*target, "__init__"))
    return found


def pairs() -> set[tuple[str, str]]:
    """(importer, imported) of rooms."""
    return {
        (room(module), room(target))
        for module in MODULES
        for target in imports(module)
        if room(target) != room(module) and room(module) != FACE
    }


def test_imports_between_rooms_run_in_no_circle():
    left = pairs()
    while left:
        importers, imported = {one for one, _ in left}, {other for _, other in left}
        assert imported - importers, f"a circle among {sorted(importers & imported)}"
        left = {pair for pair in left if pair[1] in importers}


def test_imports_between_files_of_a_room_run_in_no_circle():
    left = {(module, target) for module in MODULES for target in imports(module) if room(target) == room(module)}
    while left:
        importers, imported = {one for one, _ in left}, {other for _, other in left}
        assert imported - importers, f"a circle among {sorted(importers & imported)}"
        left = {pair for pair in left if pair[1] in importers}


def test_few_rooms_know_one_another():
    counted = {pair for pair in pairs() if pair[1] not in LEAVES}
    assert len(counted) <= 55, sorted(counted)


def test_one_import_goes_by_string_and_it_is_the_push_of_an_erased_model():
    by_string = {
        module
        for module, file in MODULES.items()
        if "import_module(" in file.read_text(encoding="utf-8") and module not in LAZY
    }
    assert by_string == {("modeling", "modeling_esc")}
    text = MODULES[("modeling", "modeling_esc")].read_text(encoding="utf-8")
    assert text.count("import_module(") == text.count('import_module("hf_esc.hub.push")') == 1


# Faces, which import the names of a table when they are first used.
LAZY = {("__init__",), ("methods",), ("unlearning", "__init__"), ("evaluation", "__init__")}


def test_what_travels_with_checkpoints_stands_alone():
    """Its files import one another with one dot, and libraries; the folder's face is empty."""
    for module, file in MODULES.items():
        if room(module) == "modeling":
            assert {room(target) for target in imports(module)} <= {"modeling"}, module
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert all(node.level <= 1 for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), module
    assert MODULES[("modeling", "__init__")].read_text(encoding="utf-8") == ""


def test_at_most_seven_files_lie_flat():
    assert len([module for module in MODULES if len(module) == 1]) <= 7


def test_no_file_is_long():
    long = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert not {module: lines for module, lines in long.items() if lines > LONGEST}
