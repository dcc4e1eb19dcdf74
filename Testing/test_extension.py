"""The extension as checked by the build system and the Extensions Index: files, metadata, index entry, imports."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dcaseg.worker.server import HANDLERS
from test_architecture import imported_modules, parsed

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "DCASegmentation"
INDEX_ENTRY = ROOT / "Resources" / "DCASegmentation.json"

# The index's rules: the fields of an entry (schema 1.0.1), and the packages a module may import at file scope.
ENTRY_FIELDS = {
    "$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str, "build_dependencies": list,
    "build_subdirectory": str, "enabled": bool, "tier": int,
}  # fmt: skip
ENTRY_REQUIRED = {"$schema", "category", "scm_url"}
BUNDLED_WITH_SLICER = {"slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy", "scipy", "DCASegmentationLib", "dcaseg"}
PACKAGES = ("DCASegmentationLib", "dcaseg")


def needed_by_slicer() -> set[str]:
    """The files (relative to the module's folder) that the module, its worker, and its other processes import."""
    files = {path for package in PACKAGES for path in (MODULE / package).rglob("*.py")}
    starts = {path for path in files if path.is_relative_to(MODULE / "DCASegmentationLib")}
    starts |= {MODULE / "DCASegmentation.py", MODULE / "dcaseg/worker/__main__.py"}
    # The worker imports these by name when a request needs them.
    starts |= {MODULE / "dcaseg/worker" / f"{handler.split('.')[0]}.py" for handler in HANDLERS.values()}
    waiting, found = set(starts), set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        for module in imported_modules(path):
            stem = MODULE.joinpath(*module.split("."))
            named = {stem.with_suffix(".py"), *(folder / "__init__.py" for folder in (stem, *stem.parents))}
            waiting |= (named & files) - found
    return {path.relative_to(MODULE).as_posix() for path in found}


def loaded_by_slicer() -> list[Path]:
    """The files that run in Slicer when the module is loaded and its panel is shown."""
    return [MODULE / "DCASegmentation.py", *sorted((MODULE / "DCASegmentationLib").rglob("*.py"))]


SLICER_LOADS = loaded_by_slicer()


def metadata(name: str) -> str:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf'^set\(EXTENSION_{name} "([^"]*)"\)$', text, re.MULTILINE)
    assert found, f"EXTENSION_{name} is not set in the form that the index requires"
    return found[1]


def files_below(folder: Path) -> set[str]:
    ignored = {"__pycache__", ".mypy_cache", ".DS_Store"}
    paths = (path for path in folder.rglob("*") if path.is_file() and not ignored & set(path.parts))
    return {path.relative_to(MODULE).as_posix() for path in paths}


