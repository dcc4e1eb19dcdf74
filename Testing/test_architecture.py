"""Which package may import which: the five layers of the design, read from the source of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[1] / "DCASegmentation"
FILES = sorted([*(MODULE / "dcaseg").rglob("*.py"), *(MODULE / "DCASegmentationLib").rglob("*.py")])
SLICER_SIDE, LIBRARY = "DCASegmentationLib", "dcaseg"

# From the top down. A package imports from its own layer and from those below. The name of a package of the library is
# that of its folder; of a file at the top of the library, its own.
LAYERS: list[set[str]] = [
    {SLICER_SIDE},
    {"cli", "cohort", "benchmark", "evaluation", "worker", "api", ""},
    {"training", "synthesis", "inference", "review", "interaction", "models", "rendering", "dicom"},
    {"method", "imaging"},
    {"checksums", "organs", "errors", "types", "temp_paths", "user_folders", "file_lock", "json_io", "option_fields"},
]

# The libraries besides Python's own that a package may import anywhere in its files.
SLICER = {"slicer", "vtk"}
LIBRARIES: dict[str, set[str]] = {
    # SampleData is a module of Slicer, PyTorchUtils one of Slicer's PyTorch extension.
    SLICER_SIDE: {"numpy", "SimpleITK", "qt", "ctk", "SampleData", "PyTorchUtils", *SLICER},
    "api": {"numpy", "SimpleITK"},
    "cli": {"typer", "rich", "torch", "numpy", "SimpleITK", "distributed"},
    "cohort": {"numpy", "SimpleITK", "torch", "distributed", "dask", "tornado", "psutil", "jinja2", "PIL"},
    # Other projects' programs, and what they are made of.
    "benchmark": {"torch", "monai", "numpy", "SimpleITK", "matplotlib", "nnunetv2", "nibabel", "scipy"},
    "evaluation": {"torch", "monai", "numpy", "SimpleITK", "matplotlib", "sklearn"},
    "worker": {"SimpleITK"},
    "training": {"torch", "monai", "numpy", "SimpleITK"},
    "synthesis": {"torch", "numpy", "SimpleITK"},
    "inference": {"torch", "numpy", "SimpleITK", "openvino"},
    "review": {"torch", "numpy", "SimpleITK"},
    "interaction": {"numpy", "SimpleITK", "torch"},
    "models": {"torch", "certifi"},
    "rendering": {"numpy", "SimpleITK", "matplotlib"},
    "dicom": {"numpy", "SimpleITK", "pydicom", "highdicom"},
    "method": {"torch"},
    "imaging": {"numpy", "SimpleITK"},
}

# What Slicer's own process loads of the library: no heavy library may be loaded with it.
LOADED_BY_SLICER = {
    *("checksums", "errors", "organs", "types", "user_folders", "temp_paths", "json_io", ""),
    *("imaging", "rendering", "dcaseg.worker.protocol", "dcaseg.review.schema"),
    *("dcaseg.synthesis.phantom", "dcaseg.training.corrections", "dcaseg.models.store", "dcaseg.models.user_models"),
    *("dcaseg.models.download", "dcaseg.cohort.discovery"),
}
HEAVY = {"torch", "monai", "ignite", "typer", "dask"}


def name_of(path: Path) -> str:
    """The dotted name of the module in a file."""
    return ".".join(path.relative_to(MODULE).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """The package that has a rule: the Slicer side, a folder of the library, or a file at its top ("" for itself)."""
    top, _, rest = module.partition(".")
    return SLICER_SIDE if top == SLICER_SIDE else rest.split(".")[0]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path, nodes: list[ast.stmt] | None = None) -> set[str]:
    """Full names of the modules that a file imports, relative imports resolved; of ``nodes`` only, where given."""
    package = list(path.relative_to(MODULE).parent.parts)
    found: set[str] = set()
    for top in parsed(path).body if nodes is None else nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                # "from . import segment" and "from dcaseg.inference import maps" import modules.
                below = MODULE.joinpath(*module.split("."))
                modules = [alias.name for alias in node.names if (below / f"{alias.name}.py").is_file()]
                found |= {f"{module}.{name}" for name in modules} or {module}
    return found


def at_file_scope(path: Path) -> list[ast.stmt]:
    """The statements that run when the file is imported: none inside functions or TYPE_CHECKING blocks."""

    def runs(body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.append(node)
            elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                found += runs(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "finalbody", "handlers"):
                    inner = getattr(node, field, [])
                    found += runs([s for s in inner if isinstance(s, ast.stmt)])
                    found += [s for h in inner if isinstance(h, ast.ExceptHandler) for s in runs(h.body)]
        return found

    return runs(parsed(path).body)


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] in (SLICER_SIDE, LIBRARY)}


def libraries(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules - ours(modules)} - set(sys.stdlib_module_names) - {"__future__"}


def layer_of(package: str) -> int:
    (found,) = (index for index, layer in enumerate(LAYERS) if package in layer)
    return found


def violations(path: Path) -> list[str]:
    package = package_of(name_of(path))
    modules = imported_modules(path)
    upward = [name for name in ours(modules) if layer_of(package_of(name)) < layer_of(package)]
    unknown = libraries(modules) - LIBRARIES.get(package, set())
    return sorted([*upward, *unknown])


def test_every_package_has_its_layer():
    packages = {package_of(name_of(path)) for path in FILES}
    assert packages == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(MODULE).as_posix())
def test_no_import_runs_upward_and_libraries_stay_where_they_belong(path):
    assert violations(path) == []


@pytest.mark.parametrize(
    "line",
    ["import vtk", "from ..inference import maps", "from ..cli.console import say", "def f():\n    import slicer"],
)
def test_every_kind_of_import_is_seen(line, tmp_path, monkeypatch):
    path = tmp_path / "dcaseg" / "imaging" / "readers.py"
    path.parent.mkdir(parents=True)
    path.write_text(line, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "MODULE", tmp_path)
    assert len(violations(path)) == 1


def test_no_two_files_import_each_other_when_loaded():
    waiting = {name_of(path): ours(imported_modules(path, at_file_scope(path))) - {name_of(path)} for path in FILES}
    while waiting:
        free = [name for name, used in waiting.items() if not used & set(waiting)]
        assert free, f"these files import each other in a circle: {sorted(waiting)}"
        for name in free:
            del waiting[name]


def test_what_slicer_loads_imports_no_heavy_library():
    """File scopes are followed all the way: what a panel imports may import something itself."""
    files = {name_of(path): path for path in FILES}
    waiting = {
        name
        for name in files
        if package_of(name) in LOADED_BY_SLICER | {SLICER_SIDE}
        or any(name == each or name.startswith(f"{each}.") for each in LOADED_BY_SLICER)
    }
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        modules = imported_modules(files[name], at_file_scope(files[name]))
        assert not libraries(modules) & HEAVY, name
        parents = {".".join(each.split(".")[:n]) for each in ours(modules) for n in range(1, each.count(".") + 2)}
        waiting |= parents & set(files) - reached
    assert len(reached) > 90


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=lambda path: name_of(path).replace(".", "/")
)
def test_package_files_hold_no_code_but_the_entries_of_library_and_command_line(path):
    if name_of(path) in ("dcaseg", "dcaseg.cli"):
        return
    code = [ast.unparse(node) for node in parsed(path).body]
    assert [line for line in code if not line.startswith(("'", '"', "from __future__ import"))] == []


def test_pictures_are_drawn_without_torch():
    script = (
        "import sys, dcaseg.rendering.case_picture, DCASegmentationLib.scene.offscreen;"
        "print([name for name in ('torch', 'monai', 'typer') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_modules_named_in_text_exist():
    """Processes are started, and names looked up, by the names of modules: a typo would show only when it is used."""
    modules = {name_of(path) for path in FILES}
    pattern = re.compile(r"\b(?:dcaseg|DCASegmentationLib)(?:\.[a-z]\w*)+")
    missing = []
    for path in [*FILES, *Path(__file__).parent.rglob("*.py")]:
        for name in pattern.findall(path.read_text(encoding="utf-8")):
            parts = name.split(".")
            # The last parts may be names in a module, or an attribute of the package itself.
            found = any(".".join(parts[:count]) in modules for count in range(len(parts), 1, -1))
            # Bundles of earlier versions name modules that no longer exist.
            earlier = name.startswith(("DCASegmentationLib.method", "DCASegmentationLib.bundle"))
            if not found and not earlier and not (len(parts) == 2 and parts[0] == "dcaseg"):
                missing.append(f"{path.name}: {name}")
    assert missing == []
