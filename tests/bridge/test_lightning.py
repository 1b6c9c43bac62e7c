"""A module from `bridge.to_module`, and an optimiser of pn.optim, in PyTorch Lightning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Linear, ReLU, Sequential

lightning = pytest.importorskip("pytorch_lightning", exc_type=ImportError)


def make() -> Sequential:
    k = pn.random.split(pn.random.key(0), 2)
    return Sequential.of(Linear.init(k[0], 3, 8, bias=False), BatchNorm1d.init(8), ReLU(), Linear.init(k[1], 8, 2))


def batches() -> list[tuple[Tensor, Tensor]]:
    keys = pn.random.split(pn.random.key(1), 12)
    return [
        (pn.random.normal(a, (6, 3)), pn.random.normal(b, (6, 2))) for a, b in zip(keys[::2], keys[1::2], strict=True)
    ]


class Training(lightning.LightningModule):
    """The model, its loss and its optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.model = bridge.to_module(make(), copy=True)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, target = batch
        return (self.model(x) - target).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = bridge.Optimizer(self.parameters(), pn.optim.adamw, lr=0.05)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def trained(folder: Path, epochs: int, resumed: Path | None = None) -> tuple[Any, Any]:
    """Module and trainer after some epochs, perhaps from a checkpoint."""
    module = Training()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None), ckpt_path=resumed)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_it(tmp_path: Path) -> None:
    """Two epochs in Lightning, with a checkpoint between them, are those of a plain loop, scheduler included."""
    model = bridge.to_module(make(), copy=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5**epoch
        for x, target in batches():
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    expected = bridge.from_module(model)
    whole, _ = trained(tmp_path, 2)
    assert pn.tree.allclose(bridge.from_module(whole.model), expected, rtol=0, atol=1e-5)
    _, trainer = trained(tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = trained(tmp_path, 2, tmp_path / "half.ckpt")
    assert pn.tree.allclose(bridge.from_module(resumed.model), expected, rtol=0, atol=1e-5)
