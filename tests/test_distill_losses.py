"""The distillation losses are their formulas, written out position by position."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qalib.distill.losses import (
    AVERAGES,
    HOPS,
    DistillConfig,
    Parts,
    attention_loss,
    entropy,
    hop_names,
    hops_loss,
    kd_loss,
    label_loss,
    margin_loss,
    soft_cross_entropy,
    teacher_probabilities,
    tied,
    total_loss,
)
from qalib.distill.schedule import Schedule
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.spans import ReaderOutput

LENGTHS = (7, 4, 1)  # passage tokens of three rows, which stand behind one position of padding


def mask_of(lengths, length):
    place = torch.arange(length)
    return (place >= 1) & (place < 1 + torch.tensor(lengths)[:, None])


def output_of(seed=0, lengths=LENGTHS, length=10, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    start, end = scale * torch.randn(2, len(lengths), length, generator=generator)
    return ReaderOutput(start.requires_grad_(), end.requires_grad_(), mask_of(lengths, length))


def literal_softmax(logits, temperature=1.0):
    powers = [math.exp(x / temperature) for x in logits]
    return [p / sum(powers) for p in powers]


def real(tensor, mask):
    """The real values of a row as plain numbers."""
    return tensor[mask].tolist()


# Vanilla distillation


def literal_ensemble(teachers, temperature, average):
    if average == "probabilities":
        each = [literal_softmax(logits, temperature) for logits in teachers]
        return [sum(column) / len(each) for column in zip(*each, strict=True)]
    mean = [sum(column) / len(teachers) for column in zip(*teachers, strict=True)]
    return literal_softmax(mean, temperature)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_kd_is_its_formula(temperature, average):
    teachers = [output_of(seed) for seed in (1, 2, 3)]
    student = output_of(4)
    q = [
        teacher_probabilities(
            torch.stack([teacher[side] for teacher in teachers]).detach(),
            student.mask,
            temperature,
            average,
        )
        for side in (0, 1)
    ]
    found = kd_loss(student, *q, temperature)
    assert found.shape == (3,)
    for row, mask in enumerate(student.mask):
        expected = least = 0.0
        for side in (0, 1):
            target = literal_ensemble(
                [real(teacher[side][row], mask) for teacher in teachers], temperature, average
            )
            assert real(q[side][row], mask) == pytest.approx(target, abs=1e-6)
            said = literal_softmax(real(student[side][row], mask), temperature)
            for t, p in zip(target, said, strict=True):
                expected -= t * math.log(p)
                least -= t * math.log(t)
        assert found[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert entropy(*q)[row].item() == pytest.approx(least, rel=1e-4, abs=1e-5)
        assert (q[0][row][~mask] == 0).all()


def test_averaged_probabilities_and_logits_differ():
    """Two teachers, each sure of another place: a mean of logits gives the third one more."""
    logits = torch.tensor([[[4.0, 0.0, -2.0]], [[0.0, 4.0, -2.0]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    by_probability = teacher_probabilities(logits, mask)
    by_logit = teacher_probabilities(logits, mask, average="logits")
    assert by_probability[0].tolist() == pytest.approx([0.4988, 0.4988, 0.0024], abs=1e-3)
    assert by_logit[0].tolist() == pytest.approx([0.4954, 0.4954, 0.0091], abs=1e-3)


def test_temperature_is_applied_teacher_by_teacher():
    """tau 2 on the mean of probabilities at tau 1 is another thing."""
    logits = torch.tensor([[[6.0, 0.0]], [[-2.0, 0.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    right = teacher_probabilities(logits, mask, 2.0)
    late = teacher_probabilities(teacher_probabilities(logits, mask).log()[None], mask, 2.0)
    expected = (1 / (1 + math.exp(-3)) + 1 / (1 + math.exp(1))) / 2
    assert right[0, 0].item() == pytest.approx(expected)
    assert abs(right[0, 0].item() - late[0, 0].item()) > 0.01


def test_tau_squared_keeps_the_gradient():
    """The gradient of L_KD is (p - q) / tau, which shrinks by 1 / tau^2 as tau grows."""
    mask = mask_of((6,), 8)
    norms = []
    for temperature in (200.0, 400.0):
        student = output_of(5, (6,), 8)
        teacher = output_of(6, (6,), 8)
        q = [teacher_probabilities(x.detach()[None], mask, temperature) for x in teacher[:2]]
        parts = Parts(*(torch.zeros(1),) * 4)._replace(kd=kd_loss(student, *q, temperature))
        total_loss(parts, DistillConfig(temperature=temperature)).sum().backward()
        norms.append(student.start_logits.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_a_student_that_agrees_has_no_gradient_and_a_certain_teacher_no_nan():
    student = output_of(7)
    q = [teacher_probabilities(x.detach()[None], student.mask, 2.0) for x in student[:2]]
    loss = kd_loss(student, *q, 2.0)
    torch.testing.assert_close(loss, entropy(*q))
    loss.sum().backward()
    assert student.start_logits.grad.abs().max() < 1e-6
    sure = torch.zeros_like(q[0])
    sure[:, 1] = 1.0  # 0 log 0 everywhere else, and log 0 for the student
    far = ReaderOutput(1e4 * student[0].detach(), 1e4 * student[1].detach(), student.mask)
    assert kd_loss(far, sure, sure, 0.1).isfinite().all()
    nothing = torch.zeros_like(student.mask)
    assert teacher_probabilities(student[0][None], nothing).sum() == 0


# Confusing answers


def literal_margin(start, end, golds, shares, confusing, margin):
    i, j = confusing
    return sum(
        share * (max(0.0, margin - start[k] + start[i]) + max(0.0, margin - end[l] + end[j]))
        for (k, l), share in zip(golds, shares, strict=True)  # noqa: E741
    )


SPANS = torch.tensor([[[1, 2], [3, 3]], [[2, 4], [0, 0]], [[1, 1], [0, 0]]])
WEIGHTS = torch.tensor([[0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
CONFUSING = torch.tensor([[5, 6], [2, 3], [0, 0]])
FOUND = torch.tensor([True, True, False])


@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_the_margin_is_its_formula(margin):
    student = output_of(8)
    found = margin_loss(student, SPANS, WEIGHTS, CONFUSING, FOUND, margin)
    start, end = student.start_logits.tolist(), student.end_logits.tolist()
    for row, golds in ((0, 2), (1, 1)):
        expected = literal_margin(
            start[row],
            end[row],
            SPANS[row, :golds].tolist(),
            WEIGHTS[row, :golds].tolist(),
            CONFUSING[row].tolist(),
            margin,
        )
        assert found[row].item() == pytest.approx(expected, rel=1e-5)
    assert found[2] == 0


def test_a_row_without_a_confusing_answer_adds_nothing_but_counts():
    """The mean is over all rows, so that the weight of the loss does not grow with fewer mined."""
    student = output_of(8)
    loss = margin_loss(student, SPANS, WEIGHTS, CONFUSING, FOUND)
    loss.mean().backward()
    assert (student.start_logits.grad[2] == 0).all()
    assert loss.mean().item() == pytest.approx(loss[:2].sum().item() / 3)


def test_a_shared_boundary_is_constant_and_told():
    student = output_of(9)
    assert tied(SPANS, WEIGHTS, CONFUSING, FOUND).tolist() == [0.0, 1.0, 0.0]
    assert tied(SPANS, WEIGHTS, CONFUSING, ~FOUND).tolist() == [0.0, 0.0, 0.0]
    half = torch.tensor([[3, 6], [2, 4], [1, 1]])
    assert tied(SPANS, WEIGHTS, half, FOUND).tolist() == [0.75, 2.0, 0.0]
    loss = margin_loss(student, SPANS, WEIGHTS, CONFUSING, FOUND)
    loss[1].backward()
    assert student.start_logits.grad[1].abs().max() == 0  # i = k: its hinge is 1 for ever
    grad = student.end_logits.grad[1]
    gold_wins = student.end_logits[1, 4] - student.end_logits[1, 3] >= 1
    assert grad.abs().max() == (0 if gold_wins else 1)
    open_gap = student.end_logits[1, 3] - student.end_logits[1, 4] + 1
    assert loss[1].item() == pytest.approx(1 + max(0.0, open_gap.item()), rel=1e-5)


def test_logits_and_log_probabilities_have_the_same_margin():
    student = output_of(10)
    logs = [x.masked_fill(~student.mask, -1e30).log_softmax(dim=1) for x in student[:2]]
    same = ReaderOutput(*logs, student.mask)
    torch.testing.assert_close(
        margin_loss(student, SPANS, WEIGHTS, CONFUSING, FOUND),
        margin_loss(same, SPANS, WEIGHTS, CONFUSING, FOUND),
    )


# Attention


def maps_of(seed, lengths=LENGTHS, asked=(3, 5, 2), length=10, tokens=6):
    """Softmax over the question's tokens of every position, and rubbish at padding."""
    generator = torch.Generator().manual_seed(seed)
    question = torch.arange(tokens) < torch.tensor(asked)[:, None]
    logits = 2 * torch.randn(len(lengths), length, tokens, generator=generator)
    table = logits.masked_fill(~question[:, None], -torch.inf).softmax(dim=2)
    rubbish = torch.rand(table.shape, generator=generator)
    return torch.where(question[:, None], table, rubbish), question


