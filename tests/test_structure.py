"""The structure of the code: imports run downward without a circle, and files and functions are short."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From low to high: a file may import from its own tier and from lower ones. Each root module and package is a unit.
TIERS = (
    {
        *("errors", "ranges", "version", "versions", "configs", "import_hook", "saved_settings", "files"),
        *("library_errors", "parser_errors", "hub", "lora", "pretrained", "checkpoints", "run", "optimizer"),
        *("metrics", "plots", "loss", "trainer", "haystack", "decoder_sizes", "precision", "recompute", "fused"),
        *("collectives", "step_log"),
    },
    {"attention"},
    {"flops", "decoding", "generation", "lrsa_lightning"},
    {"data"},
    {"distributed"},
    {"npu"},
    {"meter", "model_check", "trained_model", "training_model"},
    {"ruler", "plan"},
    {"recipe"},
    {"model_folder"},
    {"conversation"},
    {"diagnosis"},
    {"module"},
    {"callbacks"},
    {"report"},
    {"sweep"},
    {"serving"},
    {"commands", "doctor", "optional_packages", "finished_run", "command_line"},
    {"cli"},
    {"__main__"},
    {"scripts"},
)
HEIGHT = {unit: height for height, units in enumerate(TIERS) for unit in units}
MOST_LINES = 300
MOST_BODY_LINES = 40


def _modules() -> dict[str, Path]:
    """The files of the package, of callbacks/ as `lrsa_lightning.callbacks` and of scripts/, by module name."""
    modules = {}
    for folder, name in (
        ("lrsa_lightning", "lrsa_lightning"),
        ("callbacks", "lrsa_lightning.callbacks"),
        ("configs", "lrsa_lightning.configs"),
        ("scripts", "scripts"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder != "lrsa_lightning" or parts[0] not in ("callbacks", "configs"):  # links in an editable install
                modules[".".join((name, *parts)).removesuffix(".__init__")] = path
    return modules


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Our modules that a file imports, also inside functions and under TYPE_CHECKING."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: give the full name of the module"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in submodules}
    scripts = {f"scripts.{name}" for name in names}  # a script imports another one by its bare name
    return (names | scripts) & MODULES.keys()


def _unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "lrsa_lightning" and len(parts) > 1 else parts[0]


GRAPH = {module: _imports(path) - {module} for module, path in MODULES.items()}
UNITS = {unit: set() for unit in map(_unit, MODULES)}
for _module, _imported in GRAPH.items():
    UNITS[_unit(_module)] |= {_unit(name) for name in _imported} - {_unit(_module)}


def _circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The nodes that reach one another, by peeling off those that import nothing or that nothing imports."""
    left = {node: set(targets) for node, targets in graph.items()}
    while True:
        imported = set().union(*left.values())
        ends = {node for node, targets in left.items() if not targets or node not in imported}
        if not ends:
            return [[node, *sorted(targets)] for node, targets in sorted(left.items())]
        left = {node: targets - ends for node, targets in left.items() if node not in ends}


@pytest.mark.parametrize("graph", [GRAPH, UNITS], ids=["files", "packages"])
def test_there_is_no_import_circle(graph):
    circles = [f"{node} imports {', '.join(targets)}" for node, *targets in _circles(graph)]
    assert not circles, "\n".join(circles)


def test_each_package_and_root_module_has_a_tier():
    assert not UNITS.keys() - HEIGHT.keys()
    assert sum(map(len, TIERS)) == len(HEIGHT)


def test_no_import_runs_upward():
    upward = [
        f"{module} imports {name}"
        for module, imported in GRAPH.items()
        for name in sorted(imported)
        if HEIGHT[_unit(name)] > HEIGHT[_unit(module)]
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("unit", ["report", "sweep"])
def test_what_reads_runs_needs_no_callbacks(unit):
    assert "callbacks" not in UNITS[unit]


def _sources() -> Iterator[Path]:
    yield from MODULES.values()
    yield from sorted((ROOT / "tests").rglob("*.py"))


def test_files_are_short():
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in _sources()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function after its signature and docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    long = {}
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > MOST_BODY_LINES:
                long[f"{path.relative_to(ROOT)}: {node.name}"] = _body_lines(node)
    assert long == {}
