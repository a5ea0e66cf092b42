"""Losses against literal references, and their independence of padding and of the batch."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.losses import (
    PAPER,
    RELEASED,
    DistillationLosses,
    DistillConfig,
    SkimLossConfig,
    attention_loss,
    block_labels,
    constant_hinges,
    distillation_loss,
    entropy,
    gaussian_span_loss,
    gaussian_target,
    hops_loss,
    kd_loss,
    margin_loss,
    skim_loss,
    span_loss,
    teacher_probabilities,
)

LENGTHS = (7, 4, 1)  # passage tokens of three rows, after one position of padding
SPANS = torch.tensor([[[1, 2], [3, 3]], [[2, 4], [0, 0]], [[1, 1], [0, 0]]])
WEIGHTS = torch.tensor([[0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])


def mask_of(lengths, length):
    position = torch.arange(length)
    return (position >= 1) & (position < 1 + torch.tensor(lengths)[:, None])


def output_of(seed=0, lengths=LENGTHS, length=10, scale=3.0):
    """Random logits with large numbers at padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(lengths, length)
    logits = scale * torch.randn(2, len(lengths), length, generator=generator)
    start, end = logits.masked_fill(~mask, 50.0)
    return ReaderOutput(start.requires_grad_(), end.requires_grad_(), mask)


def real(tensor, mask):
    """The real values of a row as plain numbers."""
    return tensor[mask].tolist()


def literal_softmax(logits, temperature=1.0):
    powers = [math.exp(x / temperature) for x in logits]
    return [p / sum(powers) for p in powers]


def literal_nll(output, row, span):
    mask = output.mask[row]
    p1, p2 = (literal_softmax(real(logits[row], mask)) for logits in output[:2])
    return -math.log(p1[span[0] - 1]) - math.log(p2[span[1] - 1])  # positions count from 1


# --- span prediction ---


@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_span_loss_is_its_formula(reduction):
    output = output_of()
    loss = span_loss(output, SPANS, WEIGHTS, reduction)
    for row, count in enumerate((2, 1, 1)):
        nll = [literal_nll(output, row, span) for span in SPANS[row, :count].tolist()]
        expected = {
            "mean": sum(w * v for w, v in zip(WEIGHTS[row].tolist(), nll, strict=False)),
            "min": min(nll),
        }[reduction]
        assert loss[row].item() == pytest.approx(expected, abs=1e-4)


def test_smoothed_labels_are_their_formula():
    output = output_of(11)
    loss = span_loss(output, SPANS, WEIGHTS, smoothing=0.1)
    plain = span_loss(output, SPANS, WEIGHTS)
    for row, mask in enumerate(output.mask):
        uniform = 0.0
        for logits in output[:2]:
            p = literal_softmax(real(logits[row], mask))
            uniform -= sum(math.log(x) for x in p) / len(p)
        assert loss[row].item() == pytest.approx(0.9 * plain[row].item() + 0.1 * uniform, rel=1e-5)


def literal_gaussian(logits, mask, centre, sigma):
    """KL(Gaussian || softmax) of one row in plain Python."""
    inside = [i for i, is_real in enumerate(mask) if is_real]
    bell = [math.exp(-((i - centre) ** 2) / (2 * sigma**2)) for i in inside]
    target = [b / sum(bell) for b in bell]
    p = literal_softmax([logits[i] for i in inside])
    return sum(t * (math.log(t) - math.log(q)) for t, q in zip(target, p, strict=True) if t)


