"""The teacher cache gives back what teachers said, and refuses whatever it cannot vouch for."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_distill import DATA, answers, chance, toy_places

from qalib.distill.cache_files import HEADER, SEAL, load_array
from qalib.distill.distractors import Miner, mine_average
from qalib.distill.lessons import Lessons
from qalib.distill.losses import teacher_probabilities
from qalib.distill.teachers import TeacherCache
from qalib.errors import QalibError

PLACES = toy_places(DATA)
HOPS = ("align 1", "align 2")
NAMES = {"one": 11, "two": 22, "three": 33}


def new_cache(folder, places=PLACES, data="data", tokenizer="words", hops=HOPS):
    return TeacherCache.create(folder, places, data, tokenizer, hops)


def write(cache, name, seed=None, **changes):
    seed = NAMES[name] if seed is None else seed
    cache.write(name, answers(cache.places, seed, **changes), Miner(DATA), {"seed": seed})


@pytest.fixture
def cache(tmp_path):
    made = new_cache(tmp_path / "cache")
    for name in NAMES:
        write(made, name)
    return made


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache that no test changes."""
    made = new_cache(tmp_path_factory.mktemp("kept") / "cache")
    for name in NAMES:
        write(made, name)
    return made


# What goes in comes out


@pytest.mark.parametrize("rows", [[0], [5, 1, 2], list(range(6))])
def test_logits_come_back_up_to_a_constant_and_half_a_digit(kept, rows):
    lessons = Lessons(TeacherCache.open(kept.folder, "data"), list(NAMES))
    start, end, real = lessons.logits(rows)
    longest = max(len(PLACES[row].offsets) for row in rows)
    assert start.shape == end.shape == (3, len(rows), longest)
    for t, name in enumerate(sorted(NAMES)):
        for b, row in enumerate(rows):
            place = PLACES[row]
            count = len(place.offsets)
            assert real[b].tolist() == [True] * count + [False] * (longest - count)
            said = chance([place], NAMES[name])
            for found, meant in ((start, said[0]), (end, said[1])):
                meant = meant[0, place.first : place.first + count]
                assert found[t, b, :count].max() == 0
                torch.testing.assert_close(
                    found[t, b, :count], meant - meant.max(), atol=5e-3, rtol=1e-3
                )


def test_what_is_read_does_not_depend_on_the_rest_of_the_batch(kept):
    lessons = Lessons(kept, list(NAMES))
    whole = [
        teacher_probabilities(x, lessons.logits(range(6))[2]) for x in lessons.logits(range(6))[:2]
    ]
    tables, asked = lessons.attention(range(6))
    for row in range(6):
        *sides, real = lessons.logits([row])
        count, n = len(PLACES[row].offsets), PLACES[row].question
        for side, meant in zip(sides, whole, strict=True):
            torch.testing.assert_close(teacher_probabilities(side, real)[0], meant[row, :count])
            assert meant[row, count:].sum() == 0
        alone, question = lessons.attention([row])
        assert question.shape == (1, n)
        assert asked[row].sum() == n
        for hop in HOPS:
            assert torch.equal(alone[hop][0], tables[hop][row, :count, :n])
            assert tables[hop][row].sum().item() == pytest.approx(count, rel=2e-3)


@pytest.mark.parametrize("names", [["two"], ["three", "one"], ["one", "two", "three"]])
def test_attention_is_the_mean_over_the_teachers_that_are_asked(kept, names):
    tables, _ = Lessons(kept, names).attention([4, 1])
    for b, row in enumerate((4, 1)):
        place = PLACES[row]
        for hop in HOPS:
            each = [chance([place], NAMES[n])[3][hop][0] for n in names]
            meant = torch.stack(each)[:, place.first : place.first + len(place.offsets)]
            torch.testing.assert_close(
                tables[hop][b, : len(place.offsets), : place.question],
                meant.mean(dim=0)[:, : place.question],
                atol=1e-3,
                rtol=1e-3,
            )


