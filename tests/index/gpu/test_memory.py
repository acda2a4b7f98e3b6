"""The memory plan: every part, the sum, and a refusal that says what to do."""

from dataclasses import replace

import pytest

from index.gpu.memory import (
    CONTEXT_BYTES,
    GIB,
    MIB,
    SCORES_BYTES,
    TOWER_BYTES,
    MemoryPlan,
    MemoryPlanError,
    Needs,
    faiss_temporary_bytes,
    free_bytes,
    plan_memory,
)

NEEDS = Needs(
    items=10_000_000, dim=128, dtype_bytes=2, growth=1.5, padded=8, releases=2, max_batch=64, chunk_rows=2**20, faiss=True
)


def sizes(plan: MemoryPlan) -> dict[str, int]:
    return {part.name: part.size for part in plan.parts}


def test_rows_come_in_whole_chunks():
    assert NEEDS.rows == 15 * 2**20, "15 million, rounded up"
    assert replace(NEEDS, items=0).rows == 0
    assert replace(NEEDS, items=1).rows == 2**20
    assert replace(NEEDS, items=2**20, growth=1.0).rows == 2**20


def test_every_part_is_the_product_that_it_says():
    rows = NEEDS.rows
    found = sizes(plan_memory(NEEDS, device="cuda:0"))
    assert found["item vectors"] == 2 * rows * (128 + 8) * 2
    assert found["biases of exact search"] == 2 * rows * 4
    assert found["room for scores"] == 2 * SCORES_BYTES
    assert found["user towers"] == 2 * TOWER_BYTES
    assert found["a filter's bias"] == rows * 5
    assert found["CUDA's context and libraries"] == CONTEXT_BYTES
    assert found["FAISS's temporary memory"] == faiss_temporary_bytes(NEEDS)
    plan = plan_memory(NEEDS, device="cuda:0")
    assert plan.total == sum(found.values())
    assert found["filter masks"] == 2 * 4 * rows * 4
    assert "inverted lists" not in found, "nobody asked for them"


def test_halving_the_type_halves_the_vectors_and_one_release_less_is_one_less():
    wide = sizes(plan_memory(replace(NEEDS, dtype_bytes=4), device="cuda"))["item vectors"]
    narrow = sizes(plan_memory(NEEDS, device="cuda"))["item vectors"]
    alone = sizes(plan_memory(replace(NEEDS, releases=1), device="cuda"))["item vectors"]
    assert wide == 2 * narrow == 4 * alone


def test_masks_and_lists_are_counted_where_they_are():
    plan = sizes(plan_memory(replace(NEEDS, masks=64, ivf=True, faiss=False), device="cpu"))
    assert plan["filter masks"] == 2 * 64 * NEEDS.rows * 4
    assert plan["inverted lists"] == 4 * 15_000_000 * (2 * (2 * 128 + 8) + 40)
    assert "CUDA's context and libraries" not in plan


@pytest.mark.parametrize("max_batch", [1, 16, 64, 512, 1024])
def test_faisss_temporary_memory_grows_with_the_batch_and_is_capped_where_faiss_caps_it(max_batch: int):
    size = faiss_temporary_bytes(replace(NEEDS, max_batch=max_batch))
    assert size <= 1536 * MIB
    tile_rows = GIB // (2 * 2) // 512
    assert size == min(2 * min(max_batch, 512) * (tile_rows * 4 + 2 * 2048 * 12) + 16 * MIB, 1536 * MIB)


def test_what_fits_is_let_through_and_one_byte_less_is_refused():
    plan = plan_memory(NEEDS, device="cuda:0")
    plan.check(plan.total)
    with pytest.raises(MemoryPlanError):
        plan.check(plan.total - 1)


def test_the_refusal_has_the_sum_every_part_and_what_to_do_in_one_line():
    plan = plan_memory(replace(NEEDS, dtype_bytes=4), device="cuda:0")
    with pytest.raises(MemoryPlanError) as caught:
        plan.check(8 * GIB)
    message = str(caught.value)
    assert message.startswith(f"cuda:0 has 8.00 GiB free and the index needs {plan.total / GIB:.2f} GiB: ")
    assert all(f"{part.name} {part.size / GIB:.2f} GiB ({part.how})" in message for part in plan.parts)
    assert "2 releases x 15,728,640 rows x 136 x 4 bytes" in message
    for cure in ("keep rows as float16", "less growth than 1.5 times", "fewer than 64 requests together"):
        assert cure in message
    assert "\n" not in message


def test_no_cure_is_offered_that_was_taken_already():
    plan = plan_memory(replace(NEEDS, growth=1.0, max_batch=1), device="cuda:0")
    with pytest.raises(MemoryPlanError, match=r"To make it fit: take a device with more memory$"):
        plan.check(0)


def test_the_table_has_a_line_for_every_part_and_the_sum():
    plan = plan_memory(NEEDS, device="cuda:0")
    lines = plan.table().splitlines()
    assert len(lines) == len(plan.parts) + 1
    assert lines[-1].split() == ["sum", f"{plan.total / GIB:.2f}", "GiB"]


@pytest.mark.parametrize("wrong", [{"items": -1}, {"dim": 0}, {"dtype_bytes": 8}, {"growth": 0.5}, {"releases": 0}])
def test_needs_that_make_no_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="make no sense"):
        plan_memory(replace(NEEDS, **wrong), device="cpu")


def test_the_machines_own_memory_can_be_asked_for():
    assert 0 < free_bytes("cpu") < 2**50
