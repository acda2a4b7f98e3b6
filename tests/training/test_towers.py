"""The towers: causal, independent of padding, the same exported as eager, sensible for new items."""

import numpy as np
import pytest
import torch
from torch import Tensor

from training.config import TowerConfig
from training.data.catalogue import Catalogue, build_catalogue
from training.export.bundle import export_item_tower, export_user_tower, golden_items, golden_users
from training.towers.pair import TowerPair
from training.towers.user import UserTower

DIM, LONGEST = 8, 6
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def user_tower(blocks: int = 2, time_features: bool = True) -> UserTower:
    """Random weights everywhere, biases too, so that nothing passes by being zero."""
    torch.manual_seed(0)
    tower = UserTower(
        dim=DIM,
        history_length=LONGEST,
        event_types=2,
        time_features=time_features,
        blocks=blocks,
        heads=2,
        hidden=16,
        dropout=0.5,
    )
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return tower.eval()


def histories(rows: int = 5, width: int = LONGEST, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    items = torch.nn.functional.normalize(torch.randn(rows, width, DIM, generator=generator), dim=-1)
    kind = torch.randint(0, 3, (rows, width), generator=generator)
    gaps = 10 ** (torch.rand(rows, width, generator=generator) * 6)
    length = torch.arange(rows) % width + 1
    return padded(items, kind, gaps, length)


def padded(items: Tensor, kind: Tensor, gaps: Tensor, length: Tensor) -> Inputs:
    """The contract's form: zeros after each row's length, seconds counted from its newest event."""
    place = torch.arange(items.shape[1])
    real = place < length[:, None]
    gaps = torch.where(place < length[:, None] - 1, gaps, 0.0)
    seconds = gaps.flip(1).cumsum(1).flip(1)
    return items * real[..., None], kind * real, seconds * real, length


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("time_features", [True, False])
def test_what_is_served_equals_the_last_position_of_what_is_trained(blocks: int, time_features: bool) -> None:
    tower = user_tower(blocks, time_features)
    items, kind, seconds, length = histories()
    rows = torch.arange(len(length))
    trained = tower.all_positions(items, kind, seconds)[rows, length - 1]
    torch.testing.assert_close(tower(items, kind, seconds, length), trained, atol=1e-5, rtol=0)


def test_a_later_event_does_not_change_an_earlier_position() -> None:
    tower = user_tower()
    items, kind, seconds, _ = histories(1)
    before = tower.all_positions(items, kind, seconds)
    items[:, 4:], kind[:, 4:] = -items[:, 4:], 1
    after = tower.all_positions(items, kind, seconds)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_result_does_not_depend_on_padding_or_on_what_it_holds(blocks: int) -> None:
    tower = user_tower(blocks)
    items, kind, seconds, length = histories()
    together = tower(items, kind, seconds, length)
    for row, size in enumerate(length.tolist()):
        part = slice(row, row + 1)
        alone = tower(items[part, :size], kind[part, :size], seconds[part, :size], length[part])
        torch.testing.assert_close(alone, together[part], atol=1e-5, rtol=0)
    real = torch.arange(LONGEST) < length[:, None]
    noisy = torch.where(real[..., None], items, 1e3)
    torch.testing.assert_close(tower(noisy, kind, seconds, length), together, atol=1e-5, rtol=0)


def test_a_row_without_events_gives_numbers() -> None:
    items, kind, seconds, length = histories()
    assert torch.isfinite(user_tower()(items, kind, seconds, torch.zeros_like(length))).all()


def test_times_and_event_types_matter_where_the_tower_has_them() -> None:
    items, kind, seconds, length = histories()
    later = torch.where(seconds > 0, seconds * 1000, 0.0)
    timed, untimed = user_tower(), user_tower(time_features=False)
    assert not torch.allclose(timed(items, kind, seconds, length)[2:], timed(items, kind, later, length)[2:], atol=1e-3)
    torch.testing.assert_close(untimed(items, kind, seconds, length), untimed(items, kind, later, length))
    assert not torch.allclose(timed(items, kind, seconds, length), timed(items, 2 - kind, seconds, length), atol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("time_features", [True, False])
def test_the_exported_user_tower_equals_the_eager_one_for_every_batch_and_length(blocks: int, time_features: bool) -> None:
    tower = user_tower(blocks, time_features)
    exported = export_user_tower(tower, dim=DIM, history_length=LONGEST).module()
    for rows, width in ((1, 1), (1, LONGEST), (2, 1), (3, 2), (7, LONGEST)):
        inputs = histories(rows, width)
        found = exported(*inputs)
        torch.testing.assert_close(found, tower(*inputs), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(rows))


def catalogue(text_dim: int = 4) -> Catalogue:
    import pyarrow as pa

    random = np.random.default_rng(0)
    lists = [["a", "b"], ["a"], [], ["b", "c"], ["c"], []]
    text = random.standard_normal((6, text_dim)).astype(np.float32)
    text[5] = 0
    return build_catalogue(pa.table({"categories": lists}), text, category_slots=2)


def pair(text_dim: int = 4, trained: list[bool] | None = None) -> TowerPair:
    torch.manual_seed(0)
    return TowerPair(
        catalogue(text_dim),
        TowerConfig(dim=DIM, history_length=LONGEST, hidden=16),
        event_types=2,
        time_features=True,
        dropout=0.1,
        trained=np.array(trained or [True] * 6),
    ).eval()


@pytest.mark.parametrize("text_dim", [0, 4])
def test_the_exported_item_tower_equals_the_eager_one_with_and_without_text(text_dim: int) -> None:
    both = pair(text_dim)
    exported = export_item_tower(both.item, dim=DIM, text_dim=text_dim, slots=2).module()
    for rows in (1, 2, 6):
        inputs = (both.text[:rows], both.codes[:rows], both.residuals()[:rows])
        torch.testing.assert_close(exported(*inputs), both.item(*inputs), atol=1e-5, rtol=0)


def test_a_new_item_is_placed_by_text_and_categories_and_one_with_nothing_still_has_a_unit_vector() -> None:
    tower = pair().item
    text, none = catalogue().text, torch.zeros(1, DIM)
    codes = torch.tensor([[1, 0], [3, 0]])
    placed = [tower(torch.from_numpy(text[:1]), codes[row : row + 1], none) for row in range(2)]
    assert float((placed[0] * placed[1]).sum().detach()) < 0.999
    empty = tower(torch.zeros(1, 4), torch.zeros(1, 2, dtype=torch.int64), none)
    torch.testing.assert_close(empty.norm(dim=1), torch.ones(1))


def test_items_without_training_events_have_residual_zero() -> None:
    both = pair(trained=[True, False, True, True, False, True])
    zero = (both.residuals() == 0).all(dim=1)
    assert zero.tolist() == [False, True, False, False, True, False]


def test_only_items_with_text_or_categories_can_lose_their_residual_in_training() -> None:
    assert pair().droppable[:, 0].tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("time_features", [True, False])
def test_golden_rows_cover_every_length_event_type_and_kind_of_item(time_features: bool) -> None:
    both = pair()
    users = golden_users(both, history_length=LONGEST, event_types=2, time_features=time_features, seed=0)
    assert users.length.tolist() == list(range(1, LONGEST + 1))
    real = np.arange(LONGEST) < users.length[:, None]
    assert set(users.event_type[real].tolist()) == {0, 1, 2}
    assert not users.history[~real].any() and not users.seconds_before_newest[~real].any()
    assert bool(users.seconds_before_newest.any()) == time_features
    items = golden_items(both, seed=0)
    assert (items.categories == 0).all(axis=1).any() and (items.residual == 0).all(axis=1).any()
    assert np.allclose(np.linalg.norm(items.vectors, axis=1), 1, atol=1e-5)


def test_categories_beyond_the_slots_are_cut_and_codes_follow_name_order() -> None:
    built = catalogue()
    assert built.vocabulary == {"a": 1, "b": 2, "c": 3}
    assert built.codes.tolist() == [[1, 2], [1, 0], [0, 0], [2, 3], [3, 0], [0, 0]]
    assert built.has_content.tolist() == [True] * 5 + [False]