def test_confusing_answers_are_those_of_each_teacher(kept):
    lessons, miner = Lessons(kept, list(NAMES)), Miner(DATA)
    assert lessons.confidence.max() > 0
    for t, name in enumerate(sorted(NAMES)):
        meant = miner.mine(*chance(PLACES, NAMES[name])[:3], PLACES)
        assert lessons.spans[t].tolist() == meant.spans.tolist()
        np.testing.assert_allclose(lessons.confidence[t], meant.confidence, rtol=1e-5)
    assert lessons.mined().confidence.tolist() == lessons.confidence.max(axis=0).tolist()
    only_last = np.arange(3)[:, None].repeat(6, axis=1) == 2
    assert lessons.mined(only_last).spans.tolist() == lessons.spans[2].tolist()


def test_the_averaged_ensemble_is_mined_from_what_was_kept(kept):
    lessons, miner = Lessons(kept, list(NAMES)), Miner(DATA)
    said = [chance(PLACES, NAMES[name]) for name in lessons.teachers]
    start, end = (torch.stack([output[side] for output in said]) for side in (0, 1))
    allowed = np.random.default_rng(0).random((3, 6)) < 0.6
    for who in (None, allowed):
        asked = None if who is None else torch.from_numpy(who)
        meant = mine_average(start, end, said[0].mask, PLACES, miner, asked)
        found = lessons.mined_average(miner, who, at_once=4)
        assert found.spans.tolist() == meant.spans.tolist()
        np.testing.assert_allclose(found.confidence, meant.confidence, rtol=2e-2)
    assert found.confidence.max() > 0


def test_extreme_logits_survive_half_precision(tmp_path):
    made = new_cache(tmp_path, hops=())
    wild = [
        (rows, output._replace(start_logits=1e6 * output.start_logits))
        for rows, output in answers(PLACES, 1, hops=())
    ]
    wild[0][1].end_logits[0, 2] = -torch.inf  # skimmed away
    made.write("wild", wild, Miner(DATA), {})
    start, end, real = Lessons(made, ["wild"]).logits(range(6))
    assert start.isfinite().all()
    assert end.isfinite().all()
    q = teacher_probabilities(start, real)
    said = chance(PLACES, 1, hops=())
    best = said[0].masked_fill(~said[2], -torch.inf).argmax(dim=1) - 2
    assert q.argmax(dim=1).tolist() == best.tolist()


# Order, resumption, one or many


def test_teachers_may_come_in_any_order_and_batches_of_any_size(kept, tmp_path):
    other = new_cache(tmp_path / "other")
    for name, size in (("three", 6), ("one", 1), ("two", 4)):
        write(other, name, size=size)
    assert other.finished() == kept.finished() == ["one", "three", "two"]
    Lessons(other, list(NAMES)).attention([0])
    Lessons(kept, list(NAMES)).attention([0])
    files = sorted(p.relative_to(other.folder) for p in other.folder.rglob("*.npy"))
    assert len(files) >= 1 + 3 * 6 + 2
    for file in files:
        assert (other.folder / file).read_bytes() == (kept.folder / file).read_bytes(), file


def test_a_teacher_that_is_there_is_not_asked_again(cache):
    def never():
        raise AssertionError("asked")
        yield

    cache.write("one", never(), Miner(DATA), {"seed": 11})
    again = new_cache(cache.folder)
    assert again.finished() == ["one", "three", "two"]
    with pytest.raises(QalibError, match=r"another teacher \(seed is 11, not 12\)"):
        again.write("one", never(), Miner(DATA), {"seed": 12})