def test_attention_is_its_formula_and_ignores_padding_in_both_directions():
    (student, question), (teacher, _) = maps_of(0), maps_of(1)
    words = mask_of(LENGTHS, 10)
    found = attention_loss(student, teacher, words, question)
    for row, (m, n) in enumerate(zip(LENGTHS, (3, 5, 2), strict=True)):
        expected = 0.0
        for j in range(1, 1 + m):
            for i in range(n):
                expected += 0.5 * (teacher[row, j, i].item() - student[row, j, i].item()) ** 2
        assert found[row].item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_summed_over_words_not_averaged():
    (student, question), (teacher, _) = maps_of(0), maps_of(1)
    words = mask_of(LENGTHS, 10)
    once = attention_loss(student, teacher, words, question)
    twice = [torch.cat([x, x], dim=1) for x in (student, teacher, words)]
    torch.testing.assert_close(attention_loss(*twice, question), 2 * once)


def test_the_mean_of_teachers_has_the_gradient_of_the_mean_of_losses():
    """So it is enough to keep the ensemble's mean attention."""
    (student, question), words = maps_of(0), mask_of(LENGTHS, 10)
    teachers = [maps_of(seed)[0] for seed in (1, 2, 3)]
    grads = []
    for losses in (
        [attention_loss(student.requires_grad_(), torch.stack(teachers).mean(0), words, question)],
        [attention_loss(student.requires_grad_(), t, words, question) for t in teachers],
    ):
        grads.append(torch.autograd.grad(torch.stack(losses).mean(0).sum(), student)[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_hops_are_joined_as_asked():
    question, words = maps_of(0)[1], mask_of(LENGTHS, 10)
    student = {f"align {h}": maps_of(h)[0] for h in (10, 2, 1)}
    teacher = {f"align {h}": maps_of(h + 20)[0] for h in (1, 2, 10)}
    assert hop_names({**student, "question": 0, "read": 0}) == ["align 1", "align 2", "align 10"]
    each = [attention_loss(student[n], teacher[n], words, question) for n in hop_names(student)]
    expected = {"mean": sum(each) / 3, "sum": sum(each), "last": each[2]}
    for hops in HOPS:
        torch.testing.assert_close(
            hops_loss(student, teacher, words, question, hops), expected[hops]
        )


def test_missing_attention_is_named():
    (table, question), words = maps_of(0), mask_of(LENGTHS, 10)
    one, two = {"align 1": table}, {"align 1": table, "align 2": table}
    for student, teacher, said in (
        (one, {}, "teachers kept no attention on the question; set delta to 0"),
        ({"question": question}, one, "student gives no attention on the question"),
        (one, two, "1 hops of the student against 2 of its teachers"),
    ):
        with pytest.raises(QalibError, match=said):
            hops_loss(student, teacher, words, question)
    assert (hops_loss(one, two, words, question, "last") == 0).all()


# Labels


def test_smoothed_labels_are_their_formula():
    student = output_of(11)
    found = label_loss(student, SPANS, WEIGHTS, 0.1)
    plain = span_loss(student, SPANS, WEIGHTS)
    for row, mask in enumerate(student.mask):
        flat = 0.0
        for side in (0, 1):
            said = literal_softmax(real(student[side][row], mask))
            flat -= sum(math.log(p) for p in said) / len(said)
        assert found[row].item() == pytest.approx(0.9 * plain[row].item() + 0.1 * flat, rel=1e-5)
    torch.testing.assert_close(label_loss(student, SPANS, WEIGHTS), plain)
    loosely = label_loss(student, SPANS, WEIGHTS, reduction="min")
    torch.testing.assert_close(loosely, span_loss(student, SPANS, WEIGHTS, "min"))


# All of them


def every_loss(student, teacher, spans, weights, confusing, found, maps, question):
    q = [teacher_probabilities(x.detach()[None], student.mask, 2.0) for x in teacher[:2]]
    return {
        "label": label_loss(student, spans, weights, 0.1),
        "kd": kd_loss(student, *q, 2.0),
        "entropy": entropy(*q),
        "margin": margin_loss(student, spans, weights, confusing, found),
        "attention": attention_loss(*maps, student.mask, question),
        "tied": tied(spans, weights, confusing, found),
    }


def test_no_loss_sees_padding_or_the_rest_of_the_batch():
    student, teacher = output_of(12), output_of(13)
    (ours, question), (theirs, _) = maps_of(14), maps_of(15)
    whole = every_loss(student, teacher, SPANS, WEIGHTS, CONFUSING, FOUND, (ours, theirs), question)
    for row, (m, n) in enumerate(zip(LENGTHS, (3, 5, 2), strict=True)):
        one, cut = slice(row, row + 1), slice(0, m + 1)
        spans = SPANS[one, : 1 if WEIGHTS[row, 1] == 0 else 2]
        alone = every_loss(
            ReaderOutput(*(x[one, cut] for x in student[:3])),
            ReaderOutput(*(x[one, cut] for x in teacher[:3])),
            spans,
            WEIGHTS[one, : spans.shape[1]],
            CONFUSING[one],
            FOUND[one],
            (ours[one, cut, :n], theirs[one, cut, :n]),
            question[one, :n],
        )
        for name, value in alone.items():
            torch.testing.assert_close(value, whole[name][one], msg=name)


@given(data=st.data())
def test_padding_never_moves_a_loss(data):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    seed, extra = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 5))
    mask = mask_of(lengths, 8)
    wide = mask_of(lengths, 8 + extra)
    rng = np.random.default_rng(seed)
    logits, target = (torch.from_numpy(rng.normal(size=(len(lengths), 8 + extra))) for _ in "ab")
    q = teacher_probabilities(target[None], wide)
    assert q.sum(dim=1).tolist() == pytest.approx([1.0] * len(lengths))
    short = soft_cross_entropy(logits[:, :8], q[:, :8], mask)
    torch.testing.assert_close(soft_cross_entropy(logits, q, wide), short)


