"""Every name of faiss, cupy and torch that our GPU code uses, looked up in what is installed, with the arguments of each call.

The names are read from the source, so that a call which is added is checked without anybody listing it.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FILES = (
    *(f"index/gpu/{name}.py" for name in ("resources", "knn", "flat", "best", "tiles", "graph", "memory")),
    "index/filters/evaluate.py",
)
_DUMMY = object()


class Used(NamedTuple):
    """One use of a foreign name."""

    where: str  # file:line
    code: str
    problem: str  # "" if it is there and takes these arguments
    signature: str  # "" where there is none to compare with, as for compiled functions


def uses() -> list[Used]:
    """Looks up every use in `FILES`. Raises ImportError where faiss, cupy or torch is missing."""
    faiss, cupy, torch = (importlib.import_module(name) for name in ("faiss", "cupy", "torch"))
    importlib.import_module("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources
    # What an expression of our source stands for. An instance is stood for by its class.
    roots = {
        "faiss": faiss,
        "self._faiss": faiss,
        "self.faiss": resources,
        "self._resources.faiss": resources,
        "self._cupy": cupy,
        "cuda": cupy.cuda,
        "torch": torch,
        "xp": cupy,
        "self._xp": cupy,
    }
    return [one for file in FILES for one in sorted(_uses_in(ROOT / file, roots), key=lambda one: (len(one.where), one.where))]


def _uses_in(path: Path, roots: Mapping[str, Any]) -> Iterator[Used]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    stored = {id(node) for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)}
    seen = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in stored or ast.unparse(node) in roots:
            continue
        code = ast.unparse(called[id(node)]) if id(node) in called else ast.unparse(node)
        owner = _stands_for(node.value, roots)
        if owner is None or code in seen:
            continue
        seen.add(code)
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if not hasattr(owner, node.attr):
            yield Used(where, code, f"{_name(owner)} has no {node.attr}", "")
        elif id(node) in called:
            yield Used(where, code, *_check_call(owner, getattr(owner, node.attr), called[id(node)]))
        else:
            yield Used(where, code, "", "")


def _stands_for(node: ast.expr, roots: Mapping[str, Any]) -> Any:
    """The module, class or function that an expression is, or the class of the instance that it is; None if it is ours."""
    if (root := roots.get(ast.unparse(node))) is not None:
        return root
    if isinstance(node, ast.Attribute):
        owner = _stands_for(node.value, roots)
        return getattr(owner, node.attr, None) if owner is not None else None
    if isinstance(node, ast.Call):
        function = _stands_for(node.func, roots)
        if inspect.isclass(function):
            return function
        if isinstance(node.func, ast.Attribute) and node.func.attr == "from_external":
            return _stands_for(node.func.value, roots)  # a constructor by another name
    return None


def _check_call(owner: Any, function: Any, call: ast.Call) -> tuple[str, str]:
    """What is wrong with a call, and the signature that it was compared with."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "", ""
    positional = [_DUMMY for argument in call.args if not isinstance(argument, ast.Starred)]
    named = {argument.arg: _DUMMY for argument in call.keywords if argument.arg is not None}
    if inspect.isclass(owner) and next(iter(signature.parameters), "") == "self":
        positional.insert(0, _DUMMY)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        return f"{error}; it takes {signature}", str(signature)
    return "", str(signature)


def _name(owner: Any) -> str:
    return str(getattr(owner, "__name__", owner))
