"""Files that claim what cannot be: refused before memory is taken, whatever the claim."""

import os
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.network.checkpoint.inspect import inspect_file
from prunetaylor.network.checkpoint.read import read
from prunetaylor.network.checkpoint.torch_format.pickle_machine import MOST_STEPS


def text(said):
    return b"X" + struct.pack("<I", len(said)) + said.encode()


def number(value):
    held = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(held)]) + held


def together(*items):
    return b"(" + b"".join(items) + b"t"


def call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + together(*arguments) + b"R"


def storage(numel=4, *more):
    said = (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(numel), *more)
    return together(*said) + b"Q"


def tensor(size, stride, offset=0, held=None):
    shape, steps = (together(*map(number, one)) for one in (size, stride))
    return call("torch._utils", "_rebuild_tensor_v2", held or storage(), number(offset), shape, steps, b"\x89", b"}")


def named(value):
    return b"\x80\x02}" + text("w") + value + b"s."


def zipped(file, data, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", struct.pack("<4f", 1, 2, 0, 4))
    return file


def legacy(file, data):
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {})]
    tail = pickle.dumps(["0"], 2) + struct.pack("<q4f", 4, 1, 2, 0, 4)
    file.write_bytes(b"".join(head) + data + tail)
    return file


TENSORS = {
    "past its storage": ((4,), (2,)),
    "at an offset": ((4,), (1,), 1),
    "negative size": ((-4,), (1,)),
    "negative stride": ((4,), (-1,), 3),
    "no strides": ((4,), ()),
    "70 dimensions": ((1,) * 70, (1,) * 70),
    "one value, 10**12 times": ((10**6, 10**6), (0, 0)),
    "larger than any memory": ((2**62, 4), (1, 1)),
}


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("claim", TENSORS)
def test_tensors_that_their_storage_cannot_hold_are_refused(tmp_path, claim, write):
    more = (b"N",) if write is legacy else ()
    good = write(tmp_path / "good", named(tensor((2, 2), (2, 1), 0, storage(4, *more))))
    torch.testing.assert_close(read(good).state["w"], torch.tensor([[1.0, 2], [0, 4]]))
    size, stride, *offset = TENSORS[claim]
    file = write(tmp_path / "a.pt", named(tensor(size, stride, *(offset or [0]), storage(4, *more))))
    with pytest.raises(CheckpointRefused):
        inspect_file(file)


def test_a_value_that_is_repeated_a_little_is_read(tmp_path):
    torch.save({"w": torch.tensor([1.0, 2.0]).expand(5, 2)}, tmp_path / "a.pt")
    torch.testing.assert_close(read(tmp_path / "a.pt").state["w"], torch.tensor([[1.0, 2.0]] * 5))


OTHERS = {
    "a storage of a terabyte": tensor((4,), (1,), 0, storage(1 << 38)),
    "a long array": call("builtins", "bytearray", number(10**11)),
    "a class of tensors": call("torch", "FloatTensor", number(10**11)),
    "a size without end": call("torch", "Size", together(number(10**30))),
    "a list copied again and again": b"](" + b"K\x01" * 10**5 + b"e" + (b"q\x01cbuiltins\nset\nh\x01\x85R") * 10**4,
    "nested keys": b"}" + b")q\x01" + b"h\x01h\x01\x86q\x01" * 60 + b"Ns",
    "an extension": b"\x82\x01",
    "a function of ours": b"cprunetaylor.checkpoint.read\nread\n" + together(text("x")) + b"R",
    "nothing on the stack": b"0000",
    "no mark": b"ttt",
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_claims_are_refused(tmp_path, what):
    with pytest.raises(CheckpointRefused):
        inspect_file(zipped(tmp_path / "a.pt", named(OTHERS[what])))


def test_dictionaries_that_hold_each_other_end(tmp_path):
    many = b"".join(text(f"m{n}") + b"h\x01" for n in range(1000))
    with pytest.raises(CheckpointRefused, match="no weights"):
        inspect_file(zipped(tmp_path / "a.pt", b"\x80\x02}q\x01(" + many + b"u."))
    deep = b"\x80\x02" + (b"}" + text("model")) * 10**5 + b"}" + b"s" * 10**5 + b"."
    with pytest.raises(CheckpointRefused, match="no weights"):
        inspect_file(zipped(tmp_path / "a.pt", deep))


def test_more_instructions_than_any_network_has(tmp_path):
    with pytest.raises(CheckpointRefused, match="steps") as caught:
        inspect_file(zipped(tmp_path / "a.pt", b"\x80\x02" + b"N" * (MOST_STEPS + 1) + b"."))
    assert "save only its weights" in caught.value.remedy


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def coo(indices, size):
    return torch.sparse_coo_tensor(torch.tensor([indices]), torch.ones(2), size, check_invariants=False)


def csr(columns):
    pointers = torch.tensor([0, 1, 2])
    return torch.sparse_compressed_tensor(
        pointers, torch.tensor(columns), torch.ones(2), (2, 2), layout=torch.sparse_csr, check_invariants=False
    )


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "make",
    [lambda: coo([0, 99], (3,)), lambda: coo([0, -1], (3,)), lambda: csr([0, 9]), lambda: coo([0, 1], (10**12,))],
    ids=["beyond", "negative", "compressed", "a terabyte"],
)
def test_sparse_tensors_that_break_their_invariants_are_refused(tmp_path, make, new):
    bad = quietly(make)
    quietly(lambda: torch.save({"w": bad}, tmp_path / "a.pt", _use_new_zipfile_serialization=new))
    with pytest.raises(CheckpointRefused):
        inspect_file(tmp_path / "a.pt")


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_every_sparse_layout_becomes_dense(tmp_path, layout):
    dense = torch.eye(4).add(torch.eye(4).roll(1, 0))
    block = ((2, 2),) if layout in ("bsr", "bsc") else ()
    made = quietly(lambda: dense.to_sparse() if layout == "coo" else getattr(dense, f"to_sparse_{layout}")(*block))
    torch.save({"w": made}, tmp_path / "a.pt")
    torch.testing.assert_close(read(tmp_path / "a.pt").state["w"], dense)