def test_gradients_stay_inside_the_mask():
    student, teacher = output_of(16), output_of(17)
    (ours, question), (theirs, _) = maps_of(18), maps_of(19)
    ours.requires_grad_()
    losses = every_loss(
        student, teacher, SPANS, WEIGHTS, CONFUSING, FOUND, (ours, theirs), question
    )
    sum(value.sum() for value in losses.values()).backward()
    for x in student[:2]:
        assert x.grad.isfinite().all()
        assert (x.grad[~student.mask] == 0).all()
    inside = student.mask[:, :, None] & question[:, None]
    assert (ours.grad[~inside] == 0).all()
    assert (ours.grad[inside] != 0).any()


def test_half_precision_is_taken_in_float32():
    student = output_of(20)
    half = ReaderOutput(*(x.detach().bfloat16() for x in student[:2]), student.mask)
    (ours, question), (theirs, _) = maps_of(21), maps_of(22)
    maps = (ours.bfloat16(), theirs)
    for value in every_loss(half, half, SPANS, WEIGHTS, CONFUSING, FOUND, maps, question).values():
        assert value.dtype == torch.float32


def test_the_total_is_equation_1():
    parts = Parts(*torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]]))
    paper = DistillConfig()
    assert (paper.gamma, paper.delta, paper.temperature) == (0.3, 0.1, 2.0)
    expected = [1 + 4 * 3 + 0.3 * 7 + 0.1 * 13, 2 + 4 * 5 + 0.3 * 11 + 0.1 * 17]
    assert total_loss(parts, paper).tolist() == pytest.approx(expected)
    without = DistillConfig(kd=0.0, temperature=3.0)
    assert total_loss(parts, without).tolist() == pytest.approx([4.4, 7.0])
    assert DistillConfig(**json.loads(json.dumps(asdict(paper)))) == paper


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, not 0"),
        ({"temperature": -2.0}, "temperature must be above 0, not -2"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"temperature": math.inf}, "temperature must be above 0"),
        ({"gamma": -0.1}, "gamma must be 0 or more"),
        ({"delta": math.nan}, "delta must be 0 or more"),
        ({"average": "votes"}, "average must be one of probabilities, logits"),
        ({"hops": "first"}, "hops must be one of mean, last, sum"),
        ({"answers": "all"}, "answers must be one of"),
        ({"smoothing": 1.0}, "smoothing must be from 0 to below 1"),
        ({"ce": 0.0, "kd": 0.0, "gamma": 0.0, "delta": 0.0}, "nothing to learn"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(QalibError, match=said):
        DistillConfig(**settings)


# Stages


def test_joint_training_is_one_stage():
    config = DistillConfig(kd=0.5)
    (only,) = Schedule().stages(config, 100)
    assert (only.steps, only.config) == (100, config)


@pytest.mark.parametrize("steps", [2, 3, 10, 997])
@pytest.mark.parametrize("first", [0.01, 0.25, 0.99])
def test_stages_take_as_many_steps_as_joint_training(steps, first):
    config = DistillConfig(gamma=0.7)
    attention, answers = Schedule("stage-wise", first).stages(config, steps)
    assert attention.steps + answers.steps == steps
    assert min(attention.steps, answers.steps) >= 1
    assert attention.steps == pytest.approx(first * steps, abs=1)
    parts = Parts(*torch.tensor([[1.0], [10.0], [100.0], [1000.0]]))
    assert total_loss(parts, attention.config).item() == pytest.approx(100.0)
    assert total_loss(parts, answers.config).item() == pytest.approx(1 + 40 + 70)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Schedule("cyclic"), "kind must be one of joint, stage-wise"),
        (lambda: Schedule("stage-wise", 0.0), "first must be a share"),
        (lambda: Schedule("stage-wise").stages(DistillConfig(), 1), "at least 2 steps"),
        (lambda: Schedule("stage-wise").stages(DistillConfig(delta=0.0), 9), "needs delta above 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, said):
    with pytest.raises(QalibError, match=said):
        make()
