"""DCT-AdamW under Lightning: `for_model` in `configure_optimizers`, and what steps do in the logs.

    python docs/examples/train_lightning.py

trains the network of `minimal.py`. A callback logs which share of each matrix's gradient the
chosen columns hold; the last numbers are printed.

Needs `pip install 'lowrank-core[torch]' lightning`.
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lowrank_torch import DCTAdamW
from minimal import BATCH, RATE, STEPS, data, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """The network with its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = DCTAdamW.for_model(self, lr=RATE)
        optimizer.record_diagnostics(every=20)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class LogEnergy(Callback):
    """Logs what the chosen columns hold of each matrix's gradient, in [0, 1]."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        for row in module.optimizers().optimizer.diagnostics():
            module.log(f"captured/{row.name}", row.captured)


def main() -> None:
    model = Classifier()
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[LogEnergy()],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(*data(4096, seed=1)), batch_size=BATCH))
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name} {float(value):.3f}")


if __name__ == "__main__":
    main()
