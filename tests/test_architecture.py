"""Imports run one way: a file imports only from files before it in its list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_LISTS = {
    "model": """images.errors images.tags images.opened images.foreign images.jpeg images.png images.gif images.bmp
        images.tiff_layout images.tiff_pages images.tiff images.decoding
        structures boxes box_coder training.matcher training.sampler training.targets training.losses anchors
        resnet fpn backbone transform rpn roi_align roi_pool roi_heads faster_rcnn architectures categories arguments
        download packed picture_files foreign_checkpoints checkpoint_files weights build
        inference.errors inference.memory inference.fused_conv inference.network inference.box_head inference.serving
        inference.precision inference.agreement inference.openvino inference.kernels.nms inference.kernels.roi_align
        inference.kernels.resize inference.kernels.maps inference.fixed_shapes inference.capture
        inference.capture_policy inference.graphs""",
    "service": """settings cores errors problems auth logs tracing
        images staging gpus drawing batch_queue batch_cap metrics admission detector device_thread device pace
        device_worker examples schemas limits batcher stages lifecycle bounded_json forms uploads job pipeline openapi
        routes middleware
        oip.tensors oip.document oip.routes package_files page.routes docs
        app protocol server image_files detect_files
        client.errors client.images client.timing client.results client.retries client.exchange client.client
        loadtest.plan loadtest.samples loadtest.transport loadtest.generator loadtest.fleet loadtest.summary
        loadtest.search loadtest.display loadtest.plots loadtest.report
        bench.plain_app bench.pictures bench.processes bench.measure
        scale.arguments scale.replica scale.router scale.deployment
        cli.errors cli.options cli.progress cli.serve cli.detect cli.train cli.evaluate cli.sample cli.weights cli.bench
        cli.loadtest cli.app __main__""",
}
ORDER = {package: names.split() for package, names in _LISTS.items()}
LISTED = [(package, name) for package, names in ORDER.items() for name in names]
SOURCES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


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


@pytest.mark.parametrize(("package", "name"), LISTED)
def test_a_file_imports_only_from_those_before_it(package, name):
    path = ROOT / package / f"{name.replace('.', '/')}.py"
    before = [f"{package}.{earlier}" for earlier in ORDER[package][: ORDER[package].index(name)]]
    own = {imported for imported in imports(path) if within(imported, package)}
    assert not {imported for imported in own if not any(within(imported, earlier) for earlier in before)}


@pytest.mark.parametrize("package", ORDER)
def test_every_top_level_file_has_a_place_in_the_order(package):
    files = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert files == {name for name in ORDER[package] if "." not in name}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_no_file_may_do(path):
    imported = imports(path)
    if path.name not in {"oracle.py", "plain_app.py"}:  # which measure by it
        assert not any(within(name, "torchvision.models.detection") for name in imported)
    assert path.stem not in {"utils", "util", "helpers", "common"}
    if path.is_relative_to(ROOT / "model"):
        assert not any(within(name, package) for name in imported for package in ("service", "typer"))
    elif path.name not in {"detector.py", "schemas.py", "images.py", "image_files.py"} and path.parent.name != "cli":
        assert not any(within(name, "model") for name in imported)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    """A file of weights is data: no pickle but torch's own reader of tensors, and no eval."""
    imported = imports(path)
    assert not any(within(name, module) for name in imported for module in ("marshal", "shelve", "dill"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads"}
        if called == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True"


@pytest.mark.parametrize("name", ORDER["service"][: ORDER["service"].index("app")])
def test_no_request_makes_the_service_fetch_anything(name):
    imported = imports(ROOT / "service" / f"{name.replace('.', '/')}.py")
    assert not any(
        within(one, module) for one in imported for module in ("httpx", "requests", "urllib.request", "http.client")
    )