def each_answer(sigma):
    """The Gaussian loss of every single gold answer, (B, A); infinite where padded."""
    losses = [
        gaussian_span_loss(output_of(), SPANS[:, [a]], torch.ones(3, 1), sigma) for a in range(2)
    ]
    return torch.stack(losses, dim=1).masked_fill(WEIGHTS == 0, torch.inf)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_gaussian_loss_is_its_formula(sigma):
    output, losses = output_of(), each_answer(sigma)
    for row, answer in ((0, 0), (0, 1), (1, 0), (2, 0)):
        mask = output.mask[row].tolist()
        expected = sum(
            literal_gaussian(output[side][row].tolist(), mask, SPANS[row, answer, side], sigma)
            for side in (0, 1)
        )
        assert losses[row, answer].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_sigma_0_is_cross_entropy_exactly_and_small_sigma_nearly(reduction):
    for seed in range(5):
        output = output_of(seed)
        cross_entropy = span_loss(output, SPANS, WEIGHTS, reduction)
        exact = gaussian_span_loss(output, SPANS, WEIGHTS, 0, reduction)
        assert torch.equal(exact, cross_entropy)
        nearly = gaussian_span_loss(output, SPANS, WEIGHTS, 0.1, reduction)
        torch.testing.assert_close(nearly, cross_entropy, atol=1e-5, rtol=0)
    wide = gaussian_span_loss(output, SPANS, WEIGHTS, 1.0, reduction)
    assert not torch.allclose(wide[:2], cross_entropy[:2], atol=0.1)


@settings(max_examples=25)
@given(st.floats(0, 20), st.integers(1, 30), st.data())
def test_targets_sum_to_one_inside_the_mask_and_peak_at_the_centre(sigma, length, data):
    centre = data.draw(st.integers(0, length - 1))
    mask = torch.arange(40)[None] < length
    target = gaussian_target(torch.tensor([[centre]]), mask, sigma)[0, 0]
    assert target[:length].sum().item() == pytest.approx(1, abs=1e-5)
    assert target[length:].abs().max() == 0
    assert target.max() == target[centre]


@pytest.mark.parametrize("sigma", [0, 2.0])
def test_gaussian_reductions_minimise_and_average(sigma):
    each, output = each_answer(sigma), output_of()
    assert torch.equal(gaussian_span_loss(output, SPANS, WEIGHTS, sigma, "min"), each.amin(dim=1))
    mean = gaussian_span_loss(output, SPANS, WEIGHTS, sigma, "mean")
    torch.testing.assert_close(mean, (WEIGHTS * each.masked_fill(WEIGHTS == 0, 0)).sum(dim=1))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'median'"):
        span_loss(output_of(), SPANS, WEIGHTS, "median")
    for arguments, message in (((1.0, "median"), "'median'"),):
        with pytest.raises(ValueError, match=message):
            gaussian_span_loss(output_of(), SPANS, WEIGHTS, *arguments)


# --- Block-Skim ---


CONFIGS = (PAPER, SkimLossConfig(alpha=0.05), RELEASED, SkimLossConfig(alpha=0.3, beta=0.5))
CONFIGS += (SkimLossConfig("per token", alpha=0.3),)


def literal_skim_loss(layers, labels, sizes, config):
    """One row: every layer and block in turn."""
    total = 0.0
    for logits in layers:
        loss = mass = 0.0
        for x, label, size in zip(logits, labels, sizes, strict=True):
            if not size:
                continue
            probability = 1 / (1 + math.exp(-x))
            weight = config.beta if label else 1.0
            weight *= size / 32 if config.kind == "per token" else 1
            loss -= weight * math.log(probability if label else 1 - probability)
            mass += weight
        total += loss / mass if config.kind == "released" and mass else loss
    return config.alpha * total


