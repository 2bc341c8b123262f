"""House rules that a machine can check: imports go one way, the command line is light, no catch-all below the edges."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "libremoe"

# Who may import whom, leftmost first: a module imports only from layers to its right (docs/architecture.md).
LAYERS = [
    {"cli"},
    {"run", "throughput", "chat", "server", "train", "evals", "plan"},
    {"language_model"},
    {"pieces"},
    {"engine"},
    {"forecast", "convert", "verify", "inspect", "tiny", "machine"},
    {"loading"},
    {"model", "sampling", "constrain"},
    {"tokenizer"},
    {"ops", "weights"},
    {"streaming"},
    {"routing"},
    {"experts", "batch", "direct_read", "eviction"},
    {"quant", "config", "sandbox", "live"},
    {"errors", "french", "progress", "memory", "answer_file", "_kernels"},
]
WITHOUT_TORCH = ["cli", "config", "errors", "eviction", "chat.message", "chat.conversation", "chat.store",
                 "chat.markdown", "server.schema", "server.keys", "evals.flags", "live.citations"]


# The tokenizers library raises Exception itself, nothing narrower; whatever one sequence raises ends that sequence
# only. The programs that start, call or test untrusted code inside the sandbox report whatever that code raises.
MAY_CATCH_ALL = {"server", "cli.py", "tokenizer_hf.py", "engine/runner.py", "engine/threaded.py", "sandbox/launcher.py",
                 "evals/grader_answer.py", "evals/grader_tests.py", "evals/grader_wire.py"}


def _name(module: str) -> str:
    """tokenizer_hf and tokenizer_spm are tokenizer's two halves."""
    return "tokenizer" if module.startswith("tokenizer_") else module


def _layer(module: str) -> int:
    for i, names in enumerate(LAYERS):
        if module in names:
            return i
    raise AssertionError(f"libremoe.{module} stands in no layer of this test: decide where it belongs")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("libremoe"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("libremoe.")}
    return {_name(module) for module in found}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    module = _name(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    if module == "__init__":
        return
    own = _layer(module)
    for imported in _imports(path) - {module}:
        assert _layer(imported) >= own, f"{path.name} imports libremoe.{imported}, which stands to its left"


def test_same_layer_imports_make_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = _name(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        if module != "__init__":
            graph.setdefault(module, set()).update(_imports(path) - {module})
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in graph.get(module, set()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_stays_out(module: str) -> None:
    code = f"import sys, libremoe.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_catch_all_below_the_edges() -> None:
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] in MAY_CATCH_ALL or str(relative) in MAY_CATCH_ALL:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                assert not caught & {"Exception", "BaseException", "everything"}, f"{relative}:{node.lineno}"
