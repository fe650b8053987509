"Files are whole or absent, and damage is noticed."
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_expr import storage
from ssl_expr.files import atomic, read_json, remove_leftovers, write_atomic
from ssl_expr.storage import load_tensors, save_tensors, tensor_digest

TENSORS = {"weight": torch.arange(12.).reshape(3, 4), "steps": torch.tensor(7), "mask": torch.tensor([True, False]),
           "half": torch.ones(3, dtype=torch.bfloat16), "empty": torch.zeros(0)}


def names(folder: Path) -> list[str]: return sorted(path.name for path in folder.iterdir())


def test_tensors_and_metadata_come_back_as_they_went(tmp_path):
    save_tensors(tmp_path/"a.safetensors", TENSORS, {"genes": ["TP53"], "n": np.int64(3)})
    tensors, metadata = load_tensors(tmp_path/"a.safetensors")
    assert metadata == {"genes": ["TP53"], "n": 3} and set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_tensors_that_share_memory_or_have_transposed_strides_are_stored_right(tmp_path):
    base = torch.arange(6.).reshape(2, 3)
    given = {"base": base, "view": base.T, "same": base, "row": base[1], "flat": base.reshape(-1)}
    save_tensors(tmp_path/"a", given, {})
    tensors, _ = load_tensors(tmp_path/"a")
    for name in given: assert torch.equal(tensors[name], given[name]), name


def test_a_tensor_that_shares_no_memory_is_not_copied(tmp_path, monkeypatch):
    tensors = {"a": torch.ones(3, 2), "b": torch.zeros(4), "part": torch.arange(9.)[2:5]}
    monkeypatch.setattr(torch.Tensor, "clone", None)
    save_tensors(tmp_path/"a", tensors, {})
    monkeypatch.undo()
    assert torch.equal(load_tensors(tmp_path/"a")[0]["part"], tensors["part"])


def test_the_same_content_gives_the_same_bytes(tmp_path):
    save_tensors(tmp_path/"a", TENSORS, {"x": 1, "y": 2})
    save_tensors(tmp_path/"b", dict(reversed(TENSORS.items())), {"y": 2, "x": 1})
    assert (tmp_path/"a").read_bytes() == (tmp_path/"b").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -100, -1])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path, keep):
    save_tensors(tmp_path/"a", TENSORS, {})
    (tmp_path/"a").write_bytes((tmp_path/"a").read_bytes()[:keep])
    with pytest.raises(ValueError, match="a is damaged") as caught: load_tensors(tmp_path/"a")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    whole_numbers = {name: tensor for name, tensor in TENSORS.items() if tensor.dtype != torch.bool} # True is any bit
    save_tensors(tmp_path/"a", whole_numbers, {"genes": ["TP53"]})
    whole = (tmp_path/"a").read_bytes()
    for place in range(len(whole)):
        (tmp_path/"a").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        with pytest.raises(ValueError, match="damaged"): load_tensors(tmp_path/"a")


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({"a": torch.ones(2)}, tmp_path/"a")
    with pytest.raises(ValueError, match="not written by ssl_expr"): load_tensors(tmp_path/"a")


def test_a_missing_file_is_named(tmp_path):
    for read in (load_tensors, read_json):
        with pytest.raises(FileNotFoundError, match="nowhere"): read(tmp_path/"nowhere")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"a": 1}}'])
def test_damaged_json_is_refused(tmp_path, text):
    write_atomic(tmp_path/"a.json", text)
    with pytest.raises(ValueError, match="a.json is damaged"): read_json(tmp_path/"a.json")


def test_the_digest_sees_names_types_shapes_and_numbers():
    a = torch.zeros(4)
    others = [{"b": a}, {"a": a.double()}, {"a": a.reshape(2, 2)}, {"a": a + 1}, {"a": a, "b": a}, {}]
    assert len({tensor_digest(content) for content in [{"a": a}, *others]}) == 7


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomic(tmp_path/"a", "old")
    with pytest.raises(RuntimeError), atomic(tmp_path/"a") as partial:
        partial.write_text("ne")
        assert (tmp_path/"a").read_text() == "old"
        raise RuntimeError
    assert names(tmp_path) == ["a"] and (tmp_path/"a").read_text() == "old"


def test_the_bytes_are_on_the_disk_before_the_name_is_changed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (calls.append(name), real(*arguments)))
    write_atomic(tmp_path/"a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path/"a") as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota"),
                                   RuntimeError("I/O error: the device is full (os error 28)"),
                                   RuntimeError("errno = 28, error message = 'No space left on device'")])
def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, error):
    save_tensors(tmp_path/"a", {"a": torch.zeros(2)}, {})
    before = (tmp_path/"a").read_bytes()

    def full(tensors, path, metadata): Path(path).write_bytes(b"hal"); raise error
    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="^The disk is full: a was not written to") as caught:
        save_tensors(tmp_path/"a", TENSORS, {})
    assert str(tmp_path) in str(caught.value) and "free some space" in str(caught.value)
    assert names(tmp_path) == ["a"] and (tmp_path/"a").read_bytes() == before


FILL_A_SMALL_DISK = """
import sys, subprocess, os
folder = sys.argv[1]
mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
if subprocess.run(mount, capture_output=True).returncode: sys.exit(77)
import torch
from ssl_expr.files import write_atomic
from ssl_expr.storage import save_tensors
big = {"a": torch.zeros(10**6)}
for write in (lambda: save_tensors(folder + "/a", big, {}), lambda: write_atomic(folder + "/b", "x"*10**6)):
    try: write(); sys.exit("was written")
    except OSError as error: print(error)
print(os.listdir(folder))
"""


def test_a_disk_that_is_really_full(tmp_path):
    command = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", FILL_A_SMALL_DISK, str(tmp_path)]
    try: done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError: pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr: pytest.skip("a small file system cannot be mounted here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:19] for line in lines] == ["The disk is full: a", "The disk is full: b", "[]"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="not allowed there"): write_atomic(tmp_path/"a", "x")
    tmp_path.chmod(0o700)


def test_a_file_in_place_of_a_folder_is_told(tmp_path):
    write_atomic(tmp_path/"file", "x")
    for path in (tmp_path/"file"/"a", tmp_path):
        with pytest.raises(OSError, match="choose another path"): write_atomic(path, "x")


def test_the_ending_of_the_name_is_kept_for_writers_that_choose_by_it(tmp_path):
    with atomic(tmp_path/"a.csv.gz") as partial:
        partial.write_text("x")
        assert partial.suffixes == [".csv", ".gz"] and partial.parent == tmp_path


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path/"usual").touch()
    save_tensors(tmp_path/"a", TENSORS, {})
    assert (tmp_path/"a").stat().st_mode == (tmp_path/"usual").stat().st_mode


def test_leftovers_of_killed_writers_are_swept_and_nothing_else(tmp_path):
    for name in (".partial-01234567-a", ".partial-01234567-b", "a"): (tmp_path/name).touch()
    remove_leftovers(tmp_path/"a")
    assert names(tmp_path) == [".partial-01234567-b", "a"]