@pytest.mark.parametrize("config", CONFIGS)
def test_skim_loss_is_its_formula(config):
    generator = torch.Generator().manual_seed(0)
    layers = [3 * torch.randn(4, 5, generator=generator) for _ in range(3)]
    labels = torch.rand(4, 5, generator=generator) < 0.3
    sizes = torch.randint(1, 33, (4, 5), generator=generator)
    sizes = sizes * (torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None])
    loss = skim_loss(layers, labels, sizes, config)
    for row in range(4):
        logits = [layer[row].tolist() for layer in layers]
        expected = literal_skim_loss(logits, labels[row], sizes[row].tolist(), config)
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)
    assert loss[3] == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_missing_blocks_cost_nothing_and_get_no_gradient(config):
    """The logit of a missing block is the lowest number; rows are independent."""
    exists = torch.tensor([[True, True, False], [True, False, False]])
    labels = torch.tensor([[True, False, False], [False, False, False]])
    logits = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.0, 0.0]])
    logits = logits.masked_fill(~exists, torch.finfo().min).requires_grad_()
    loss = skim_loss([logits], labels, exists, config)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (logits.grad[~exists] == 0).all()
    assert (logits.grad[exists] != 0).all()
    alone = skim_loss([logits[:1, :2]], labels[:1, :2], exists[:1, :2], config)
    torch.testing.assert_close(alone, loss[:1])
    assert skim_loss([], labels, exists, config).tolist() == [0.0, 0.0]
    assert skim_loss([logits[:, :0]], labels[:, :0], exists[:, :0], config).tolist() == [0.0, 0.0]


def test_a_confident_mistake_has_a_finite_loss():
    logits, label, exists = torch.tensor([[-100.0]]), torch.tensor([[True]]), torch.tensor([[True]])
    assert skim_loss([logits], label, exists).item() == pytest.approx(400.0)
    assert skim_loss([logits.bfloat16()], label, exists).dtype == torch.float32


def test_block_labels_of_paper_and_released_code():
    block = torch.tensor([-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, -1])  # of each position
    membership = (block == torch.arange(2)[:, None]).expand(5, -1, -1)
    spans = torch.tensor(
        [
            [[4, 4], [8, 10]],  # one word piece, and another gold answer
            [[6, 8], [0, 0]],  # 1 + 2 tokens across an edge
            [[5, 6], [0, 0]],
            [[3, 10], [0, 0]],
            [[3, 10], [0, 0]],  # no answer: its weight is 0
        ]
    )
    weights = torch.tensor([[0.5, 0.5], [1, 0], [1, 0], [1, 0], [0, 0]])
    any_token = [[True, True], [True, True], [True, False], [True, True], [False, False]]
    two_tokens = [[False, False], [False, True], [True, False], [True, True], [False, False]]
    assert block_labels(membership, spans, weights).tolist() == any_token
    assert block_labels(membership, spans, weights, two_tokens=True).tolist() == two_tokens


# --- distillation: soft targets ---


