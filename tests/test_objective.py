"""The distillation objective: targets in the student's positions, four losses, their log."""

import numpy as np
import pytest
import torch
from tiny_distill import DATA, HOPS, WordReader, WordRows, random_cache, random_output, targets_of

from qalib.distill.alignment import span_positions, token_spans
from qalib.distill.distractors import DistractorMiner, DistractorSpans, random_distractors
from qalib.distill.objective import Distillation
from qalib.distill.teacher_cache import cache_teacher_outputs
from qalib.errors import QalibError
from qalib.losses import (
    DistillationLosses,
    DistillConfig,
    distillation_loss,
    hops_loss,
    kd_loss,
    margin_loss,
    span_loss,
    teacher_probabilities,
)

ROWS = WordRows(DATA)
PAPER, ANSWERS = DistillConfig(), DistillConfig(attention_weight=0.0)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return random_cache(tmp_path_factory.mktemp("words"), ROWS.spans)


def distillation(targets, config=PAPER, **changes):
    known = {"collate": ROWS.collate, "spans": ROWS.spans, **changes}
    return Distillation(targets=targets, config=config, **known)


def literal_losses(student, rows, targets, config, length):
    """The four losses of readers of the same words, straight from the teachers."""
    spans = [ROWS.spans[row] for row in rows]
    batch = ROWS.collate(rows)
    teachers = [random_output(spans, seed, length=length, asked=9) for seed in (1, 2)]
    q = [
        teacher_probabilities(
            torch.stack([t[side] for t in teachers]), batch.mask, config.temperature
        )
        for side in (0, 1)
    ]
    mined = targets.distractors()
    distractors = [span_positions(*mined.spans[row].tolist(), ROWS.spans[row]) for row in rows]
    found = torch.tensor([span is not None for span in distractors])
    distractors = torch.tensor([span or (0, 0) for span in distractors])
    missing = 9 - batch.inputs["asked"].shape[1]
    question = torch.nn.functional.pad(batch.inputs["asked"], (0, missing))
    ours = {h: torch.nn.functional.pad(student.attentions[h], (0, missing)) for h in HOPS}
    mean = {hop: torch.stack([t[3][hop] for t in teachers]).mean(dim=0) for hop in HOPS}
    gold = (batch.answer_spans, batch.answer_weights)
    return (
        span_loss(student, *gold),
        kd_loss(student, *q, config.temperature),
        margin_loss(student, *gold, distractors, found),
        hops_loss(ours, mean, batch.mask, question),
    )


def test_the_parts_are_the_losses_and_the_whole_is_equation_1(targets):
    config, reader = DistillConfig(), WordReader()
    rows, objective = [3, 0, 5, 1], distillation(targets)
    batch = objective.collate(rows)
    assert len(batch) == 4
    output = reader(batch)
    losses = objective.losses(output, batch)
    expected = literal_losses(output, rows, targets, config, batch.mask.shape[1])
    for name, found, value in zip(losses._fields, losses, expected, strict=True):
        assert found.shape == (4,)
        assert found.abs().max() > 0, name
        torch.testing.assert_close(found, value, atol=5e-3, rtol=5e-3, msg=name)
    total = objective.loss(output, batch)
    torch.testing.assert_close(total, distillation_loss(losses, config))


def test_a_row_does_not_depend_on_the_rest_of_its_batch(targets):
    reader, objective = WordReader().eval(), distillation(targets)
    batch = objective.collate(range(6))
    whole = objective.losses(reader(batch), batch)
    for row in range(6):
        batch = objective.collate([row])
        alone = objective.losses(reader(batch), batch)
        for name, one, together in zip(whole._fields, alone, whole, strict=True):
            torch.testing.assert_close(one[0], together[row], msg=name)


def test_log_metrics_are_means_since_the_last_call(targets):
    reader, objective = WordReader(), distillation(targets)
    assert objective.log_metrics() == {}
    sums, seen = torch.zeros(4), 0
    for rows in ([0, 1, 2], [4]):
        batch = objective.collate(rows)
        output = reader(batch)
        objective.loss(output, batch)
        sums += torch.stack([x.detach().sum() for x in objective.losses(output, batch)])
        seen += len(rows)
    logged = objective.log_metrics()
    for name, value in zip(("ce", "kd", "ans", "att"), (sums / seen).tolist(), strict=True):
        assert logged[name] == pytest.approx(value, rel=1e-5)
    found = objective.found[[0, 1, 2, 4]]
    assert logged["distractors"] == pytest.approx(found.float().mean().item())
    assert 0 < logged["kd_excess"] < logged["kd"]
    assert 0 < logged["att_per_word"] < logged["att"]
    assert logged["constant_hinges"] == 0
    assert objective.log_metrics() == {}


def test_other_distractors_can_be_given(targets):
    miner = DistractorMiner(DATA)
    drawn = random_distractors(targets.distractors(), targets.spans, miner, seed=1)
    mined, random = distillation(targets), distillation(targets, distractors=drawn)
    assert random.found.sum() > 0
    assert not torch.equal(random.distractors, mined.distractors)
    none = DistractorSpans(np.full((6, 2), -1), np.zeros(6))
    batch = distillation(targets, distractors=none).collate([0, 1])
    losses = distillation(targets).losses(WordReader()(batch), batch)
    assert losses.margin.tolist() == [0.0, 0.0]


def test_attention_of_weight_0_is_neither_read_nor_logged(targets):
    objective = distillation(targets, ANSWERS)
    batch = objective.collate([0, 1])
    assert batch.targets.attentions == {}
    output = WordReader(hops=1)(batch)
    assert objective.losses(output, batch).attention.tolist() == [0.0, 0.0]
    objective.loss(output, batch)
    assert not any("att" in name for name in objective.log_metrics())


