"""Whole models, each a container with `init` and a function."""

from purenn.models.capsnet import CapsNet, CapsNetOutput, capsnet, decode

__all__ = ["CapsNet", "CapsNetOutput", "capsnet", "decode"]
