"""The rows of Block-Skim's Table 1 at the paper's sizes: their cost and training settings.

``qalib study paper-row`` prints or trains a row by its name, such as "bert-base/squad".
"""

from dataclasses import field

import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering

from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.losses import SkimLossConfig
from qalib.settings import nearest, settings
from qalib.skim.cost import CostModel, token_counts
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.training import PredictorTraining
from qalib.study.profiles import load_profile
from qalib.training import TrainConfig

STATE = 16  # bytes per parameter in training: weight, gradient and two moments of AdamW in fp32


@settings
class PaperEncoder:
    """An encoder on the Hub; ``kind`` and ``sizes`` define its configuration for use offline."""

    hub: str
    kind: str
    sizes: dict[str, int] = field(default_factory=dict)
    learning_rate: float = 3e-5
    alpha: float = 1.0  # 0.05 for ALBERT, whose layers share weights


@settings
class PaperSet:
    """Training and test data of a row; ``tokens`` of a step hold the paper's batch on average."""

    train: str
    test: str
    max_length: int = 512
    tokens: int = 32 * 512


@settings
class PaperRows:
    """Section [rows] of the profile paper."""

    encoders: dict[str, PaperEncoder]
    sets: dict[str, PaperSet]
    epochs: int = 2
    seed: int = 42

    def find(self, name: str) -> tuple[PaperEncoder, PaperSet]:
        """Encoder and data set of a row. Raises QalibError for an unknown name."""
        encoder, _, data = name.partition("/")
        if encoder not in self.encoders or data not in self.sets:
            known = [f"{a}/{b}" for a in self.encoders for b in self.sets]
            raise QalibError(f"there is no row {name!r}; {nearest(name, known)}.")
        return self.encoders[encoder], self.sets[data]

    def training(self, name: str, plain: bool = False, max_steps: int = 0) -> PredictorTraining:
        """Settings to train a row with a module in every layer; ``plain``: without their loss."""
        encoder, data = self.find(name)
        return PredictorTraining(
            windows=WindowConfig(max_length=data.max_length),
            train=TrainConfig(
                num_train_epochs=self.epochs,
                max_steps=max_steps,
                tokens_per_batch=data.tokens,
                learning_rate=encoder.learning_rate,
                warmup_ratio=0.0,
            ),
            seed=self.seed,
            predictor=PredictorConfig("cnn"),
            skim_loss=SkimLossConfig(alpha=0.0 if plain else encoder.alpha),
        )


def paper_rows() -> PaperRows:
    """The rows that profile paper lists."""
    return load_profile("paper").section("rows", PaperRows)


def describe_row(rows: PaperRows, name: str) -> dict[str, str | float]:
    """Shape and cost of a row, from its configuration on the meta device: no weights, no network.

    ``state_gb``: GB for weights, gradients and AdamW's moments, without activations. ``gmacs``:
    10^9 multiply-adds for a window of full length. ``third``: the same if a third of the tokens is
    left after a third of the layers.
    """
    encoder, data = rows.find(name)
    config = AutoConfig.for_model(encoder.kind, num_labels=2, **encoder.sizes)
    layers, tokens = config.num_hidden_layers, data.max_length
    with torch.device("meta"):
        model = AutoModelForQuestionAnswering.from_config(config)
        modules = SkimConfig(PredictorConfig("cnn"), tuple(range(1, layers + 1)))
        skimmer = Skimmer.beside(model, modules)
    cost, shape = CostModel.of(model), skimmer.shape
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, skimmer)]
    macs = [
        cost.encoder_macs(token_counts(tokens, kept, layers)) / 1e9
        for kept in ({}, {layers // 3: tokens // 3})
    ]
    return {
        "row": name,
        "layers": f"{shape.layers} x {shape.width}, {shape.heads} heads",
        "millions": counts[0] / 1e6,
        "modules": counts[1] / 1e6,
        "state_gb": STATE * sum(counts) / 1e9,
        "tokens": tokens,
        "gmacs": float(macs[0]),
        "third": float(macs[1]),
    }
