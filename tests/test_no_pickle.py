"""Nothing that is read can run as a program: no pickle, no remote code, in any module of ours."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "pipeline", "weights", "scripts", "benchmarks")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
UNSAFE = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "multiprocessing",
}
"""Modules that unpickle what they are given, or pass pickles between processes."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {("torch", "load"), ("torch", "hub"), ("yaml", "load"), ("yaml", "unsafe_load")}


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in UNSAFE]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNSAFE:
                found.append(module)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in LOADERS:
                found.append(f"{owner}.{name}")
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(str(node.arg))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reads_pickles_or_runs_what_it_reads(path):
    assert faults(ast.parse(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import multiprocessing.shared_memory",
        "from pickle import loads",
        "import torch\ntorch.load('x', weights_only=True)",
        "f(trust_remote_code=True)",
        "f(allow_pickle=x)",
        "eval('1')",
    ],
)
def test_the_check_sees_what_it_is_for(text):
    assert len(faults(ast.parse(text))) == 1
