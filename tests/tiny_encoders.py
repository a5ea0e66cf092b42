"""Small random question-answering encoders of every family, and a skimmer beside them."""

import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from qalib.skim.adapters import adapt_encoder
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer, skip_unprofitable

CLS, SEP = 2, 3
SIZE = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 80,
}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "bert": BertConfig(**SIZE, **PLAIN),
    "roberta": RobertaConfig(**SIZE, **PLAIN, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SIZE, **PLAIN, type_vocab_size=1),
    "camembert": CamembertConfig(**SIZE, **PLAIN, type_vocab_size=1),
    "albert": AlbertConfig(
        **SIZE, **PLAIN, embedding_size=8, num_hidden_groups=2, classifier_dropout_prob=0.0
    ),
    "distilbert": DistilBertConfig(
        vocab_size=99,
        dim=16,
        n_layers=3,
        n_heads=4,
        hidden_dim=24,
        max_position_embeddings=80,
        dropout=0.0,
        attention_dropout=0.0,
        qa_dropout=0.0,
    ),
    "electra": ElectraConfig(**SIZE, **PLAIN, embedding_size=8),
    "mpnet": MPNetConfig(**SIZE, **PLAIN, pad_token_id=1),
    "deberta-v2": DebertaV2Config(  # as v3 is
        **SIZE,
        **PLAIN,
        type_vocab_size=0,
        relative_attention=True,
        position_biased_input=False,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    ),
}
TYPED = ("bert", "albert", "electra")  # those that tell question and passage apart by type


def tiny_encoder(kind: str = "bert", seed: int = 0, scale: float = 8.0, **changes) -> nn.Module:
    """A model whose weights are large enough that what it attends to matters."""
    config = CONFIGS[kind].__class__(**{**CONFIGS[kind].to_dict(), **changes})
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def windows(
    kind: str = "bert",
    rows: tuple[tuple[int, int], ...] = ((3, 21), (5, 8), (2, 30)),
    length: int | None = None,
    seed: int = 1,
) -> dict[str, Tensor]:
    """Inputs [CLS] question [SEP] passage [SEP] with (question, passage) tokens, padded."""
    torch.manual_seed(seed)
    pad = CONFIGS[kind].pad_token_id
    made = []
    for question, passage in rows:
        first, second = (torch.randint(5, 99, (n,)).tolist() for n in (question, passage))
        middle = [SEP, SEP] if kind in ("roberta", "xlm-roberta", "camembert", "mpnet") else [SEP]
        made.append(([CLS, *first, *middle], [*second, SEP]))
    longest = length or max(len(a) + len(b) for a, b in made)
    ids = torch.full((len(made), longest), pad)
    real, types, inside = (torch.zeros_like(ids) for _ in range(3))
    for row, (a, b) in enumerate(made):
        end = len(a) + len(b)
        ids[row, :end] = torch.tensor(a + b)
        real[row, :end] = 1
        types[row, len(a) : end] = 1
        inside[row, len(a) : end - 1] = 1
    inputs = {"input_ids": ids, "attention_mask": real, "passage": inside.bool()}
    return inputs | ({"token_type_ids": types} if kind in TYPED else {})


class Mass(nn.Module):
    """A predictor for tests: attention between question and block, and the block's states."""

    def __init__(self, config: PredictorConfig, shape, layer: int):
        super().__init__()
        torch.manual_seed(layer)
        self.layers = (layer,)
        self.heads = nn.Parameter(10 * torch.randn(2, shape.heads))
        self.hidden = nn.Parameter(torch.randn(shape.width) / shape.width**0.5)

    def forward(self, inputs) -> Tensor:
        """-> (B, K)"""
        blocks, total = inputs.blocks, 0.0
        inside = blocks.membership().float()  # (B, K, L)
        share = inside / inside.sum(dim=2, keepdim=True).clamp(min=1)
        for number in self.layers:
            view = inputs.layers[number]
            sets = blocks.question[:, None]
            mass = self.heads[0] @ view.attention.attention_to(sets)[:, :, 0].float()
            mass = mass + self.heads[1] @ view.attention.attention_from(sets)[:, :, 0].float()
            mass = mass + view.hidden.float() @ self.hidden  # (B, L)
            total = total + (share * mass[:, None, :]).sum(dim=2)
        return total


def tiny_skimmer(model: nn.Module, block_size: int = 4, **settings) -> Skimmer:
    """A skimmer with ``Mass`` at every layer by default, in evaluation mode."""
    depth = len(adapt_encoder(model).layers)
    settings = {"layers": tuple(range(1, depth + 1)), **settings}
    settings.setdefault("thresholds", (0.5,) * len(settings.get("prune_layers", ())))
    predictor = PredictorConfig(block_size=block_size)
    skimmer = Skimmer.beside(model, SkimConfig(predictor, **settings))
    for layer in skimmer.predictors:
        skimmer.predictors[layer] = Mass(predictor, skimmer.shape, int(layer))
    return skimmer.eval()


def keep_blocks(skimmer: Skimmer, keep: Tensor | dict[int, Tensor]) -> Skimmer:
    """Keep given blocks in place of the predictors' choice.  (B, K) bool, or that by layer"""
    skimmer.__dict__.pop("_select", None)
    choose, config = skimmer._select, skimmer.config

    def select(number, blocks, scores):
        given = keep.get(number) if isinstance(keep, dict) else keep
        if given is None:
            return choose(number, blocks, scores)
        kept = given & blocks.real
        return skip_unprofitable(kept, blocks, config.min_pruned_fraction, config.min_tokens)

    skimmer._select = select
    return skimmer
