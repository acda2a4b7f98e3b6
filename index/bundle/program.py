"""The JSON inside a tower's .pt2, read with suspicion.

torch turns this JSON into Python source and executes it: names become variables (`exec` of the graph's code), shape
expressions go through `sympy.sympify` (`eval`), guards are executed as they stand, operator names are followed from
the `torch` module by getattr. So every string must match the pattern of its key, and everything else is refused.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

from index.bundle.errors import BundleUnsafeError
from index.bundle.operators import is_allowed

_CURE = "export the tower again from plain torch operators on the CPU and write it with index.bundle.write_bundle"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_EMPTY_OR_NAME = re.compile(rf"(?:{_NAME.pattern})?")
_DOTTED = re.compile(r"(?:(?!__)[A-Za-z0-9_]{1,255}(?:\.(?!__)[A-Za-z0-9_]{1,255})*)?")
_VERSION = re.compile(r"[A-Za-z0-9.+]{0,64}")
_FLOAT = re.compile(r"-?Infinity|NaN")
_MODE = re.compile(r"[A-Za-z0-9_.,>\- ]{0,256}")  # "tanh", "sum", an einsum equation

_SYMBOL = r"Symbol\('[A-Za-z_][A-Za-z0-9_]{0,63}'(?:, (?:positive|nonnegative|integer|real)=(?:True|False)){0,4}\)"
_NUMBER = (
    r"Integer\(-?[0-9]{1,19}\)|Rational\(-?[0-9]{1,19}, [1-9][0-9]{0,18}\)"
    r"|Float\('-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:e[+-]?[0-9]{1,3})?', precision=53\)"
)
_FUNCTIONS = (
    "Add|Mul|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv|CeilDiv|IntTrueDiv|FloatTrueDiv|ToFloat|Identity"
    "|Equality|Unequality|Eq|Ne|GreaterThan|StrictGreaterThan|LessThan|StrictLessThan|Ge|Gt|Le|Lt|And|Or|Not"
)
_EXPRESSION = re.compile(rf"(?:{_SYMBOL}|Pow\({_SYMBOL}, Integer\([1-8]\)\)|{_NUMBER}|(?:{_FUNCTIONS})\(|\)|, |true|false)+")
_EXPRESSION_CHARS = 2_000

_PATTERNS = {
    "expr_str": _EXPRESSION,
    "fqn": _DOTTED,
    "parameter_name": _DOTTED,
    "buffer_name": _DOTTED,
    "tensor_constant_name": _DOTTED,
    "torch_version": _VERSION,
    "as_float": _FLOAT,
    "as_floats": _FLOAT,
    "as_string": _MODE,
    "as_strings": _MODE,
    "name": _EMPTY_OR_NAME,
}
# Custom classes, functions as arguments, graphs inside graphs, effect tokens: nothing a tower needs.
_REFUSED_KEYS = frozenset(("as_custom_obj", "as_operator", "as_graph", "as_string_to_argument", "custom_obj", "token"))
_EMPTY_KEYS = ("metadata", "guards_code", "custom_obj_values", "treespec_namedtuple_fields")
_TREE_TYPES = (None, "builtins.tuple", "builtins.list")


def plain_program(program: Any) -> Any:
    """A copy of model.json without what a bundle does not keep: source paths and guards."""
    if isinstance(program, list):
        return [plain_program(value) for value in program]
    if not isinstance(program, dict):
        return program
    plain = {key: plain_program(value) for key, value in program.items()}
    if isinstance(plain.get("metadata"), dict):
        plain["metadata"] = {}
    if isinstance(plain.get("guards_code"), list):
        plain["guards_code"] = []
    return plain


def check_program(program: Any, file: str) -> None:
    """Raise BundleUnsafeError for a model.json with more than allowed operators, plain names and CPU devices."""
    if not isinstance(program, dict):
        raise BundleUnsafeError(file, "models/model.json is not an object", _CURE)
    _walk(program, "", file)


def check_payload_config(config: Any, file: str, member: str, sizes: Mapping[str, int]) -> None:
    """Refuse a weights or constants table with pickles, or with entries that have no member in the archive.

    `sizes` are the bytes of every member of the archive.
    """
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict) or len(config) != 1:
        raise BundleUnsafeError(file, f"{member} is not a table of tensors", _CURE)
    folder, _, _ = member.rpartition("/")
    pattern = re.compile(r"weight_[0-9]{1,6}" if folder.endswith("weights") else r"tensor_[0-9]{1,6}")
    for name, entry in entries.items():
        where = f"{member} entry {name[:80]!r}"
        if not name or not _DOTTED.fullmatch(name) or not isinstance(entry, dict):
            raise BundleUnsafeError(file, f"{where} is not a plain tensor", _CURE)
        if entry.get("use_pickle") is not False:
            raise BundleUnsafeError(file, f"{where} is pickled, which torch would execute", _CURE)
        path, meta = entry.get("path_name"), entry.get("tensor_meta")
        if not isinstance(path, str) or not pattern.fullmatch(path) or f"{folder}/{path}" not in sizes:
            raise BundleUnsafeError(file, f"{where} points to {str(path)[:80]!r}, not to a tensor of the file", _CURE)
        _check_tensor_meta(meta, file, where, sizes[f"{folder}/{path}"])


def _check_tensor_meta(meta: Any, file: str, where: str, size: int) -> None:
    if not isinstance(meta, dict):
        raise BundleUnsafeError(file, f"{where} has no shape", _CURE)
    _walk(meta, "tensor_meta", file)
    sizes = meta.get("sizes")
    if not isinstance(sizes, list) or not all(
        isinstance(dim, dict) and list(dim) == ["as_int"] and type(dim["as_int"]) is int and dim["as_int"] >= 0 for dim in sizes
    ):
        raise BundleUnsafeError(file, f"{where} has no fixed shape", _CURE)
    # torch fills a member of no bytes with zeros of the declared shape, however large that is.
    if size == 0 and math.prod(dim["as_int"] for dim in sizes) != 0:
        raise BundleUnsafeError(file, f"{where} declares a shape but has no bytes", _CURE)


def _walk(value: Any, key: str, file: str) -> None:
    if isinstance(value, str):
        _check_string(value, key, file)
    elif isinstance(value, list):
        for part in value:
            _walk(part, key, file)
    elif isinstance(value, dict):
        if key in ("device", "as_device") and value.get("type", "cpu") != "cpu":
            problem = f"is tied to device {str(value.get('type'))[:20]!r}, a bundle's towers are device-neutral"
            raise BundleUnsafeError(file, problem, "use torch.export.passes.move_to_device_pass(program, 'cpu') first")
        for name, part in value.items():
            _check_key(name, part, file)
            _walk(part, name, file)


def _check_key(name: str, part: Any, file: str) -> None:
    if not _NAME.fullmatch(name) or name in _REFUSED_KEYS:
        raise BundleUnsafeError(file, f"graph holds {name[:80]!r}, which a tower may not", _CURE)
    if name in _EMPTY_KEYS and part:
        raise BundleUnsafeError(file, f"graph holds {name}, which a bundle does not keep", _CURE)


def _check_string(value: str, key: str, file: str) -> None:
    if key == "target":
        if not is_allowed(value):
            cure = "use another operator, or add a harmless one to index/bundle/operators.py"
            raise BundleUnsafeError(file, f"graph calls {value[:80]!r}, which is not on the list of operators", cure)
        return
    if key in ("in_spec", "out_spec"):
        allowed = _is_plain_tree(value)
    elif key == "expr_str":
        allowed = len(value) <= _EXPRESSION_CHARS and bool(_EXPRESSION.fullmatch(value))
    else:
        allowed = bool(_PATTERNS.get(key, _NAME).fullmatch(value)) and not keyword.iskeyword(value)
    if not allowed:
        raise BundleUnsafeError(file, f"graph has {key} {value[:80]!r}, which could be code", _CURE)


def _is_plain_tree(text: str) -> bool:
    """Whether a pytree spec is tuples, lists and leaves, plus an empty dict of keyword arguments."""
    try:
        version, spec = json.loads(text)
        return version == 1 and _is_plain_node(spec)
    except (ValueError, TypeError, RecursionError):
        return False


def _is_plain_node(node: Any) -> bool:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        return False
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list):
        return False
    if kind == "builtins.dict":  # the keyword arguments; torch imports modules named in a context
        return context == "[]" and not children
    return kind in _TREE_TYPES and context in (None, "null") and all(_is_plain_node(child) for child in children)
