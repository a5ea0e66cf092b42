"""The teacher cache gives back what teachers predicted, and refuses outputs that do not fit."""

import numpy as np
import pytest
import torch
from tiny_distill import (
    DATA,
    HOPS,
    random_cache,
    random_output,
    random_outputs,
    targets_of,
    toy_spans,
)

from qalib.distill.distractors import DistractorMiner
from qalib.distill.teacher_cache import TeacherTargets, cache_teacher_outputs
from qalib.errors import QalibError
from qalib.losses import teacher_probabilities

SPANS = toy_spans(DATA)
SEEDS = (11, 33, 22)
MINER = DistractorMiner(DATA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The cache of three random teachers."""
    path = tmp_path_factory.mktemp("cache")
    random_cache(path, SPANS, SEEDS)
    return path


@pytest.fixture(scope="module")
def targets(folder):
    return targets_of(folder, (0, 1, 2))


def write(folder, *teachers, spans=SPANS, hops=HOPS):
    """Cache given outputs as those of one teacher each."""
    functions = [lambda outputs=outputs: outputs for outputs in teachers]
    cache_teacher_outputs(folder, spans, functions, MINER, hops)


# What goes in comes out


@pytest.mark.parametrize("rows", [[0], [5, 1, 2], list(range(6))])
def test_logits_come_back_up_to_a_constant_and_half_precision(targets, rows):
    start, end, real = targets.logits(rows)
    longest = max(len(SPANS[row].offsets) for row in rows)
    assert start.shape == end.shape == (3, len(rows), longest)
    for t, seed in enumerate(SEEDS):
        for b, row in enumerate(rows):
            span = SPANS[row]
            count = len(span.offsets)
            assert real[b].tolist() == [True] * count + [False] * (longest - count)
            output = random_output([span], seed)
            for found, expected in ((start, output[0]), (end, output[1])):
                expected = expected[0, span.positions]
                assert found[t, b, :count].max() == 0
                torch.testing.assert_close(
                    found[t, b, :count], expected - expected.max(), atol=5e-3, rtol=1e-3
                )


def test_targets_do_not_depend_on_the_rest_of_the_batch(targets):
    *sides, real = targets.logits(range(6))
    whole = [teacher_probabilities(x, real) for x in sides]
    tables = targets.attention(range(6))
    for row in range(6):
        *sides, real = targets.logits([row])
        count, n = len(SPANS[row].offsets), SPANS[row].question_tokens
        for side, expected in zip(sides, whole, strict=True):
            torch.testing.assert_close(teacher_probabilities(side, real)[0], expected[row, :count])
            assert expected[row, count:].sum() == 0
        alone = targets.attention([row])
        for hop in HOPS:
            assert torch.equal(alone[hop][0], tables[hop][row, :count, :n])
            assert tables[hop][row].float().sum().item() == pytest.approx(count, rel=2e-3)


@pytest.mark.parametrize("teachers", [[1], [2, 0], [0, 1, 2]])
def test_attention_is_the_mean_over_the_chosen_teachers(folder, teachers):
    tables = targets_of(folder, teachers).attention([4, 1])
    for b, row in enumerate((4, 1)):
        span = SPANS[row]
        for hop in HOPS:
            each = [random_output([span], SEEDS[t])[3][hop][0] for t in teachers]
            expected = torch.stack(each).mean(dim=0)[span.positions, : span.question_tokens]
            found = tables[hop][b, : len(span.offsets), : span.question_tokens]
            torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)


def test_distractors_are_those_of_each_teacher(targets):
    assert targets.confidence.max() > 0
    for t, seed in enumerate(SEEDS):
        expected = MINER.mine(*random_output(SPANS, seed)[:3], SPANS)
        assert targets.distractor_spans[t].tolist() == expected.spans.tolist()
        np.testing.assert_allclose(targets.confidence[t], expected.confidence, rtol=1e-5)
    assert targets.distractors().confidence.tolist() == targets.confidence.max(axis=0).tolist()


def test_extreme_logits_survive_half_precision(tmp_path):
    outputs = [
        (rows, output._replace(start_logits=1e6 * output.start_logits))
        for rows, output in random_outputs(SPANS, 1, hops=())
    ]
    outputs[0][1].end_logits[0, 2] = -torch.inf  # pruned
    write(tmp_path, outputs, hops=())
    start, end, real = targets_of(tmp_path, [0]).logits(range(6))
    assert start.isfinite().all()
    assert end.isfinite().all()
    q = teacher_probabilities(start, real)
    teacher = random_output(SPANS, 1, hops=())
    best = teacher[0].masked_fill(~teacher[2], -torch.inf).argmax(dim=1) - 2
    assert q.argmax(dim=1).tolist() == best.tolist()


# Order, resumption


def test_no_byte_depends_on_the_order_or_the_size_of_batches(folder, tmp_path):
    random_cache(tmp_path, SPANS, SEEDS, size=5)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.npy"))
    assert len(files) == 1 + 3 * 4
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_a_killed_run_resumes_with_the_teacher_it_was_writing(folder, tmp_path):
    def dying():
        yield next(random_outputs(SPANS, 33))
        raise KeyboardInterrupt

    def never():
        raise AssertionError("called again")
        yield

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, random_outputs(SPANS, 11), dying())
    with pytest.raises(FileNotFoundError):
        targets_of(tmp_path, [1])
    write(tmp_path, never(), random_outputs(SPANS, 33), random_outputs(SPANS, 22))
    for path in folder.rglob("*.npy"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_but_arrays_and_json_is_written_and_logits_stay_on_disk(folder, targets):
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".npy", ".npz", ".json"}
    flat = targets._sides[0][0]
    assert isinstance(flat.base, np.memmap)
    assert flat.dtype == np.float16
    assert flat.shape == (sum(len(s.offsets) for s in SPANS),)


def test_teachers_of_several_folders_need_the_same_rows(folder, tmp_path):
    random_cache(tmp_path / "same", SPANS, (33,))
    random_cache(tmp_path / "fewer", SPANS[1:], (33,))
    both = TeacherTargets([folder / "teacher-0", tmp_path / "same" / "teacher-0"])
    expected = targets_of(folder, [0, 1])
    assert torch.equal(both.logits([2, 4])[0], expected.logits([2, 4])[0])
    assert torch.equal(both.attention([3])[HOPS[0]], expected.attention([3])[HOPS[0]])
    folders = [folder / "teacher-0", tmp_path / "fewer" / "teacher-0"]
    refused("of different rows", lambda: TeacherTargets(folders))


# Teachers that do not fit


def refused(said, make):
    with pytest.raises(QalibError, match=said) as caught:
        make()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_a_teacher_with_other_tokens_is_refused(tmp_path):
    fewer = [span._replace(offsets=span.offsets[:-1]) for span in SPANS]
    moved = [span._replace(context_start=span.context_start + 1) for span in SPANS]
    for changed in (fewer, moved):
        outputs = random_outputs(changed, 1)
        refused("need the same tokens", lambda outputs=outputs: write(tmp_path, outputs))
    cut = [
        (rows, output._replace(**{k: getattr(output, k)[:, :-2] for k in output._fields[:3]}))
        for rows, output in random_outputs(SPANS, 1)
    ]
    refused("passage tokens", lambda: write(tmp_path, cut))
    swapped = [(rows[::-1], output) for rows, output in random_outputs(SPANS, 1, size=6)]
    refused("passage tokens", lambda: write(tmp_path, swapped))


def test_missing_attention_is_refused_and_superfluous_attention_is_not_kept(tmp_path):
    for hops, missing in (((), "align 1"), (("align 1",), "align 2")):
        outputs = random_outputs(SPANS, 1, hops=hops)
        refused(f"no attention '{missing}'", lambda outputs=outputs: write(tmp_path, outputs))
    write(tmp_path / "without", random_outputs(SPANS, 1), hops=())
    assert targets_of(tmp_path / "without", [0]).attention([0]) == {}


def test_logits_that_are_not_numbers_are_refused(tmp_path):
    broken = list(random_outputs(SPANS, 1))
    broken[1][1].start_logits[0, 3] = torch.nan
    name = SPANS[broken[1][0][0]].id
    refused(f"question '{name}' are not numbers", lambda: write(tmp_path, broken))


def test_a_teacher_that_leaves_rows_out_is_refused(tmp_path):
    refused(
        "no output for 2 of 6 rows", lambda: write(tmp_path, list(random_outputs(SPANS, 1))[1:])
    )


def test_a_folder_of_other_rows_is_refused_and_kept(tmp_path):
    write(tmp_path, random_outputs(SPANS, 1))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    fewer = SPANS[:3]
    refused("other rows", lambda: write(tmp_path, random_outputs(fewer, 1), spans=fewer))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_a_cache_of_nothing_is_refused(tmp_path):
    refused("no row has a passage token", lambda: write(tmp_path, spans=[]))