def test_a_writer_that_dies_leaves_the_others_and_starts_again(tmp_path):
    made = new_cache(tmp_path)
    write(made, "one")

    def dying():
        yield next(answers(PLACES, 22))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.write("two", dying(), Miner(DATA), {"seed": 22})
    assert made.finished() == ["one"]
    with pytest.raises(QalibError, match="teacher-two: is only half written"):
        Lessons(made, ["one", "two"])
    write(made, "two")
    assert Lessons(made, ["one", "two"]).logits([0])[0].shape[0] == 2
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_but_arrays_and_json_is_written_and_arrays_stay_on_disk(kept):
    Lessons(kept, list(NAMES)).attention([0])
    assert {p.suffix for p in kept.folder.rglob("*") if p.is_file()} == {".npy", ".json"}
    flat = load_array(kept.folder / "teacher-one" / "start.npy")
    assert isinstance(flat, np.memmap)
    assert flat.dtype == np.float16
    assert flat.shape == (sum(len(p.offsets) for p in PLACES),)


# What is refused


def refused(said, make):
    with pytest.raises(QalibError, match=said) as caught:
        make()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_another_data_set_is_refused(cache):
    refused("read another data set", lambda: TeacherCache.open(cache.folder, "other"))
    refused("another data set", lambda: new_cache(cache.folder, data="other"))


def test_a_missing_cache_or_teacher_is_refused(cache, tmp_path):
    refused("no teacher cache is here", lambda: TeacherCache.open(tmp_path / "none", "data"))
    refused("teacher-four: is missing", lambda: Lessons(cache, ["one", "four"]))
    refused("no teacher is named", lambda: Lessons(cache, []))


def test_other_rows_under_the_same_name_are_refused(cache):
    moved = [place._replace(first=1) for place in PLACES]
    cut = [place._replace(offsets=place.offsets[:-1]) for place in PLACES]
    wider = [place._replace(offsets=place.offsets - [0, 1]) for place in PLACES]
    longer = [place._replace(question=9) for place in PLACES]
    for said, changes in (
        ("another tokenizer", {"tokenizer": "pieces"}),
        ("other attention maps", {"hops": ("align 1",)}),
        ("other questions, or in another order", {"places": PLACES[::-1]}),
        ("passages of other lengths", {"places": cut}),
        ("cut into other tokens", {"places": wider}),
        ("at other positions", {"places": moved}),
        ("questions of other lengths", {"places": longer}),
    ):
        refused(said, lambda changes=changes: new_cache(cache.folder, **changes))


def test_a_stale_version_is_refused(cache):
    path = cache.folder / HEADER
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    refused("a stale cache of format 0", lambda: TeacherCache.open(cache.folder, "data"))


def test_a_retrained_teacher_makes_its_cache_stale(cache):
    Lessons(cache, {"one": {"seed": 11}, "two": {"seed": 22}})
    refused(
        "stale, it is of another teacher",
        lambda: Lessons(cache, {"one": {"seed": 11}, "two": {"seed": 23}}),
    )


@pytest.mark.parametrize("file", ["start.npy", "end.npy", "spans.npy", "confidence.npy"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_teacher_is_refused(cache, file, harm):
    hurt(cache.folder / "teacher-two" / file, harm)
    refused(file, lambda: Lessons(cache, list(NAMES)))
    assert len(Lessons(cache, ["one", "three"])) == 6  # the others are as good as before


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_damaged_attention_is_refused_when_it_is_used(cache, harm):
    hurt(cache.folder / "teacher-two" / "align-1.npy", harm)
    for names in (["two"], list(NAMES)):
        lessons = Lessons(cache, names)
        refused("align-1.npy", lambda lessons=lessons: lessons.attention([0]))
    Lessons(cache, ["one", "three"]).attention([0])
    (mean,) = cache.folder.glob("mean-*")
    hurt(mean / "align-2.npy", harm)
    refused("align-2.npy", lambda: Lessons(cache, ["one", "three"]).attention([0]))


def hurt(path, harm):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-4] if harm == "cut" else content)


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_damaged_offsets_are_refused(cache, harm):
    hurt(cache.folder / "offsets.npy", harm)
    refused("offsets.npy", lambda: TeacherCache.open(cache.folder, "data"))


