"""Losses: pure functions of a prediction and a target."""

from purenn.losses._capsule import margin_loss, reconstruction_loss

__all__ = ["margin_loss", "reconstruction_loss"]