def literal_ensemble(teachers, temperature):
    each = [literal_softmax(logits, temperature) for logits in teachers]
    return [sum(column) / len(each) for column in zip(*each, strict=True)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_kd_is_its_formula(temperature):
    teachers, student = [output_of(seed) for seed in (1, 2, 3)], output_of(4)
    q = [
        teacher_probabilities(
            torch.stack([teacher[side] for teacher in teachers]).detach(), student.mask, temperature
        )
        for side in (0, 1)
    ]
    loss = kd_loss(student, *q, temperature)
    assert loss.shape == (3,)
    for row, mask in enumerate(student.mask):
        expected = least = 0.0
        for side in (0, 1):
            each = [real(teacher[side][row], mask) for teacher in teachers]
            target = literal_ensemble(each, temperature)
            assert real(q[side][row], mask) == pytest.approx(target, abs=1e-6)
            p = literal_softmax(real(student[side][row], mask), temperature)
            for t, x in zip(target, p, strict=True):
                expected -= t * math.log(x)
                least -= t * math.log(t)
        assert loss[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert entropy(*q)[row].item() == pytest.approx(least, rel=1e-4, abs=1e-5)
        assert (q[0][row][~mask] == 0).all()


def test_the_temperature_divides_each_teachers_logits():
    """A temperature of 2 on the mean of probabilities at 1 gives another result."""
    logits = torch.tensor([[[6.0, 0.0]], [[-2.0, 0.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    right = teacher_probabilities(logits, mask, 2.0)
    late = teacher_probabilities(teacher_probabilities(logits, mask).log()[None], mask, 2.0)
    expected = (1 / (1 + math.exp(-3)) + 1 / (1 + math.exp(1))) / 2
    assert right[0, 0].item() == pytest.approx(expected)
    assert abs(right[0, 0].item() - late[0, 0].item()) > 0.01


def test_tau_squared_keeps_the_size_of_the_gradient():
    """The gradient of L_KD is (p - q) / tau, which shrinks by 1 / tau^2 as tau grows."""
    norms = []
    for temperature in (200.0, 400.0):
        student, teacher = output_of(5, (6,), 8), output_of(6, (6,), 8)
        q = [
            teacher_probabilities(x.detach()[None], student.mask, temperature) for x in teacher[:2]
        ]
        zero = torch.zeros(1)
        losses = DistillationLosses(zero, kd_loss(student, *q, temperature), zero, zero)
        distillation_loss(losses, DistillConfig(temperature=temperature)).sum().backward()
        norms.append(student.start_logits.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_a_student_that_agrees_has_no_gradient_and_a_certain_teacher_no_nan():
    student = output_of(7)
    q = [teacher_probabilities(x.detach()[None], student.mask, 2.0) for x in student[:2]]
    loss = kd_loss(student, *q, 2.0)
    torch.testing.assert_close(loss, entropy(*q))
    loss.sum().backward()
    assert student.start_logits.grad.abs().max() < 1e-6
    certain = torch.zeros_like(q[0])
    certain[:, 1] = 1.0  # 0 log 0 everywhere else, and log 0 for the student
    far = ReaderOutput(1e4 * student[0].detach(), 1e4 * student[1].detach(), student.mask)
    assert kd_loss(far, certain, certain, 0.1).isfinite().all()
    empty = torch.zeros_like(student.mask)
    assert teacher_probabilities(student[0][None], empty).sum() == 0


# --- distillation: distractors ---


DISTRACTORS = torch.tensor([[5, 6], [2, 3], [0, 0]])
FOUND = torch.tensor([True, True, False])


@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_the_margin_loss_is_its_formula(margin):
    student = output_of(8)
    loss = margin_loss(student, SPANS, WEIGHTS, DISTRACTORS, FOUND, margin)
    start, end = student.start_logits.tolist(), student.end_logits.tolist()
    for row, golds in ((0, 2), (1, 1)):
        i, j = DISTRACTORS[row].tolist()
        expected = 0.0
        for (k, m), w in zip(SPANS[row, :golds].tolist(), WEIGHTS[row].tolist(), strict=False):
            expected += w * max(0.0, margin - start[row][k] + start[row][i])
            expected += w * max(0.0, margin - end[row][m] + end[row][j])
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)
    assert loss[2] == 0


def test_hinges_of_a_shared_boundary_are_constant_and_counted():
    student = output_of(9)
    assert constant_hinges(SPANS, WEIGHTS, DISTRACTORS, FOUND).tolist() == [0.0, 1.0, 0.0]
    assert constant_hinges(SPANS, WEIGHTS, DISTRACTORS, ~FOUND).tolist() == [0.0, 0.0, 0.0]
    half = torch.tensor([[3, 6], [2, 4], [1, 1]])
    assert constant_hinges(SPANS, WEIGHTS, half, FOUND).tolist() == [0.75, 2.0, 0.0]
    loss = margin_loss(student, SPANS, WEIGHTS, DISTRACTORS, FOUND)
    loss[1].backward()
    assert student.start_logits.grad[1].abs().max() == 0  # i = k: the hinge is always 1
    gap = (student.end_logits[1, 3] - student.end_logits[1, 4] + 1).item()
    assert student.end_logits.grad[1].abs().max() == (1 if gap > 0 else 0)
    assert loss[1].item() == pytest.approx(1 + max(0.0, gap), rel=1e-5)


# --- distillation: attention ---


def maps_of(seed, lengths=LENGTHS, questions=(3, 5, 2), length=10, tokens=6):
    """Softmax over the question's tokens of every position, and noise at padding."""
    generator = torch.Generator().manual_seed(seed)
    question = torch.arange(tokens) < torch.tensor(questions)[:, None]
    logits = 2 * torch.randn(len(lengths), length, tokens, generator=generator)
    table = logits.masked_fill(~question[:, None], -torch.inf).softmax(dim=2)
    noise = torch.rand(table.shape, generator=generator)
    return torch.where(question[:, None], table, noise), question


def test_attention_loss_is_its_formula_summed_over_words():
    (student, question), (teacher, _) = maps_of(0), maps_of(1)
    words = mask_of(LENGTHS, 10)
    loss = attention_loss(student, teacher, words, question)
    for row, (m, n) in enumerate(zip(LENGTHS, (3, 5, 2), strict=True)):
        expected = 0.0
        for j in range(1, 1 + m):
            for i in range(n):
                expected += 0.5 * (teacher[row, j, i].item() - student[row, j, i].item()) ** 2
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)
    twice = [torch.cat([x, x], dim=1) for x in (student, teacher, words)]
    torch.testing.assert_close(attention_loss(*twice, question), 2 * loss)


def test_the_mean_of_teachers_has_the_gradient_of_the_mean_of_losses():
    """So caching the ensemble's mean attention is enough."""
    (student, question), words = maps_of(0), mask_of(LENGTHS, 10)
    teachers = [maps_of(seed)[0] for seed in (1, 2, 3)]
    grads = []
    for losses in (
        [attention_loss(student.requires_grad_(), torch.stack(teachers).mean(0), words, question)],
        [attention_loss(student.requires_grad_(), t, words, question) for t in teachers],
    ):
        grads.append(torch.autograd.grad(torch.stack(losses).mean(0).sum(), student)[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_hops_of_one_name_are_compared():
    question, words = maps_of(0)[1], mask_of(LENGTHS, 10)
    student = {f"align {h}": maps_of(h)[0] for h in (10, 2, 1)}
    teacher = {f"align {h}": maps_of(h + 20)[0] for h in (1, 2, 10)}
    each = [attention_loss(student[n], teacher[n], words, question) for n in teacher]
    student["question"] = question
    torch.testing.assert_close(hops_loss(student, teacher, words, question), sum(each) / 3)


def test_missing_attention_is_named():
    (table, question), words = maps_of(0), mask_of(LENGTHS, 10)
    one, two = {"align 1": table}, {"align 1": table, "align 2": table}
    for student, teacher, message in (
        (one, {}, "student has 1 and the teachers 0; set attention_weight to 0"),
        ({"question": question}, one, "student has 0 and the teachers 1"),
        (one, two, "student has 1 and the teachers 2"),
    ):
        with pytest.raises(QalibError, match=message):
            hops_loss(student, teacher, words, question)


# --- all losses ---


def every_loss(student, teacher, spans, weights, distractors, found, maps, question):
    q = [teacher_probabilities(x.detach()[None], student.mask, 2.0) for x in teacher[:2]]
    return {
        "smoothed": span_loss(student, spans, weights, smoothing=0.1),
        **{r: span_loss(student, spans, weights, r) for r in ("mean", "min")},
        "gaussian": gaussian_span_loss(student, spans, weights, 1.5, "mean"),
        "gaussian min": gaussian_span_loss(student, spans, weights, 1.5, "min"),
        "kd": kd_loss(student, *q, 2.0),
        "entropy": entropy(*q),
        "margin": margin_loss(student, spans, weights, distractors, found),
        "attention": attention_loss(*maps, student.mask, question),
        "constant": constant_hinges(spans, weights, distractors, found),
    }


def test_losses_do_not_depend_on_padding_or_the_rest_of_the_batch():
    student, teacher = output_of(12), output_of(13)
    (ours, question), (theirs, _) = maps_of(14), maps_of(15)
    gold = (SPANS, WEIGHTS, DISTRACTORS, FOUND)
    whole = every_loss(student, teacher, *gold, (ours, theirs), question)
    for row, (m, n) in enumerate(zip(LENGTHS, (3, 5, 2), strict=True)):
        one, cut = slice(row, row + 1), slice(0, m + 1)
        spans = SPANS[one, : 1 if WEIGHTS[row, 1] == 0 else 2]
        alone = every_loss(
            ReaderOutput(*(x[one, cut] for x in student[:3])),
            ReaderOutput(*(x[one, cut] for x in teacher[:3])),
            spans,
            WEIGHTS[one, : spans.shape[1]],
            DISTRACTORS[one],
            FOUND[one],
            (ours[one, cut, :n], theirs[one, cut, :n]),
            question[one, :n],
        )
        for name, value in alone.items():
            torch.testing.assert_close(value, whole[name][one], msg=name)


def test_gradients_stay_inside_the_mask():
    student, teacher = output_of(16), output_of(17)
    (ours, question), (theirs, _) = maps_of(18), maps_of(19)
    ours.requires_grad_()
    gold = (SPANS, WEIGHTS, DISTRACTORS, FOUND)
    losses = every_loss(student, teacher, *gold, (ours, theirs), question)
    sum(value.sum() for value in losses.values()).backward()
    for x in student[:2]:
        assert x.grad.isfinite().all()
        assert (x.grad[~student.mask] == 0).all()
    inside = student.mask[:, :, None] & question[:, None]
    assert (ours.grad[~inside] == 0).all()
    assert (ours.grad[inside] != 0).any()


def test_losses_of_half_precision_are_float32():
    student = output_of(20)
    half = ReaderOutput(*(x.detach().bfloat16() for x in student[:2]), student.mask)
    (ours, question), (theirs, _) = maps_of(21), maps_of(22)
    gold = (SPANS, WEIGHTS, DISTRACTORS, FOUND)
    for value in every_loss(half, half, *gold, (ours.bfloat16(), theirs), question).values():
        assert value.dtype == torch.float32


def test_the_total_is_equation_1():
    losses = DistillationLosses(*torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]]))
    paper = DistillConfig()
    assert (paper.margin_weight, paper.attention_weight, paper.temperature) == (0.3, 0.1, 2.0)
    expected = [1 + 4 * 3 + 0.3 * 7 + 0.1 * 13, 2 + 4 * 5 + 0.3 * 11 + 0.1 * 17]
    assert distillation_loss(losses, paper).tolist() == pytest.approx(expected)
    without = DistillConfig(kd_weight=0.0, temperature=3.0)
    assert distillation_loss(losses, without).tolist() == pytest.approx([4.4, 7.0])


def test_settings_are_plain_data_with_the_published_defaults():
    assert (PAPER.alpha, PAPER.beta) == (1.0, 4.0)
    assert (RELEASED.alpha, RELEASED.beta, RELEASED.two_tokens) == (0.1, 20.0, True)
    for config in (RELEASED, DistillConfig()):
        assert type(config)(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SkimLossConfig, {"kind": "focal"}, "kind is 'focal'"),
        (SkimLossConfig, {"beta": -1.0}, "beta"),
        (DistillConfig, {"temperature": 0.0}, "temperature is 0.0"),
        (DistillConfig, {"answers": "all"}, "answers"),
        (DistillConfig, {"smoothing": 1.0}, "smoothing"),
        (
            DistillConfig,
            dict.fromkeys(("ce_weight", "kd_weight", "margin_weight", "attention_weight"), 0.0),
            "all four",
        ),
    ],
)
def test_bad_settings_are_refused(kind, fields, message):
    with pytest.raises(QalibError, match=message):
        kind(**fields)
