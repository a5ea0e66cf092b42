"""The losses of answer distillation, formula first. Each returns one value per example, (B,).

Notation: B batch, L positions, T teachers, N question tokens, A gold answers (padded with weight
0); a logits of a teacher, b of the student, tau the temperature, (k, l) the gold span and (i, j)
the confusing one; D and E the attention of teacher and student from a passage word to the
question, which sums to 1 over the question's tokens.

Masks are boolean, true = real. Padding gets probability 0 before anything is summed, so that no
example sees what else is in its batch. To be averaged over all examples of a batch, also those
without a confusing answer: else the weight of a loss would depend on how many have one.

Source: Hu et al. 2018, Attention-Guided Answer Distillation for Machine Reading Comprehension.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from qalib.errors import QalibError
from qalib.losses import REDUCTIONS, span_loss
from qalib.spans import ReaderOutput, mask_logits

AVERAGES = ("probabilities", "logits")
HOPS = ("mean", "last", "sum")
HOP = "align "  # a reader's attention maps of hop 1, 2, ... are called "align 1", "align 2", ...


@dataclass(frozen=True)
class DistillConfig:
    """The weights of the four losses and how each is taken; the defaults are the paper's.

    ``average``: the ensemble is the mean of its members' probabilities, or of their logits.
    ``hops``: the attention loss of a reader of several hops is their mean, the last or the sum;
    the paper does not say which.
    """

    ce: float = 1.0
    kd: float = 1.0  # times temperature^2, which keeps the gradient's size
    gamma: float = 0.3  # of the margin to the confusing answer
    delta: float = 0.1  # of attention
    temperature: float = 2.0
    margin: float = 1.0
    average: str = "probabilities"
    hops: str = "mean"
    answers: str = "mean"  # how several gold answers count: mean, marginal or min
    smoothing: float = 0.0  # share of the gold label that goes to all positions alike

    def __post_init__(self):
        known = {"average": AVERAGES, "hops": HOPS, "answers": REDUCTIONS}
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise QalibError(f"{name} must be one of {', '.join(values)}, not {value!r}.")
        if not 0 < self.temperature < math.inf:
            raise QalibError(
                f"the temperature must be above 0, not {self.temperature}; the paper's is 2, and "
                "1 leaves probabilities as they are."
            )
        weights = {name: getattr(self, name) for name in ("ce", "kd", "gamma", "delta", "margin")}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise QalibError(f"{name} must be 0 or more, not {value}.")
        if not any((self.ce, self.kd, self.gamma, self.delta)):
            raise QalibError("nothing to learn: ce, kd, gamma and delta are all 0; raise one.")
        if not 0 <= self.smoothing < 1:
            raise QalibError(f"smoothing must be from 0 to below 1, not {self.smoothing}.")


def label_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with the gold spans, the labels smoothed or not (section 3.1).  -> (B,)

        L_CE = -log p1(k) - log p2(l)
        (1 - s) L_CE + s (-mean_i log p1(i) - mean_j log p2(j))    over the real positions

    spans (B, A, 2) int64 inclusive, weights (B, A); several gold answers count as in
    :func:`qalib.losses.span_loss`. The paper's double sum over k and l is notation: each of the
    two terms counts once.
    """
    loss = span_loss(output, spans, weights, reduction)
    if not smoothing:
        return loss
    share = output.mask / output.mask.sum(dim=1, keepdim=True).clamp(min=1)
    flat = soft_cross_entropy(output.start_logits, share, output.mask)
    flat = flat + soft_cross_entropy(output.end_logits, share, output.mask)
    return (1 - smoothing) * loss + smoothing * flat


def teacher_probabilities(
    logits: Tensor, mask: Tensor, temperature: float = 1.0, average: str = "probabilities"
) -> Tensor:
    """What an ensemble says of one boundary (section 3.4).  (T, B, L), (B, L) -> (B, L) float32

        probabilities : q = mean_t softmax(a_t / tau)      the paper's
        logits        : q = softmax(mean_t a_t / tau)      what most toolkits do

    The two differ: a mean of logits lets one sure teacher overrule the others. Padding gets 0.
    """
    scaled = logits.float() / temperature  # before the mask: tau < 1 must not overflow it
    if average == "logits":
        scaled = scaled.mean(dim=0, keepdim=True)
    q = mask_logits(scaled, mask).softmax(dim=2).mean(dim=0)
    return q.masked_fill(~mask, 0.0)  # also where a row has no real position at all


