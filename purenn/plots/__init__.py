"""Seeing trees: figures of matplotlib, and files for TensorBoard, by path. A module stands for its state_dict."""

from purenn.plots._changes import difference, update_ratios
from purenn.plots._histograms import histograms, magnitudes
from purenn.plots._tensorboard import TensorBoard

__all__ = [
    "TensorBoard",
    "difference",
    "histograms",
    "magnitudes",
    "update_ratios",
]
