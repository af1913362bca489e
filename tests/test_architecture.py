"""Imports run one way: a room imports only from rooms on earlier lines of its list.

A room is a folder of a package, or a file beside the folders. A new file in a folder needs no entry here.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rooms of one line do not import each other.
LAYERS = {
    "model": """
        structures images fpn resnet roi_align
        backbone boxes roi_pool
        anchors box_coder transform
        losses
        rpn roi_heads
        faster_rcnn
        architectures
        weights
        build data
        evaluation inference
        training bench
    """,
    "service": """
        wire errors state threads client
        settings images loadtest
        devices telemetry
        batching web
        reloading
        lifecycle page
        api
        deepstack oip
        app
        server scale
        bench
        cli
        __main__
    """,
}
ROOMS = {
    package: {name: n for n, line in enumerate(layers.split("\n")) for name in line.split()}
    for package, layers in LAYERS.items()
}
# What runs for a request, or before the first.
SERVING = [
    name
    for name, layer in ROOMS["service"].items()
    if layer <= ROOMS["service"]["server"] and name not in {"client", "loadtest"}
]
# Files of tests that no module of their own name has: they test what several modules do together.
TOGETHER = """
    model/images/test_bounds.py
    model/images/test_metadata.py
    model/inference/kernels/test_compile.py
    model/inference/test_accuracy_gate.py
    model/inference/test_company.py
    model/test_company.py
    model/test_default_device.py
    model/test_parity_inference.py
    model/test_parity_training.py
    model/test_parity_v2.py
    model/test_state_dict.py
    model/training/test_default_device.py
    service/api/test_admission_routes.py
    service/api/test_generated_client.py
    service/client/test_documentation.py
    service/page/test_detections.py
    service/page/test_docs.py
    service/page/test_page.py
    service/page/test_states.py
    service/page/test_tiles.py
    service/telemetry/test_dashboard.py
    service/test_hostile.py
    service/test_live.py
"""
# Modules without a file of tests: names and shapes alone, or what others test with all that it puts together.
ELSEWHERE = """
    model/bench/oracle.py
    model/images/errors.py
    model/inference/capture.py
    model/inference/errors.py
    model/structures.py
    service/app.py
    service/devices/detector.py
    service/scale/router.py
    service/wire.py
"""
SOURCES = sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at once or inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            # `from service import schemas` imports a file, `from service.schemas import X` a name in one.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room(name: str) -> str:
    """The room of a dotted name of a package's file."""
    return name.split(".")[1] if "." in name else "__init__"


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_above_its_own(path: Path) -> None:
    name = dotted(path)
    package, own = path.relative_to(ROOT).parts[0], room(name)
    if own == "__init__":  # gives names of the package on, when they are asked for
        return
    for imported in imports(path):
        if within(imported, package) and imported != package and (other := room(imported)) != own:
            assert ROOMS[package][other] < ROOMS[package][own], f"{name} imports {imported}"


@pytest.mark.parametrize("package", LAYERS)
def test_files_within_a_room_do_not_import_in_a_circle(package: str) -> None:
    files = {dotted(path): path for path in SOURCES if within(dotted(path), package)}
    edges = {
        name: {file for one in imports(path) for file in files if one == file or one.rpartition(".")[0] == file}
        - {name}
        for name, path in files.items()
        if not path.name.startswith("__init__")
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {error.args[1]}")


@pytest.mark.parametrize("package", LAYERS)
def test_every_room_has_a_place(package: str) -> None:
    there = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert there - {"__init__"} == set(ROOMS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_the_docs_list_the_rooms_in_this_order(package: str) -> None:
    _, _, table = (ROOT / "docs" / "architecture.md").read_text().partition(f"| `{package}/` | |\n|---|---|\n")
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    shown = [set(re.findall(r"`(\w+)/?`", row)) for row in rows]
    assert shown == [set(line.split()) for line in LAYERS[package].strip().splitlines() if line.strip() != "__main__"]


def test_tests_mirror_the_code() -> None:
    """`tests/model/test_rpn.py` tests `model/rpn.py`; tests/docker, tests/reliability and tests/scale test it all."""
    modules = {str(path.relative_to(ROOT).with_name(f"test_{path.stem}.py")) for path in SOURCES}
    modules |= {f"service/page/test_{path.stem}.py" for path in (ROOT / "service" / "page").rglob("*.js")}
    tests = [path for package in LAYERS for path in (ROOT / "tests" / package).rglob("test_*.py")]
    names = {str(path.relative_to(ROOT / "tests")) for path in tests}
    assert names - modules == set(TOGETHER.split())
    for path in SOURCES:
        module = path.relative_to(ROOT)
        is_tested = str(module.with_name(f"test_{path.stem}.py")) in names
        assert path.stem.startswith("__") or is_tested != (str(module) in ELSEWHERE.split()), module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_no_file_may_do(path: Path) -> None:
    imported = imports(path)
    if path.name not in {"oracle.py", "plain_app.py"}:  # which measure by it
        assert not any(within(name, "torchvision.models.detection") for name in imported)
    assert path.stem not in {"utils", "util", "helpers", "common"}
    if path.is_relative_to(ROOT / "model"):
        assert not any(within(name, package) for name in imported for package in ("service", "typer", "rich"))
    elif path.parent.name not in {"devices", "images", "cli"} and path.name != "schemas.py":
        assert not any(within(name, "model") for name in imported)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    """A file of weights is data: no pickle but torch's own reader of tensors, and no eval."""
    imported = imports(path)
    assert not any(within(name, module) for name in imported for module in ("marshal", "shelve", "dill"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads"}
        if called == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if within(dotted(path), "service") and room(dotted(path)) in SERVING],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_request_makes_the_service_fetch_anything(path: Path) -> None:
    imported = imports(path)
    assert not any(
        within(one, module) for one in imported for module in ("httpx", "requests", "urllib.request", "http.client")
    )
