"""`pn.distributed` in one process."""

import contextlib
import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import purenn as pn
from purenn.distributed._listing import Reader
from purenn.errors import ArgumentError, CheckpointError, SelectionError
from purenn.layers import Linear, TransformerDecoderLayer


def test_alone(tmp_path: Path) -> None:
    """In one process everything is as it is: the same program runs with and without torchrun."""
    p = Linear.init(pn.random.key(0), 3, 2)
    assert pn.tree.equal(pn.distributed.mean(p), p)
    assert pn.tree.equal(pn.distributed.sum(p), p)
    assert pn.tree.equal(pn.distributed.from_rank(p), p)
    assert pn.tree.equal(pn.distributed.rank_rows((torch.arange(3),)), (torch.arange(3),))
    assert torch.equal(pn.distributed.rank_key(pn.random.key(0)), pn.random.fold_in(pn.random.key(0), 0))
    assert pn.tree.equal(pn.distributed.gather(p), p)
    assert pn.tree.equal(pn.distributed.place_like(p, p), p)


def test_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """If several were launched without a process group, none works for itself in silence."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError) as error:
        pn.distributed.mean(torch.ones(2))
    assert str(error.value) == (
        "mean: this is one of 2 processes, but there is no process group, so each would work for itself: call "
        "torch.distributed.init_process_group() first."
    )


@pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_checkpoints_alone(tmp_path: Path) -> None:
    """One process saves and loads too; what does not fit is listed, and nothing is read."""
    p = {"a": torch.ones(2, 3), "b": Linear.init(pn.random.key(0), 3, 2)}
    pn.distributed.save(tmp_path / "c", p)
    assert pn.tree.equal(pn.distributed.load(tmp_path / "c", like=pn.tree.map(torch.zeros_like, p)), p)
    pn.distributed.save(tmp_path / "leaf", torch.arange(3))
    assert torch.equal(pn.distributed.load(tmp_path / "leaf", like=torch.zeros(3, dtype=torch.int64)), torch.arange(3))
    like: Any = {"a": torch.ones(3), "b": Linear(p["b"].weight, None), "c": torch.ones(1)}
    cases: list[tuple[Any, str]] = [
        (
            lambda: pn.distributed.load(tmp_path / "c", like=like),
            f"load: {tmp_path / 'c'} does not fit the tree:\n"
            "  missing: c\n"
            "  unexpected: b.bias f32[2]\n"
            "  different: a is f32[2,3] in the folder, f32[3] in the tree\n"
            "Give a tree of the structure that was saved.",
        ),
        (
            lambda: pn.distributed.load(tmp_path, like=like),
            f"load: there is no checkpoint of pn.distributed.save in {tmp_path}.",
        ),
        (
            lambda: pn.distributed.save(tmp_path / "c", p),
            f"save: {tmp_path / 'c'} has a tree already: give each a folder of its own.",
        ),
        (
            lambda: pn.distributed.save(tmp_path / "d", {"n": 3}),
            "save: 'n' is 3, no tensor: store it as a tensor.",
        ),
    ]
    for act, message in cases:
        with pytest.raises(CheckpointError) as error:
            act()
        assert str(error.value) == message


class Call:
    """What runs a function when it is read as a pickle."""

    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


@pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_lists_that_are_none(tmp_path: Path) -> None:
    """The list of what is in a folder runs nothing, names no files elsewhere, and is whole."""
    p = {"a": torch.ones(2, 3, dtype=torch.bfloat16)}
    folder = tmp_path / "c"
    pn.distributed.save(folder, p)
    listed = (folder / ".metadata").read_bytes()
    placeless = dataclasses.replace(Reader(folder).read_metadata(), storage_data={})
    cases = [
        (pickle.dumps(placeless), "it does not say where 'a' is"),
        (pickle.dumps(Call()), "os.getenv is no part of a list of tensors"),
        (pickle.dumps({"a": 1}), "it is a dict"),
        (listed.replace(b"__0_0.distcp", b"../0_.distcp"), "it names the file '../0_.distcp'"),
        (listed.replace(b"__0_0.distcp", b"__9_9.distcp"), "there is no file __9_9.distcp"),
        (listed[:-9], None),
        (b"", None),
    ]
    for content, message in cases:
        (folder / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            pn.distributed.load(folder, like=p)
        message = message or str(error.value.__cause__)
        assert str(error.value) == f"load: the list of what is in {folder} cannot be read: {message}."
    for place in range(0, len(listed), 7):
        (folder / ".metadata").write_bytes(listed[:place] + b"\xff" + listed[place + 1 :])
        with contextlib.suppress(CheckpointError):
            assert pn.tree.equal(pn.distributed.load(folder, like=p), p)
    (folder / ".metadata").write_bytes(listed)
    assert pn.tree.equal(pn.distributed.load(folder, like=p), p)


def test_transformer_rules() -> None:
    """First weights are cut by outputs, last ones by inputs; what is not there has no rule."""
    decoder = TransformerDecoderLayer.init(pn.random.key(0), 4, 2, dim_feedforward=8)
    attention = {"in_proj_weight": 0, "in_proj_bias": 0, "out_proj.weight": 1}
    assert pn.distributed.transformer_rules(decoder) == {
        **{f"{name}.{path}": axis for name in ("self_attn", "multihead_attn") for path, axis in attention.items()},
        **{"linear1.weight": 0, "linear1.bias": 0, "linear2.weight": 1},
    }
    with pytest.raises(SelectionError) as error:
        pn.distributed.transformer_rules(Linear.init(pn.random.key(0), 3, 2))
    assert str(error.value) == (
        "transformer_rules: a Linear has no part that it knows: MultiheadAttention, GroupedQueryAttention, "
        "TransformerEncoderLayer, TransformerDecoderLayer, ViTBlock, GPT2MLP, SwiGLU, GEGLU."
    )
