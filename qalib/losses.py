"""All losses of the library as functions of tensors. Each returns (B,), one value per row.

Notation: B batch, L positions, A gold answers of an example (padded with weight 0), K blocks,
T teachers, M question tokens; b1, b2 a reader's start and end logits, p1, p2 its probabilities.

Masks are boolean, true = real. Masked logits become the dtype's minimum before any softmax, so
padding has probability 0. Training averages a loss over all rows of a batch, including rows where
it is 0.

Sources: Guan et al. 2022 (Block-Skim), Hu et al. 2018 (answer distillation).
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, relu, softplus

from qalib.decoding import ReaderOutput, mask_logits
from qalib.errors import QalibError
from qalib.settings import settings

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


# --- span prediction ------------------------------------------------------------------------------


def span_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    reduction: Literal["mean", "min"] = "mean",
    smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the gold spans (s_a, e_a), reduced by :func:`over_answers`.

        loss_a = -log p1(s_a) - log p2(e_a)

    ``smoothing`` s spreads a share s of the label evenly over the n real positions:

        (1 - s) loss + s (-1/n sum_i log p1(i) - 1/n sum_j log p2(j))

    spans (B, A, 2) int64 inclusive, weights (B, A) float -> (B,) float32
    """
    log_p1, log_p2 = _log_probabilities(output)
    loss = -log_p1.gather(1, spans[..., 0]) - log_p2.gather(1, spans[..., 1])  # (B, A)
    loss = over_answers(loss, weights, reduction)
    if not smoothing:
        return loss
    uniform = output.mask / output.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (1 - smoothing) * loss + smoothing * kd_loss(output, uniform, uniform)


def over_answers(loss: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """Reduce the losses of each row's gold answers to one; their weights w_a sum to 1.

        mean : sum_a w_a loss_a          each answer counts by its share of the annotators
        min  : min_{a: w_a > 0} loss_a   the easiest gold answer (byte-level page)

    loss, weights (B, A) -> (B,). Raises ValueError for an unknown reduction.
    """
    if reduction == "mean":
        return (weights * loss.masked_fill(weights == 0, 0.0)).sum(dim=1)
    if reduction == "min":
        return loss.masked_fill(weights == 0, torch.inf).amin(dim=1)
    raise ValueError(f"unknown reduction {reduction!r}; known are mean and min")


def gaussian_span_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    sigma: float,
    reduction: Literal["min", "mean"] = "min",
) -> Tensor:
    """KL divergence from Gaussian targets to p1 and p2, reduced by :func:`over_answers`.

        loss_a = KL(N(s_a, sigma) || p1) + KL(N(e_a, sigma) || p2)

    The targets decay with distance, so that a near miss costs less than a distant error.
    spans (B, A, 2) int64 inclusive, weights (B, A) float, sigma in positions -> (B,) float32;
    sigma 0 is cross-entropy. Every row needs a gold answer.
    """
    starts, ends = (gaussian_target(spans[..., side], output.mask, sigma) for side in (0, 1))
    log_p1, log_p2 = _log_probabilities(output)
    loss = _divergence(starts, log_p1) + _divergence(ends, log_p2)  # (B, A)
    return over_answers(loss, weights, reduction)


