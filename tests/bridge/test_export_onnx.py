"""Exported programs as ONNX models, run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _exported import CASES

import bridge
import purenn as pn

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["convolutional", "transformer", "routing", "tied", "opaque"])
def test_onnx_runtime_gives_the_same(name: str, tmp_path: Path) -> None:
    """The ONNX model of a program gives the container's outputs to 1e-5, for other batches than the example's."""
    case = CASES[name]
    p: Any = case.make()
    program = bridge.export(p, *case.inputs(4), dynamic_shapes=case.dynamic)
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for rows in (4, 7):
        inputs = case.inputs(rows)
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        y = p(*inputs)
        expected = pn.tree.leaves(y[0] if pn.is_stateful(p) else y)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5)