def test_only_the_module_file_is_where_slicer_looks_for_modules():
    assert [path.name for path in MODULE.glob("*.py")] == ["DCASegmentation.py"]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_packages_what_slicer_needs_and_nothing_else(tmp_path):
    # Slicer's own macros are not available here; these replacements make the same checks.
    (tmp_path / "SlicerConfig.cmake").write_text(
        'set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/use.cmake")\n'
        'set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/done.cmake")\n'
        'set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/done.cmake")\n'
        'set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "lib/qt-scripted-modules")\n'
    )
    (tmp_path / "done.cmake").write_text("")
    (tmp_path / "use.cmake").write_text(
        "function(slicerMacroBuildScriptedModule)\n"
        '  cmake_parse_arguments(M "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})\n'
        "  foreach(file ${M_SCRIPTS} ${M_RESOURCES})\n"
        '    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")\n'
        '      message(FATAL_ERROR "${file} does not exist")\n'
        "    endif()\n"
        "  endforeach()\n"
        '  file(WRITE "${CMAKE_BINARY_DIR}/packaged.txt" "${M_SCRIPTS};${M_RESOURCES}")\n'
        "endfunction()\n"
    )
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DSlicer_DIR={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    packaged = set((tmp_path / "build" / "packaged.txt").read_text().split(";"))
    scripts = {name for name in packaged if name.endswith(".py")}
    needed = needed_by_slicer()
    assert needed <= scripts
    # Packages that are needed are packaged completely; others are not packaged at all.
    used = {Path(name).parent for name in needed}
    assert {name for name in scripts if Path(name).parent not in used} == set()
    assert not [name for name in scripts if name.startswith(("dcaseg/cli/", "dcaseg/evaluation/", "dcaseg/benchmark/"))]
    shipped = files_below(MODULE / "dcaseg" / "models" / "shipped")
    data = {"dcaseg/interaction/classifier.json"}
    assert packaged - scripts == files_below(MODULE / "Resources") | shipped | data


def test_the_metadata_meet_the_requirements_of_the_index():
    assert re.search(r"^project\(DCASegmentation\)$", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert metadata("CATEGORY") == "Segmentation"
    assert metadata("DEPENDS") == "PyTorch"
    assert metadata("CONTRIBUTORS")
    assert 40 < len(metadata("DESCRIPTION")) < 400
    # Slicer passes the description on without quotes: CMake would end it at a semicolon.
    assert ";" not in metadata("DESCRIPTION")
    for name in ("HOMEPAGE", "ICONURL", "SCREENSHOTURLS"):
        assert metadata(name).startswith("https://"), name


@pytest.mark.parametrize("name", ["ICONURL", "SCREENSHOTURLS"])
def test_pictures_in_the_metadata_are_png_files_in_the_repository(name):
    for url in metadata(name).split():
        path = ROOT / url.split("/main/", 1)[1]
        assert path.read_bytes().startswith(b"\x89PNG"), url


def test_the_icon_has_128_by_128_pixels():
    content = (ROOT / "Resources" / "DCASegmentation.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (128, 128)


def test_the_index_entry_satisfies_the_schema_and_agrees_with_cmake():
    raw = INDEX_ENTRY.read_bytes()
    entry = json.loads(raw)
    assert b"\r" not in raw
    assert set(entry) >= ENTRY_REQUIRED
    assert {key: type(value) for key, value in entry.items()} == {key: ENTRY_FIELDS[key] for key in entry}
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["category"] == metadata("CATEGORY")
    assert entry["build_dependencies"] == metadata("DEPENDS").split()
    assert entry["tier"] in (1, 3, 5)
    assert entry["scm_url"].removesuffix(".git") == metadata("HOMEPAGE")
    repository = entry["scm_url"].rsplit("/", 1)[1]
    assert entry["scm_url"].startswith("https://") and repository.startswith("Slicer")


def statements(path: Path) -> list[ast.stmt]:
    return parsed(path).body


@pytest.mark.parametrize("path", SLICER_LOADS, ids=lambda path: path.relative_to(MODULE).as_posix())
def test_files_loaded_by_slicer_import_only_packages_bundled_with_slicer(path):
    for node in statements(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            assert top in BUNDLED_WITH_SLICER or top in sys.stdlib_module_names, f"{name} is not in Slicer's Python"


@pytest.mark.parametrize("path", SLICER_LOADS, ids=lambda path: path.relative_to(MODULE).as_posix())
def test_files_loaded_by_slicer_have_no_side_effects_on_import(path):
    # A call as a statement has a side effect; a call that computes a constant does not.
    acting = [ast.unparse(n) for n in statements(path) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    loops = [ast.unparse(n) for n in statements(path) if isinstance(n, ast.For | ast.While | ast.With)]
    assert acting + loops == []


def test_torch_is_never_installed_by_pip_directly():
    for path in MODULE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and "pip" in ast.unparse(node.func):
                assert "torch" not in ast.unparse(node), f"{path.name}: {ast.unparse(node)}"


def test_models_are_found_read_and_added_without_torch():
    script = (
        "import sys, dcaseg.models.user_models, dcaseg.models.store;"
        "import dcaseg.models.metadata_reader, dcaseg.worker.protocol;"
        "print([name for name in ('torch', 'monai', 'typer') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