def test_every_loss_has_a_gradient_of_its_own(targets):
    """Attention does not reach the span head, the others do."""
    reader, objective = WordReader(), distillation(targets)
    batch = objective.collate(range(6))
    losses = objective.losses(reader(batch), batch)
    for name, loss in zip(DistillationLosses._fields, losses, strict=True):
        reader.zero_grad()
        loss.mean().backward(retain_graph=True)
        grads = [p.grad for p in reader.parameters() if p.grad is not None]
        assert sum(g.square().sum() for g in grads) > 0, name
        assert (reader.span.weight.grad is None) == (name == "attention")


# What does not fit


def refused(said, make):
    with pytest.raises(QalibError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_readers_with_other_tokens_share_no_attention(targets):
    cut = [span._replace(offsets=span.offsets[:-1]) for span in ROWS.spans]
    longer = [span._replace(question_tokens=span.question_tokens + 1) for span in ROWS.spans]
    refused(
        "has 10 x 5 tokens .* have 11 x 5; .* use the teachers' tokenizer",
        lambda: distillation(targets, spans=cut),
    )
    refused("has 11 x 6 tokens .* have 11 x 5", lambda: distillation(targets, spans=longer))
    for spans in (cut, longer):  # answers need no common tokens
        distillation(targets, ANSWERS, spans=spans)


def test_missing_attention_of_either_side_is_refused(targets, tmp_path):
    without = random_cache(tmp_path, ROWS.spans, hops=())
    refused("no attention was cached; set attention_weight to 0", lambda: distillation(without))
    objective = distillation(targets)
    batch = objective.collate([0, 1])
    output = WordReader(hops=1)(batch)
    refused("the student has 1 and the teachers 2", lambda: objective.loss(output, batch))
    silent = output._replace(attentions={})
    refused("the student has 0 and the teachers 2", lambda: objective.loss(silent, batch))


def test_a_question_that_the_teachers_have_not_read_is_named(tmp_path):
    fewer = random_cache(tmp_path, ROWS.spans[:-1])
    refused("question 'q5': the teachers have not read it", lambda: distillation(fewer))


# Every reader


def test_the_mnemonic_reader_has_nothing_to_learn_from_itself(tmp_path):
    """Self-distillation from the same weights: answers and attention agree."""
    from qalib.data.words import collate_words, word_windows
    from qalib.models.mnemonic_reader import MnemonicConfig, build_mnemonic_reader

    settings = MnemonicConfig(hidden=8, width=8, characters=4, dropout=0.0)

    def reader_of(seed):
        reader = build_mnemonic_reader(settings, seed=seed).eval()
        with torch.no_grad():
            for parameter in reader.parameters():
                if parameter.requires_grad:  # the embedding is shared
                    parameter.mul_(4)  # so that it is confident of something
        return reader

    teacher = reader_of(0)
    windows = word_windows(DATA.examples, teacher.vocabulary)
    spans = token_spans(windows, DATA.examples)

    def batch_of(chosen):
        return collate_words([windows[row] for row in chosen])

    def outputs():
        with torch.no_grad():
            yield from ((rows, teacher(batch_of(rows))) for rows in ([5, 2], [0, 1, 3, 4]))

    cache_teacher_outputs(tmp_path, spans, [outputs], DistractorMiner(DATA), HOPS)
    targets = targets_of(tmp_path, [0])
    objective = Distillation(batch_of, spans, targets, PAPER)
    batch, logged = objective.collate([0, 5, 3]), []
    for student in (teacher, reader_of(1)):
        objective.loss(student(batch), batch).mean().backward()
        logged.append(objective.log_metrics())
    for name in ("kd_excess", "att"):
        assert logged[0][name] == pytest.approx(0.0, abs=1e-4)
        assert logged[1][name] > 0.005


def test_a_batch_moves_to_its_device_with_its_targets(targets):
    batch = distillation(targets).collate([0, 1])
    moved = batch.to(torch.device("meta"))
    assert moved.mask.device.type == moved.targets.start.device.type == "meta"
    assert all(x.device.type == "meta" for x in moved.targets.attentions.values())
    assert moved.num_tokens == batch.num_tokens
    assert len(moved) == len(batch) == 2


@pytest.mark.parametrize("changes", [{"margin": 2.5}, {"answers": "min"}, {"smoothing": 0.1}])
def test_every_setting_reaches_its_loss(targets, changes):
    config, reader = DistillConfig(**changes), WordReader()
    objective = distillation(targets, config)
    batch = objective.collate(range(6))
    output = reader(batch)
    found, gold = objective.losses(output, batch), (batch.answer_spans, batch.answer_weights)
    ce = span_loss(output, *gold, config.answers, config.smoothing)
    margin = margin_loss(output, *gold, *batch.targets[2:4], config.margin)
    torch.testing.assert_close((found.ce, found.margin), (ce, margin))
    plain = distillation(targets).losses(output, batch)
    assert not torch.equal(torch.stack(found[:3]), torch.stack(plain[:3]))


def test_rows_of_other_tokens_learn_no_attention(targets):
    longer = [span._replace(question_tokens=span.question_tokens + 1) for span in ROWS.spans]
    objective, reader = distillation(targets, spans=[ROWS.spans[0], *longer[1:]]), WordReader()
    batch = objective.collate([0, 1])
    output = reader(batch)
    whole = distillation(targets).losses(output, distillation(targets).collate([0, 1])).attention
    assert objective.losses(output, batch).attention.tolist() == [whole[0].item(), 0.0]