def test_other_tensors_are_refused_by_kind(tmp_path):
    kinds = {
        "nested": quietly(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "meta": torch.ones(3, device="meta"),
    }
    for kind, one in kinds.items():
        torch.save({"w": one}, tmp_path / "a.pt")
        with pytest.raises(CheckpointRefused, match=f"'w' is .*{kind}"):
            read(tmp_path / "a.pt")


def test_views_and_shared_storages_are_what_they_were(tmp_path):
    base = torch.arange(12.0)
    complex_one = torch.randn(3, dtype=torch.complex64)
    state = {
        "a": base.view(3, 4).t(),
        "b": base[5:],
        "tied": base[5:],
        "conj": complex_one.conj(),
        "plain": complex_one,
        "small": torch.tensor([0, 1, 2], dtype=torch.uint16),
        "parameter": torch.nn.Parameter(base[:2]),
        "none": torch.empty(0, 3),
    }
    for new in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        found = read(tmp_path / "a.pt").state
        for name, wanted in state.items():
            torch.testing.assert_close(found[name], wanted.detach(), rtol=0, atol=0)
        assert found["b"].data_ptr() == found["tied"].data_ptr()
        assert inspect_file(tmp_path / "a.pt").tensors[5].nonzero == 2


def test_the_other_byte_order_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", named(tensor((4,), (1,))))
        archive.writestr("a/byteorder", "big")
        archive.writestr("a/data/0", struct.pack(">4f", 1, 2, 3, 4))
    torch.testing.assert_close(read(tmp_path / "a.pt").state["w"], torch.tensor([1.0, 2, 3, 4]))


def contents(file):
    """Where the content of each entry stands in a zip."""
    raw, found = file.read_bytes(), []
    with zipfile.ZipFile(file) as archive:
        for one in archive.infolist():
            length, extra = struct.unpack("<2H", raw[one.header_offset + 26 : one.header_offset + 30])
            start = one.header_offset + 30 + length + extra
            found += range(start, start + one.file_size)
    return found


def test_a_bit_that_flips_in_any_entry_is_seen(tmp_path):
    torch.save({"model": {"w": torch.randn(50)}, "optimizer": torch.randn(20)}, tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = contents(tmp_path / "a.pt")
    for at in torch.randint(len(places), (100,), generator=generator).tolist():
        flipped = bytearray(raw)
        flipped[places[at]] ^= 1 << (at % 8)
        (tmp_path / "b.pt").write_bytes(flipped)
        with pytest.raises(CheckpointRefused):
            read(tmp_path / "b.pt")


def test_a_file_without_checksums_is_read_and_it_is_said(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    found = read(tmp_path / "a.pt")
    assert found.state["w"].tolist() == [1, 1, 1]
    assert any("without checksums" in note for note in found.notes)


def test_compressed_double_and_contradicting_entries_are_refused(tmp_path):
    data = named(tensor((4,), (1,)))
    file = zipped(tmp_path / "a.pt", data)
    whole = file.read_bytes()
    refused = {"disagree": whole.replace(b"a/data/0", b"a/data/1", 1)}
    bomb = tmp_path / "b.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(10**6))
    refused["compressed"] = bomb.read_bytes()
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a/data.pkl", data)
            archive.writestr("a/data/0", bytes(16))
    refused["same name"] = (tmp_path / "c.pt").read_bytes()
    for why, content in refused.items():
        file.write_bytes(content)
        with pytest.raises(CheckpointRefused, match=why):
            inspect_file(file)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in {"pipe": "is a pipe", "link": "is a link to .*nowhere"}.items():
        with pytest.raises(UsageError, match=why):
            inspect_file(tmp_path / name)
    with pytest.raises(UsageError, match="device"):
        inspect_file("/dev/zero")


def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    head = b'{"w":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,1099511627776]}}'
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + (1 << 40))
    with pytest.raises(CheckpointRefused, match=r"GB of memory"):
        inspect_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "words",
    [
        "[" * 100000 + "]" * 100000,
        '{"version": 1, "args": {"a": ' + "[" * 90 + "]" * 90 + "}}",
        '{"version": true}',
        '{"version": 1, "masks": {"w": {"size": 1, "kept": 2}}}',
        '{"version": 1, "args": {"a": NaN}}',
        '{"version": 1, "classes": "ten"}',
        '{"version": 1, "args": {"a": ' + "9" * 5000 + "}}",
        "null",
        "",
    ],
)
def test_descriptions_of_any_shape_are_refused(tmp_path, words):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", {"prunetaylor": words})
    with pytest.raises(CheckpointRefused):
        inspect_file(tmp_path / "a.safetensors")
