"""Batches: order, content, randomness, workers."""

from dataclasses import replace

import pytest
import torch

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data import augment
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.samples import Batches, DatasetSplit, Inputs, Preprocess, TensorSplit
from prunetaylor.runtime.processes import group
from prunetaylor.runtime.processes.place import Place
from support.samples import tensors


class Jittered(torch.utils.data.Dataset):
    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 11

    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError("torn")
        return torch.rand(3) + index, index


def _tensors(n=10):
    return TensorSplit(torch.arange(n, dtype=torch.float32).view(n, 1), torch.arange(n))


def drawn(of):
    return RowRandom(torch.Generator().manual_seed(0), of)


def _all(batches):
    parts = tensors(batches)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_without_shuffle_every_iteration_is_the_same_and_complete():
    batches = Batches(_tensors(), Preprocess(), batch_size=4, device="cpu")
    assert len(batches) == 3
    assert batches.samples == 10
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    for _ in range(2):
        x, y = _all(batches)
        assert x.flatten().tolist() == list(range(10))
        assert y.tolist() == list(range(10))


def test_shuffle_draws_a_fresh_permutation_each_time_and_repeats_by_seed():
    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        batches = Batches(_tensors(50), Preprocess(), batch_size=8, device="cpu", generator=generator, shuffle=True)
        return [_all(batches)[1].tolist() for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]


def test_drop_last_drops_only_a_partial_batch_and_never_all():
    options = {"batch_size": 4, "device": "cpu", "drop_last": True}
    batches = Batches(_tensors(), Preprocess(), **options)
    assert (len(batches), batches.samples, [len(x) for x, _ in batches]) == (2, 8, [4, 4])
    few = Batches(_tensors(3), Preprocess(), **options)
    assert (len(few), few.samples, [len(x) for x, _ in few]) == (1, 3, [3])


def test_a_generator_is_needed_to_draw():
    with pytest.raises(ValueError, match="give one"):
        Batches(_tensors(), Preprocess(), batch_size=4, device="cpu", shuffle=True)


def test_the_samples_survive_a_network_that_changes_its_input():
    split = _tensors()
    for x, _ in Batches(split, Preprocess(), batch_size=4, device="cpu"):
        x.tensor.zero_()
    assert split.inputs.tensor.flatten().tolist() == list(range(10))


