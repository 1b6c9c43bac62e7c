"""Containers in notebooks, shown by treescope."""

import pytest
import torch
from _models import Box, make_affine

import purenn as pn

treescope = pytest.importorskip("treescope")

SHOWN = """\
Box(
  content={
    'first': Affine(
      weight=# np.ndarray float32(2, 2) ≈0.5 ±0.5 [≥0.0, ≤1.0] zero:2 nonzero:2
        array([[1., 0.],
               [0., 1.]], dtype=float32)
      ,
      bias=None,
    ),
    'half': bf16[3],
    'hole': HOLE,
    'meta': f32[70000,70000],
    'rate': 0.5,
  },
  state=None,
  size=3,
  mode='plain',
)"""


def test_shown_by_treescope() -> None:
    """Containers fold, leaves are arrays with their statistics; without data or in other dtypes they are shapes."""
    content = {
        "first": pn.replace(make_affine(), weight=torch.eye(2), bias=None),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "hole": pn.tree.HOLE,
        "meta": torch.empty(70_000, 70_000, device="meta"),
        "rate": 0.5,
    }
    assert treescope.render_to_text(Box(content)) == SHOWN


def test_frozen_leaves_and_pictures() -> None:
    """Frozen leaves are named beside their container; in a notebook arrays are pictures."""
    p = pn.tree.freeze(make_affine(), "bias")
    assert treescope.render_to_text(p).endswith("  # frozen: bias")
    plain = treescope.render_to_html(p)
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        assert len(treescope.render_to_html(p)) > len(plain)


def test_own_form_is_kept() -> None:
    """A class may write its own form."""

    @pn.container
    class Quiet:
        weight: torch.Tensor

        def __treescope_repr__(self, path: str | None, render_child: object) -> object:
            return treescope.rendering_parts.text("quiet")

    assert treescope.render_to_text(Quiet(torch.ones(2))) == "quiet"
