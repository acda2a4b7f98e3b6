"""A tower's JSON becomes Python that torch executes: what could be code is refused before torch sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from index.bundle import BundleError, BundleInvalidError
from index.bundle.operators import is_allowed
from tests.index.bundle.tampering import (
    PROGRAM,
    edit_json,
    edit_tower,
    tower_refusal,
)


def first_node(program: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = program["graph_module"]["graph"]["nodes"][0]
    return node


def test_code_in_a_shape_expression_is_refused_and_never_run(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    put_code_in_a_shape(bundle, mark)
    assert "expr_str" in tower_refusal(bundle)
    assert not mark.exists()


def test_torch_itself_runs_code_in_a_shape_expression(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    tower = put_code_in_a_shape(bundle, mark)
    with contextlib.suppress(Exception):
        torch.export.load(tower)
    assert mark.exists()


def put_code_in_a_shape(bundle: Path, mark: Path) -> Path:
    code = f"__import__('pathlib').Path('{mark}').touch()"

    def edit(program: dict[str, Any]) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["history"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = code

    return edit_tower(bundle, edit_json(PROGRAM, edit))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.mylib.steal.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.os.system",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.__class__.mro",
        "_operator.attrgetter",
        "_operator.__class__",
        "math.trunc",
        "#extension:op",
        "torch.ops.aten.add.Tensor\n",
        "",
    ],
)
def test_an_operator_off_the_list_is_refused(bundle: Path, target: str) -> None:
    edit_tower(bundle, edit_json(PROGRAM, lambda program: first_node(program).update(target=target)))
    assert "operators" in tower_refusal(bundle)
    assert not is_allowed(target)


def add_guard(program: dict[str, Any]) -> None:
    program["guards_code"] = ["__import__('os').getcwd()"]


def rename_node(program: dict[str, Any]) -> None:
    first_node(program)["name"] = "x = __import__('os').getcwd(); y"


def keyword_node(program: dict[str, Any]) -> None:
    first_node(program)["name"] = "lambda"


def rename_argument(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"][0] = "history=__import__('os').getcwd()"


def rename_parameter(program: dict[str, Any]) -> None:
    spec = program["graph_module"]["signature"]["input_specs"][0]
    spec["parameter"]["parameter_name"] = "a.__class__.b"


def enum_context(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    context = '{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\", \\"name\\": \\"y\\"}'
    signature["in_spec"] = f'[1, {{"type": "builtins.tuple", "context": "{context}", "children_spec": []}}]'


def foreign_tree(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = '[1, {"type": "collections.namedtuple", "context": "null", "children_spec": []}]'


def function_argument(program: dict[str, Any]) -> None:
    first_node(program)["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}


def custom_class(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["custom_obj_values"] = {"obj": {"name": "obj", "class_fqn": "a.B"}}


def source_paths(program: dict[str, Any]) -> None:
    first_node(program)["metadata"] = {"stack_trace": 'File "model.py", line 1'}


def symbol_with_code(program: dict[str, Any]) -> None:
    program["range_constraints"]["__import__('os')"] = {"min_val": 1, "max_val": 2}


def long_expression(program: dict[str, Any]) -> None:
    sizes = program["graph_module"]["graph"]["tensor_values"]["history"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "Pow(Integer(9), Pow(Integer(9), Integer(9)))"


@pytest.mark.parametrize(
    "edit",
    [
        add_guard,
        rename_node,
        keyword_node,
        rename_argument,
        rename_parameter,
        enum_context,
        foreign_tree,
        function_argument,
        custom_class,
        source_paths,
        symbol_with_code,
        long_expression,
    ],
)
def test_text_that_could_become_code_is_refused(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    edit_tower(bundle, edit_json(PROGRAM, edit))
    tower_refusal(bundle)


def test_a_tower_tied_to_a_gpu_is_refused_with_the_way_out(bundle: Path) -> None:
    def edit(program: dict[str, Any]) -> None:
        device = program["graph_module"]["graph"]["tensor_values"]["history"]["device"]
        device.update(type="cuda", index=0)

    edit_tower(bundle, edit_json(PROGRAM, edit))
    assert "move_to_device_pass" in tower_refusal(bundle)


@pytest.mark.parametrize("program", [b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_program_that_is_no_object_is_refused(bundle: Path, program: bytes) -> None:
    edit_tower(bundle, lambda members: members.update({PROGRAM: program}))
    tower_refusal(bundle, BundleError)


@pytest.mark.parametrize("depth", [500, 900, 960, 980, 990, 995, 2_000])
def test_deeply_nested_json_is_refused_without_a_traceback(bundle: Path, depth: int) -> None:
    program = b'{"a":' * depth + b"1" + b"}" * depth
    edit_tower(bundle, lambda members: members.update({PROGRAM: program}))
    tower_refusal(bundle, BundleError)


def test_a_graph_that_torch_cannot_load_is_refused_without_a_traceback(bundle: Path) -> None:
    edit_tower(bundle, edit_json(PROGRAM, lambda program: program.update(schema_version={"major": 99, "minor": 0})))
    assert "export" in tower_refusal(bundle, BundleInvalidError)


def test_a_program_of_wrong_types_is_refused_without_a_traceback(bundle: Path) -> None:
    edit_tower(bundle, edit_json(PROGRAM, lambda program: program["graph_module"]["module_call_graph"][0].update(fqn=7)))
    tower_refusal(bundle, BundleInvalidError)