def test_augment_sees_raw_inputs_before_preprocessing():
    split = TensorSplit(torch.full((6, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(6, dtype=torch.long))
    seen = []

    def note(x, draws):
        seen.append(x.dtype)
        return x

    generator = torch.Generator().manual_seed(0)
    batches = Batches(split, Preprocess(), batch_size=6, device="cpu", augment=note, generator=generator)
    torch.testing.assert_close(_all(batches)[0], torch.ones(6, 3, 8, 8))
    assert seen == [torch.uint8]


def test_workers_change_nothing_but_the_speed():
    def epochs(workers, shuffle):
        generator = torch.Generator().manual_seed(5)
        batches = Batches(
            DatasetSplit(Jittered()), Preprocess(), batch_size=4, device="cpu", generator=generator, shuffle=shuffle,
            workers=workers,
        )  # fmt: skip
        return [_all(batches) for _ in range(2)]

    for shuffle in (False, True):
        here, there = epochs(0, shuffle), epochs(2, shuffle)
        for (x, y), (other_x, other_y) in zip(here, there, strict=True):
            torch.testing.assert_close(other_x, x, rtol=0, atol=0)
            assert other_y.tolist() == y.tolist()
        same = torch.equal(here[0][0], here[1][0])
        assert same is not shuffle
    # A fresh epoch draws fresh transforms too, not only another order.
    (x, y), (other_x, other_y) = here
    assert not torch.equal(x[y.argsort()], other_x[other_y.argsort()])


def test_an_error_in_a_worker_keeps_its_cause_and_remedy():
    batches = Batches(DatasetSplit(Jittered(broken=7)), Preprocess(), batch_size=4, device="cpu", workers=1)
    with pytest.raises(DataError, match=r"sample 7 .*ValueError: torn") as caught:
        list(batches)
    assert caught.value.remedy.startswith("fix the data set")
    assert "Traceback" not in str(caught.value)


def prepared(preprocess, raw):
    return preprocess(Inputs.of(raw)).tensor


def test_preprocess_scales_bytes_and_normalises_channels():
    raw = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    torch.testing.assert_close(prepared(Preprocess(), raw), torch.tensor([[[[0.0, 1.0]], [[0.2, 0.4]]]]))
    normalised = prepared(Preprocess((0.5, 0.2), (0.5, 0.1)), raw)
    torch.testing.assert_close(normalised, torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]))
    floats = torch.tensor([[300.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(prepared(Preprocess(), floats), floats.float())
    ids = torch.tensor([[7, 8]])
    assert prepared(Preprocess(), ids).dtype == torch.int64


def test_preprocess_refuses_another_number_of_channels():
    with pytest.raises(DataError, match="3 channels"):
        prepared(Preprocess.from_json("imagenet"), torch.zeros(2, 1, 4, 4))
    with pytest.raises(UsageError, match=r"'imagnet'.*'imagenet'"):
        Preprocess.from_json("imagnet")
    with pytest.raises(UsageError, match="cannot be"):
        Preprocess.from_json({"mean": [0.5]})
    with pytest.raises(UsageError, match="not positive"):
        Preprocess.from_json({"mean": [0.5], "std": [0.0]})


def test_preprocess_round_trips():
    for value in (Preprocess(), Preprocess((0.1, 0.2), (0.3, 0.4))):
        assert Preprocess.from_json(value.to_json()) == value


def test_crop_flip_only_shifts_flips_and_mirrors_at_the_edges():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    out = augment.crop_flip(image.expand(64, 1, 8, 8), drawn(64))
    assert out.shape == (64, 1, 8, 8)
    assert out.dtype == torch.uint8
    padded = torch.nn.functional.pad(image.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    cuts = [padded[0, :, t : t + 8, l : l + 8] for t in range(9) for l in range(9)]  # noqa: E741
    possible = {tuple(c.flatten().tolist()) for cut in cuts for c in (cut, cut.flip(-1))}
    seen = {tuple(o.flatten().tolist()) for o in out}
    assert seen <= possible
    assert len(seen) > 40


def test_flip_mirrors_about_half_and_repeats_by_seed():
    x = torch.rand(200, 3, 4, 4)
    out = augment.flip(x, drawn(len(x)))
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 70 < int(mirrored.sum()) < 130
    torch.testing.assert_close(out, augment.flip(x, drawn(len(x))), rtol=0, atol=0)


def test_larger_images_are_shifted_by_up_to_an_eighth():
    image = torch.arange(80.0).expand(128, 1, 80, 80)
    out = augment.crop_flip(image, drawn(len(image)))
    # The middle column tells the shift: what is mirrored at the edges does not reach it.
    shifts = (out[:, 0, 0, 40] - torch.where(out[:, 0, 0, 40] > out[:, 0, 0, 41], 39, 40)).abs()
    assert int(shifts.max()) == 10
    assert int(shifts.min()) == 0


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images_are_shifted_by_less_than_their_side(side):
    image = torch.arange(side * side).view(1, 1, side, side)
    out = augment.crop_flip(image.expand(32, 1, side, side), drawn(32))
    assert set(out.unique().tolist()) <= set(range(side * side))


def test_resolve_by_kind_of_sample():
    colour, gray, features = (Inputs.of(torch.zeros(1, *shape)) for shape in ((3, 32, 32), (1, 28, 28), (12,)))
    assert augment.load_augmentation("usual", colour) == ("crop-flip", augment.crop_flip)
    assert augment.load_augmentation("usual", gray) == ("none", None)
    assert augment.load_augmentation("usual", features) == ("none", None)
    assert augment.load_augmentation("flip", gray) == ("flip", augment.flip)
    with pytest.raises(UsageError, match="needs images"):
        augment.load_augmentation("flip", features)
    with pytest.raises(UsageError, match="did you mean 'crop-flip'"):
        augment.load_augmentation("crop_flip", colour)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_batches():
    split = TensorSplit(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20))

    def run(device):
        generator = torch.Generator().manual_seed(0)
        return _all(
            Batches(
                split, Preprocess.from_json("cifar10"), batch_size=8, device=device, augment=augment.crop_flip,
                generator=generator, shuffle=True,
            )
        )  # fmt: skip

    (x, y), (other_x, other_y) = run("cpu"), run("cuda")
    torch.testing.assert_close(other_x.cpu(), x)
    assert other_y.tolist() == y.tolist()


def test_cut_mix_pastes_a_box_of_another_image_into_about_half():
    x = torch.arange(400, dtype=torch.int16).view(400, 1, 1, 1).expand(400, 2, 9, 7)
    out = augment.cut_mix(x, drawn(len(x)))
    assert out.dtype == x.dtype
    changed = out != x
    assert 150 < int(changed.flatten(1).any(1).sum()) < 230  # of half, some boxes are empty
    shares = []
    for image, mine, at in zip(out, x, changed, strict=True):
        if not at.any():
            continue
        assert len(image[at].unique()) == 1  # all of one other image
        assert torch.equal(at[0], at[1])
        rows, columns = at[0].any(1).nonzero().flatten(), at[0].any(0).nonzero().flatten()
        box = at[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert torch.equal(image[~at], mine[~at])
        shares.append(float(at.float().mean()))
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    again = augment.cut_mix(x, drawn(len(x)))
    assert torch.equal(again, out)


def _process(monkeypatch, rank, world):
    """This process as one of several, as far as sharing out goes."""
    monkeypatch.setattr(group, "place", lambda: Place(rank, world, rank, world, "", 0, "srun"))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_own_parts_are_all_samples_once_in_order(monkeypatch, world):
    batches = Batches(_tensors(5), Preprocess(), batch_size=2, device="cpu")
    found = []
    for rank in range(world):
        _process(monkeypatch, rank, world)
        parts = list(batches.own())
        assert len(parts) == batches.own_count()
        for start, x, y in parts:
            assert len(y) <= 2
            assert y.tolist() == list(range(start, start + len(x)))
            found += y.tolist()
    assert found == list(range(5))


def test_own_parts_may_be_whole_groups(monkeypatch):
    batches = Batches(_tensors(10), Preprocess(), batch_size=4, device="cpu")
    found = []
    for rank in range(2):
        _process(monkeypatch, rank, 2)
        found.append([(start, len(x)) for start, x, _ in batches.own([0, 3, 9, 10])])
    assert found == [[(0, 4), (4, 4), (8, 1)], [(9, 1)]]


def test_batches_that_are_changed_have_no_own_parts():
    generator = torch.Generator()
    for how in ({"shuffle": True}, {"augment": augment.flip}, {"mix": augment.cut_mix}):
        batches = Batches(_tensors(), Preprocess(), batch_size=4, device="cpu", generator=generator, **how)
        with pytest.raises(ValueError, match="see shards"):
            next(batches.own())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("mix", [None, augment.cut_mix])
@pytest.mark.parametrize("change", [None, augment.crop_flip])
def test_shares_of_all_processes_are_the_batches_of_one(monkeypatch, change, mix, workers):
    """Shuffled, with a last batch of one sample, which leaves the second and third process none."""

    class Images(Jittered):
        def __getitem__(self, index):
            fetched.append(index)
            return torch.rand(1, 8, 8) + index, index

    def epochs(rank, world):
        _process(monkeypatch, rank, world)
        generator = torch.Generator().manual_seed(3)
        batches = Batches(
            DatasetSplit(Images()), Preprocess(), batch_size=5, device="cpu", augment=change, mix=mix,
            generator=generator, shuffle=True, workers=workers,
        )  # fmt: skip
        return [[replace(share, x=share.x.tensor) for share in batches.shards()] for _ in range(2)]

    fetched = []
    wanted = epochs(0, 1)
    fetched.clear()
    parts = []
    for rank in range(3):
        parts.append(epochs(rank, 3))
        if not mix and not workers:
            # A share without rows costs one sample, to see how it looks.
            assert len(fetched) == 2 * (2 + 2 + 1 if rank < 2 else 1 + 1 + 1)
        fetched.clear()
    for epoch in range(2):
        assert [share.batch_size for share in wanted[epoch]] == [5, 5, 1]
        for i, whole in enumerate(wanted[epoch]):
            shares = [part[epoch][i] for part in parts]
            torch.testing.assert_close(torch.cat([share.x for share in shares]), whole.x, rtol=0, atol=0)
            assert torch.cat([share.y for share in shares]).tolist() == whole.y.tolist()
            assert {share.batch_size for share in shares} == {len(whole.x)}
            assert all(share.x.shape[1:] == whole.x.shape[1:] for share in shares)
            assert sum(share.weight for share in shares) == pytest.approx(1)


def test_one_process_has_whole_batches_as_shares():
    plain = Batches(_tensors(), Preprocess(), batch_size=4, device="cpu")
    for (x, y), share in zip(plain, plain.shards(), strict=True):
        torch.testing.assert_close(share.x.tensor, x.tensor)
        assert share.y.tolist() == y.tolist()
        assert (share.batch_size, share.weight) == (len(x), 1.0)