def test_a_damaged_header_or_seal_is_refused(cache):
    seal = cache.folder / "teacher-one" / SEAL
    seal.write_text("{")
    refused("not valid JSON", lambda: Lessons(cache, ["one"]))
    seal.write_text("[]")
    refused("damaged", lambda: Lessons(cache, ["one"]))
    header = cache.folder / HEADER
    header.write_text(json.dumps({"format": 1}))
    refused("'data' is missing", lambda: TeacherCache.open(cache.folder, "data"))
    header.write_text("[]")
    refused("stale cache of format None", lambda: TeacherCache.open(cache.folder, "data"))


def test_a_teacher_from_another_cache_is_refused(cache, tmp_path):
    other = new_cache(tmp_path / "other", tokenizer="pieces")
    shutil.copytree(cache.folder_of("one"), other.folder_of("one"))
    refused("comes from a cache of other rows", lambda: Lessons(other, ["one"]))


# Teachers that do not fit


def test_a_row_left_out_is_named(tmp_path):
    some = list(answers(PLACES, 1))[1:]
    left = {PLACES[row].id for row in next(answers(PLACES, 1))[0]}
    made = new_cache(tmp_path)
    refused(
        f"2 of 6 rows are left out.*'({'|'.join(left)})'",
        lambda: made.write("x", some, Miner(DATA), {}),
    )
    assert made.finished() == []


def test_a_teacher_of_other_tokens_is_refused(tmp_path):
    made = new_cache(tmp_path)
    for changed in (
        [place._replace(offsets=place.offsets[:-1]) for place in PLACES],
        [place._replace(first=place.first + 1) for place in PLACES],
    ):
        refused(
            "with other tokens needs a cache of its own",
            lambda changed=changed: made.write("x", answers(changed, 1), Miner(DATA), {}),
        )
    shorter = (
        (
            rows,
            output._replace(
                **{k: getattr(output, k)[:, :-2] for k in ("start_logits", "end_logits", "mask")}
            ),
        )
        for rows, output in answers(PLACES, 1)
    )
    refused("passage tokens", lambda: made.write("x", shorter, Miner(DATA), {}))
    swapped = [(rows[:1], output) for rows, output in answers(PLACES, 1)]
    refused("passage tokens", lambda: made.write("x", swapped, Miner(DATA), {}))


def test_missing_or_unlike_attention_is_refused(tmp_path):
    made = new_cache(tmp_path)
    for hops, said in (
        ((), "'align 1' \\(only: none\\)"),
        (("align 1",), "'align 2' \\(only: align 1"),
    ):
        refused(
            said, lambda hops=hops: made.write("x", answers(PLACES, 1, hops=hops), Miner(DATA), {})
        )
    longer = [place._replace(question=place.question + 1) for place in PLACES]
    refused(
        "has 6 tokens, 5 in the cache", lambda: made.write("x", answers(longer, 1), Miner(DATA), {})
    )
    without = new_cache(tmp_path / "without", hops=())
    write(without, "one")  # attention that nobody wants is let go
    assert Lessons(without, ["one"]).attention([0])[0] == {}


def test_logits_that_are_not_numbers_are_refused(tmp_path):
    broken = list(answers(PLACES, 1))
    broken[1][1].start_logits[0, 3] = torch.nan
    name = PLACES[broken[1][0][0]].id
    made = new_cache(tmp_path)
    refused(f"question '{name}' are not numbers", lambda: made.write("x", broken, Miner(DATA), {}))


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b"])
def test_names_of_teachers_are_names_of_folders(tmp_path, name):
    refused("letters, digits, - and _", lambda: write(new_cache(tmp_path), name, 1))


def test_a_cache_of_nothing_is_refused(tmp_path):
    refused("no row has a passage token", lambda: new_cache(tmp_path, []))
    deaf = [place._replace(question=0) for place in PLACES]
    refused("leave hops out", lambda: new_cache(tmp_path, deaf))