def gaussian_target(centres: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """A Gaussian around every centre, normalised over the valid positions.

        t(l) = exp(-(l - centre)^2 / (2 sigma^2)) / sum over valid l';  sigma 0: 1 at the centre

    centres (B, A) int64, mask (B, L) bool, sigma in positions -> (B, A, L) float32
    """
    distance = torch.arange(mask.shape[1], device=mask.device) - centres[..., None]
    if sigma < 0.05:  # the next position gets less than exp(-200), which is 0 in float32
        return (distance == 0).float()
    return mask_logits(-((distance / sigma) ** 2) / 2, mask[:, None]).softmax(dim=2)


def _log_probabilities(output: ReaderOutput) -> tuple[Tensor, Tensor]:
    """log p1 and log p2, each (B, L) float32."""
    start, end = (mask_logits(logits, output.mask) for logits in output[:2])
    return start.log_softmax(dim=1), end.log_softmax(dim=1)


def _divergence(target: Tensor, log_prediction: Tensor) -> Tensor:
    """KL(target || prediction), with 0 log 0 = 0.  (B, A, L), (B, L) -> (B, A)"""
    expanded = log_prediction[:, None].expand_as(target)
    return kl_div(expanded, target, reduction="none").sum(dim=2)


# --- Block-Skim -----------------------------------------------------------------------------------


@settings
class SkimLossConfig:
    """The kind of block loss, its two weights, and ``two_tokens`` of :func:`block_labels`."""

    kind: Literal["paper", "per token", "released"] = "paper"
    alpha: Weight = 1.0  # weight of this loss relative to the answer loss
    beta: Weight = 4.0  # weight of a block with an answer relative to one without
    two_tokens: bool = False


PAPER = SkimLossConfig()  # section 5.1; for ALBERT, whose layers share weights, alpha = 0.05
RELEASED = SkimLossConfig("released", alpha=0.1, beta=20.0, two_tokens=True)


def skim_loss(
    logits: Iterable[Tensor], labels: Tensor, sizes: Tensor, config: SkimLossConfig = PAPER
) -> Tensor:
    """Weighted binary cross-entropy of the block scores, summed over layers.  -> (B,) float32

        c_k = -beta y_k log sigma(x_k) - (1 - y_k) log (1 - sigma(x_k))
        paper     : alpha sum_l sum_k c_k                Eq. 4 and 5
        per token : alpha sum_l sum_k n_k c_k / 32       equal to "paper" for full blocks of 32
        released  : alpha sum_l sum_k c_k / sum_k (beta y_k + 1 - y_k)

    logits: x (B, K) of each layer l; labels y (B, K), bool or 0 to 1; sizes n (B, K) in tokens, 0
    for blocks that do not exist or were not scored. "per token" makes the scale independent of the
    block size. A row without blocks has loss 0. The released code takes the weighted mean over all
    blocks of a batch, including question and padding; here it is over each row's passage blocks.
    """
    real, y = sizes > 0, labels.float()
    weights = (sizes / 32 if config.kind == "per token" else 1.0) * real
    if config.kind == "released":
        total = ((config.beta * y + 1 - y) * real).sum(dim=1, keepdim=True)
        weights = real / total.clamp(min=torch.finfo().tiny)
    total = y.new_zeros(len(y))
    for layer in logits:
        x = layer.float().masked_fill(~real, 0.0)  # masked logits may be the dtype's minimum
        loss = config.beta * y * softplus(-x) + (1 - y) * softplus(x)
        total = total + (weights * loss).sum(dim=1)
    return config.alpha * total


def block_labels(
    membership: Tensor, spans: Tensor, weights: Tensor, two_tokens: bool = False
) -> Tensor:
    """Which blocks hold a token of any gold answer.  -> (B, K) bool

    membership (B, K, L) bool: position l is in block k; spans (B, A, 2) int64 inclusive; weights
    (B, A), 0 where padded. ``two_tokens``: the rule of the released code, at least two tokens of
    the first gold answer; an answer of a single word piece then labels no block.
    """
    position = torch.arange(membership.shape[2], device=spans.device)
    inside = (position >= spans[..., :1]) & (position <= spans[..., 1:])  # (B, A, L)
    inside &= (weights > 0)[..., None]
    if two_tokens:
        return (membership & inside[:, :1]).sum(dim=2) > 1
    return (membership & inside.any(dim=1, keepdim=True)).any(dim=2)


# --- answer distillation --------------------------------------------------------------------------


@settings
class DistillConfig:
    """Weights and settings of the four distillation losses; the defaults are the paper's."""

    ce_weight: Weight = 1.0
    kd_weight: Weight = 1.0  # times temperature^2, which keeps the gradient's scale
    margin_weight: Weight = 0.3  # gamma
    attention_weight: Weight = 0.1  # delta
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    margin: Weight = 1.0
    answers: Literal["mean", "min"] = "mean"  # reduction over several gold answers
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the gold label

    def __post_init__(self):
        if not any((self.ce_weight, self.kd_weight, self.margin_weight, self.attention_weight)):
            raise QalibError("all four distillation weights are 0; set one above 0.")


def teacher_probabilities(logits: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft targets of an ensemble: the mean of its teachers' probabilities (section 3.4).

        q = 1/T sum_t softmax(a_t / tau)

    logits a (T, B, L), mask (B, L) -> (B, L) float32, 0 at padding
    """
    scaled = logits.float() / temperature  # before masking: the minimum / tau overflows for tau < 1
    q = mask_logits(scaled, mask).softmax(dim=2).mean(dim=0)
    return q.masked_fill(~mask, 0.0)  # also where a row has no real position at all


def kd_loss(output: ReaderOutput, start: Tensor, end: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy between soft targets and the student (section 3.2).  -> (B,) float32

        L_KD = -sum_i q1(i) log p1(i) - sum_j q2(j) log p2(j),   p = softmax(b / tau)

    start, end (B, L): q1 and q2, at the same temperature. The minimum is their :func:`entropy`.
    """
    total = 0.0
    for logits, q in zip(output[:2], (start, end), strict=True):
        log_p = mask_logits(logits.float() / temperature, output.mask).log_softmax(dim=1)
        total = total - (q * log_p.masked_fill(~output.mask, 0.0)).sum(dim=1)
    return total


def entropy(start: Tensor, end: Tensor) -> Tensor:
    """-sum_i q1(i) log q1(i) - sum_j q2(j) log q2(j), with 0 log 0 = 0.  (B, L) x 2 -> (B,)"""
    return torch.special.entr(start).sum(dim=1) + torch.special.entr(end).sum(dim=1)


def margin_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    distractors: Tensor,
    found: Tensor,
    margin: float = 1.0,
) -> Tensor:
    """Hinge loss between the gold span (k, l) and the distractor (i, j) (section 3.2).  -> (B,)

        L_ANS = max(0, margin - b1(k) + b1(i)) + max(0, margin - b2(l) + b2(j))

    On raw logits, without temperature. spans (B, A, 2), weights (B, A): a weighted mean over gold
    answers. distractors (B, 2) int64; found (B,) bool: the loss is 0 where there is no distractor.
    A hinge is constant where i = k or j = l; :func:`constant_hinges` counts these.
    """
    total = 0.0
    for side, logits in enumerate((output.start_logits.float(), output.end_logits.float())):
        gold = logits.gather(1, spans[..., side])  # (B, A)
        distractor = logits.gather(1, distractors[:, side : side + 1])  # (B, 1)
        hinge = relu(margin - gold + distractor).masked_fill(weights == 0, 0.0)
        total = total + (weights * hinge).sum(dim=1)
    return total.masked_fill(~found, 0.0)


def constant_hinges(spans: Tensor, weights: Tensor, distractors: Tensor, found: Tensor) -> Tensor:
    """How many of a row's two hinges are constant, a mean over gold answers.  -> (B,), 0 to 2"""
    same = spans == distractors[:, None]  # (B, A, 2)
    return (weights[..., None] * same).sum(dim=(1, 2)).masked_fill(~found, 0.0)


def attention_loss(student: Tensor, teacher: Tensor, words: Tensor, question: Tensor) -> Tensor:
    """Squared distance of two attention maps, summed over passage words (section 3.3).  -> (B,)

        L_ATT = 1/2 sum_j sum_i (D_ij - E_ij)^2     j passage words, i question tokens

    student E, teacher D (B, L, M): probabilities over the question's tokens; words (B, L) and
    question (B, M) bool. With a mean instead of the sum, the paper's delta would be negligible.
    """
    real = words[:, :, None] & question[:, None]
    difference = (teacher.float() - student.float()).masked_fill(~real, 0.0)
    return 0.5 * difference.square().sum(dim=(1, 2))


def hops_loss(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], words: Tensor, question: Tensor
) -> Tensor:
    """:func:`attention_loss` averaged over a reader's hops "align 1", "align 2", ...  -> (B,)

    Raises QalibError if there are no hops or if student and teacher differ in their number.
    """
    ours, theirs = (sorted(n for n in x if n.startswith("align ")) for x in (student, teacher))
    if not ours or ours != theirs:
        raise QalibError(
            f"attention distillation needs equally many alignment maps: the student has "
            f"{len(ours)} and the teachers {len(theirs)}; set attention_weight to 0."
        )
    losses = [attention_loss(student[name], teacher[name], words, question) for name in ours]
    return torch.stack(losses).mean(dim=0)


class DistillationLosses(NamedTuple):
    """The four losses of a batch, unweighted, each (B,) float32."""

    ce: Tensor
    kd: Tensor
    margin: Tensor
    attention: Tensor


def distillation_loss(losses: DistillationLosses, config: DistillConfig) -> Tensor:
    """The joint objective, Equation 1.  -> (B,)

        L = L_CE + tau^2 L_KD + gamma L_ANS + delta L_ATT

    A loss with weight 0 is left out of the computation graph.
    """
    kd_weight = config.kd_weight * config.temperature**2
    weights = (config.ce_weight, kd_weight, config.margin_weight, config.attention_weight)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True) if w)
