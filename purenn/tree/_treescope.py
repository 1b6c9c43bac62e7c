"""How treescope, the viewer for notebooks, shows containers: as trees that fold, with the array of every leaf."""

from typing import Any

import optree
from torch import Tensor

from purenn.tree._fields import Marks, Spec, is_container
from purenn.tree._holes import Placeholder
from purenn.tree._walk import short


def render(p: Any, path: str | None, render_child: Any) -> Any:
    """A container as treescope's foldable ``Linear(weight=..., bias=...)``; what is frozen is said beside it.

    Args:
        p: the container.
        path: where it is in what is shown, None if treescope does not say.
        render_child: treescope's function that renders the value of a field.
    """
    from treescope import formatting_util, rendering_parts, repr_lib

    spec: Spec = p.__container_spec__
    marks: Marks | None = p._marks
    shown = repr_lib.render_object_constructor(
        object_type=type(p),
        attributes={a.name: _field(getattr(p, a.name)) for a in spec.fields},
        path=path,
        subtree_renderer=render_child,
        color=formatting_util.color_from_string(type(p).__name__),
    )
    if marks is None or not marks.frozen:
        return shown
    note = rendering_parts.comment_color(rendering_parts.text(f"  # frozen: {', '.join(sorted(marks.frozen))}"))
    return rendering_parts.siblings_with_annotations(shown, extra_annotations=[note])


def _field(value: Any) -> Any:
    return optree.tree_map(_leaf, value, is_leaf=_is_shown_whole)


def _is_shown_whole(node: Any) -> bool:
    return is_container(node) or isinstance(node, Placeholder)


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, Placeholder):
        return _Text(repr(leaf))
    if not isinstance(leaf, Tensor):
        return leaf
    # An array of numpy: what treescope knows of tensors rests on their names, which torch has no longer.
    try:
        return leaf.numpy(force=True)
    except (TypeError, RuntimeError):  # a dtype that numpy has not, or no data
        return _Text(short(leaf))


class _Text(str):
    __slots__ = ()

    def __treescope_repr__(self, path: str | None, render_child: Any) -> Any:
        from treescope import rendering_parts

        return rendering_parts.text(str(self))
