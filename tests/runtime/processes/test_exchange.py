"""What three processes tell each other, one of them without samples, is what one process knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunetaylor.core.errors import DataError, PeerError
from prunetaylor.runtime.processes import exchange, group
from support.processes import run_in_processes

Found = dict[str, Any]


def words() -> Found:
    rank = group.rank()
    own = torch.arange(group.own_range(5).start, group.own_range(5).stop)
    sums = {"a": torch.full((2, 3), 1.0 + rank, dtype=torch.float64), "b": torch.tensor([rank])}
    kept = {"x": torch.arange(12.0).view(3, 4).mT + rank, "flag": torch.tensor([True, False])}
    moved = torch.full((3, 2), float(rank)).mT
    exchange.copy_from_main([moved, flags := torch.tensor([rank == 0, rank == 1])])
    return {
        "place": (rank, group.world(), group.main_process()),
        "mine": [list(group.own_range(n)) for n in (0, 2, 3, 7)],
        "sum": exchange.all_sum(sums),
        "unknown": exchange.all_sum({} if rank != 1 else {"only": torch.tensor([2.5])}),
        "order": list(exchange.all_sum({name: torch.zeros(1) for name in ("bc", "ab", "a")[rank]})),
        "numbers": exchange.sum_numbers(0.1, rank),
        "first": exchange.from_first_owner({} if rank == 0 else {"x": torch.tensor([float(rank)])}),
        "rows": exchange.gather_rows(torch.stack([own, own**2], 1)),
        "flags": exchange.gather_rows((own if rank else own[:0]) % 2 == 0),
        "nothing": exchange.gather_rows(torch.zeros(0, 4)),
        "late": exchange.gather_rows(torch.ones(1, 2, dtype=torch.int16) if rank == 2 else torch.zeros(0)),
        "main": exchange.from_main({"said by": rank}),
        "long": [len(one) for one in group.gather_objects("x" * 300 * rank)],
        "least": (exchange.minimum([5, None, 3][rank]), exchange.minimum(None)),
        "kept": exchange.tensors_from_main(kept if rank == 0 else None),
        "none": exchange.tensors_from_main(None),
        "moved": moved,
        "moved flags": flags,
        "failing": failing(),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return run_in_processes("test_exchange:words", tmp_path_factory.mktemp("words"), 3)


def test_places(found: list[Found]) -> None:
    assert [one["place"] for one in found] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for i, n in enumerate((0, 2, 3, 7)):
        parts = [one["mine"][i] for one in found]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def same(found: list[Found], name: str) -> Any:
    """What all of them have, to the bit."""
    for other in found[1:]:
        torch.testing.assert_close(other[name], found[0][name], rtol=0, atol=0)
    return found[0][name]


def test_sums(found: list[Found]) -> None:
    sums = same(found, "sum")
    torch.testing.assert_close(sums["a"], torch.full((2, 3), 6.0, dtype=torch.float64), rtol=0, atol=0)
    assert sums["b"].tolist() == [3]
    assert same(found, "unknown")["only"].tolist() == [2.5]
    assert [one["order"] for one in found] == [["b", "c", "a"]] * 3
    assert same(found, "numbers") == pytest.approx([0.3, 3])
    assert same(found, "first")["x"].tolist() == [1.0]


def test_rows(found: list[Found]) -> None:
    numbers = torch.arange(5)
    torch.testing.assert_close(same(found, "rows"), torch.stack([numbers, numbers**2], 1))
    assert same(found, "flags").tolist() == [True, False, True]
    assert same(found, "nothing").shape == (0, 4)
    late = same(found, "late")
    assert (late.dtype, late.tolist()) == (torch.int16, [[1, 1]])


def test_the_main_process_s_word(found: list[Found]) -> None:
    assert same(found, "main") == {"said by": 0}
    assert same(found, "least") == (3, None)
    assert same(found, "long") == [0, 300, 600]
    kept = same(found, "kept")
    assert all(one["kept"]["x"].stride() == (1, 4) for one in found)
    torch.testing.assert_close(kept["x"], torch.arange(12.0).view(3, 4).mT)
    assert kept["flag"].tolist() == [True, False]
    assert same(found, "none") is None
    assert same(found, "moved").tolist() == [[0.0] * 3] * 2
    assert same(found, "moved flags").tolist() == [True, False]


def failing() -> tuple[type, str, str, int, bool]:
    """The second of all fails where the others wait for it; what each of them gets."""
    try:
        if group.rank() == 1:
            raise DataError("sample 3 cannot be read" + 300 * "!", "mend it")
        exchange.gather_rows(torch.zeros(2))
    except DataError as error:
        told = group._tell_others(error)
        return type(error), error.cause, error.remedy, error.exit_code, told
    except PeerError as error:
        return type(error), error.cause, error.remedy, error.exit_code, error.silent
    raise AssertionError


def test_an_error_of_one_is_everybody_s(found: list[Found]) -> None:
    cause = "sample 3 cannot be read" + 300 * "!"
    assert [one["failing"] for one in found] == [
        (PeerError, f"process 1 of 3: {cause}", "mend it", 2, False),
        (DataError, cause, "mend it", 2, True),
        (PeerError, f"process 1 of 3: {cause}", "mend it", 2, True),
    ]


def test_buckets_keep_the_order_and_the_types_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 100)
    sizes = [(10, torch.float32), (10, torch.float32), (10, torch.float32), (3, torch.float64), (500, torch.float64)]
    tensors = [torch.zeros(n, dtype=kind) for n, kind in sizes]
    parts = list(exchange._buckets(tensors))
    assert [len(part) for part in parts] == [2, 1, 1, 1]
    assert [id(t) for part in parts for t in part] == [id(t) for t in tensors]
    assert list(exchange._buckets([])) == []


def test_alone_everything_is_what_it_was() -> None:
    x: Tensor = torch.tensor([[1.0, 2.0]])
    assert (group.rank(), group.world(), group.local_world(), group.main_process()) == (0, 1, 1, True)
    assert group.place() is None
    assert group.own_range(7) == range(7)
    assert exchange.all_sum({"x": x})["x"] is x
    assert exchange.gather_rows(x) is x
    assert exchange.from_main(x) is x
    assert exchange.sum_numbers(1.5, 2) == [1.5, 2]
    assert exchange.tensors_from_main(None) is None
    assert exchange.from_first_owner({"x": x})["x"] is x
    exchange.copy_from_main([x])
    with group.joined(None):
        assert group.world() == 1