def kd_loss(output: ReaderOutput, start: Tensor, end: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student with its teachers (section 3.2's L_KD).  -> (B,) float32

        L_KD = -sum_i q1(i) log p1(i) - sum_j q2(j) log p2(j),   p = softmax(b / tau)

    start, end (B, L): q1 and q2 at the same temperature. Its lowest value is the entropy of q,
    :func:`entropy`. Equation 1 weighs it by tau^2, because its gradient shrinks by 1 / tau^2.
    """
    mask = output.mask
    loss = soft_cross_entropy(output.start_logits.float() / temperature, start, mask)
    return loss + soft_cross_entropy(output.end_logits.float() / temperature, end, mask)


def soft_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """-sum_i target(i) log softmax(logits)(i) over the mask.  (B, L) x 3 -> (B,) float32"""
    log_p = mask_logits(logits, mask).log_softmax(dim=1)
    return -(target * log_p.masked_fill(~mask, 0.0)).sum(dim=1)


def entropy(start: Tensor, end: Tensor) -> Tensor:
    """-sum_i q1(i) log q1(i) - sum_j q2(j) log q2(j), with 0 log 0 = 0.  (B, L) x 2 -> (B,)"""
    return torch.special.entr(start).sum(dim=1) + torch.special.entr(end).sum(dim=1)


def margin_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    confusing: Tensor,
    found: Tensor,
    margin: float = 1.0,
) -> Tensor:
    """The gold answer is to beat the confusing one on either boundary (section 3.2).  -> (B,)

        L_ANS = max(0, 1 - b1(k) + b1(i)) + max(0, 1 - b2(l) + b2(j))

    On raw logits, without temperature. spans (B, A, 2), weights (B, A): several gold answers
    count by their share. confusing (B, 2) int64, found (B,) bool: 0 where there is none. Where
    i = k or j = l a hinge stays at the margin and teaches nothing; :func:`tied` counts those.
    """
    total = 0.0
    for side, logits in enumerate((output.start_logits.float(), output.end_logits.float())):
        gold = logits.gather(1, spans[..., side])  # (B, A)
        rival = logits.gather(1, confusing[:, side : side + 1])  # (B, 1)
        hinge = relu(margin - gold + rival).masked_fill(weights == 0, 0.0)
        total = total + (weights * hinge).sum(dim=1)
    return total.masked_fill(~found, 0.0)


def tied(spans: Tensor, weights: Tensor, confusing: Tensor, found: Tensor) -> Tensor:
    """How many of an example's two hinges are constant: i = k or j = l.  -> (B,), 0 to 2"""
    same = spans == confusing[:, None]  # (B, A, 2)
    return (weights[..., None] * same).sum(dim=(1, 2)).masked_fill(~found, 0.0)


def attention_loss(student: Tensor, teacher: Tensor, words: Tensor, question: Tensor) -> Tensor:
    """Squared distance of two attention maps, summed over passage words (section 3.3).  -> (B,)

        L_ATT = 1/2 sum_j sum_i (D_ij - E_ij)^2     j passage words, i question tokens

    student, teacher (B, L, N): probabilities over the question's tokens; words (B, L) and
    question (B, N) bool. A sum, not a mean, so it grows with the passage: a mean would turn the
    paper's delta of 0.1 off.
    """
    real = words[:, :, None] & question[:, None]
    apart = (teacher.float() - student.float()).masked_fill(~real, 0.0)
    return 0.5 * apart.square().sum(dim=(1, 2))


def hops_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    words: Tensor,
    question: Tensor,
    hops: str = "mean",
) -> Tensor:
    """:func:`attention_loss` over the hops of a reader: their mean, the last or the sum.  -> (B,)

    Raises QalibError if one of the two has no hops, or if all are asked for and they have not
    equally many.
    """
    ours, theirs = hop_names(student), hop_names(teacher)
    if not ours or not theirs:
        who = "teachers kept" if ours else "student gives"
        raise QalibError(
            f"attention distillation: the {who} no attention on the question; set delta to 0."
        )
    if hops == "last":
        ours, theirs = ours[-1:], theirs[-1:]
    if len(ours) != len(theirs):
        raise QalibError(
            f"attention distillation: {len(ours)} hops of the student against {len(theirs)} of "
            "its teachers; give both as many, or set hops to last."
        )
    losses = [
        attention_loss(student[a], teacher[b], words, question)
        for a, b in zip(ours, theirs, strict=True)
    ]
    total = torch.stack(losses).sum(dim=0)
    return total / len(losses) if hops == "mean" else total


def hop_names(attentions: Mapping[str, object]) -> list[str]:
    """The names of a reader's hops, "align 1", "align 2", ..., in order."""
    named = [name for name in attentions if name.startswith(HOP)]
    return sorted(named, key=lambda name: int(name.removeprefix(HOP)))


class Parts(NamedTuple):
    """The four losses of a batch, unweighted, each (B,) float32."""

    ce: Tensor
    kd: Tensor
    ans: Tensor
    att: Tensor


def total_loss(parts: Parts, config: DistillConfig) -> Tensor:
    """The joint objective, Equation 1.  -> (B,)

        L = L_CE + tau^2 L_KD + gamma L_ANS + delta L_ATT

    A loss of weight 0 is left out of the graph.
    """
    weights = (config.ce, config.kd * config.temperature**2, config.gamma, config.delta)
    return sum(w * part for w, part in zip(weights, parts, strict=True) if w)
