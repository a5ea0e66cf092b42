"""Typos and names: what they change and what they must not; and the arithmetic of what is kept."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.squad import Answer, Example, check_example, load_squad
from qalib.errors import QalibError
from qalib.metrics import f1
from qalib.study import byte_views, disturb, plots_bytes
from qalib.study import robustness as rb
from qalib.study.profiles import Profile
from qalib.study.session import Study
from qalib.study.store import Store

words = st.text("abcdlmnopé", min_size=4, max_size=9)
texts = st.text(st.characters(exclude_categories=()), max_size=60)


def one_slip(word: str) -> set[str]:
    """Every way to swap two letters, drop, double or replace one, the first left where it is."""
    after = range(1, len(word))
    made = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 1)}
    made |= {word[:i] + word[i + 1 :] for i in after}
    made |= {word[:i] + 2 * word[i] + word[i + 1 :] for i in after}
    letters = "abcdefghijklmnopqrstuvwxyz"
    made |= {word[:i] + letter + word[i + 1 :] for i in after for letter in letters}
    return made - {word}


@given(words, st.sampled_from(disturb.TYPOS), st.floats(0, 0.999), st.sampled_from("alz"))
def test_a_typo_is_one_slip_and_never_the_word_itself(word, kind, place, letter):
    assert disturb.misspell(word, kind, place, letter) in one_slip(word)


def test_every_kind_of_typo_does_what_its_name_says():
    found = {kind: disturb.misspell("bridge", kind, 0.5, "x") for kind in disturb.TYPOS}
    expected = {"swap": "brigde", "drop": "brige", "double": "briddge", "substitute": "brixge"}
    assert found == expected
    assert disturb.misspell("ball", "swap", 0.9, "x") == "bal"


@settings(max_examples=60)
@given(texts, st.integers(0, 3))
def test_typos_leave_everything_but_long_words(text, seed):
    drawn = disturb.typos(text, seed)
    parts = re.split(r"([^\W\d_]{4,})", text)  # between words, word, between words, ...
    assert [word for word, _, _ in drawn] == parts[1::2]
    parts[1::2] = [wrong for _, wrong, _ in drawn]
    assert disturb.add_typos(text, 1.0, seed) == "".join(parts)
    assert disturb.add_typos(text, 0.0, seed) == text


def test_typos_grow_with_the_rate_and_those_that_are_there_stay():
    text = " ".join(f"{a}{b}word" for a in "abcdefgh" for b in "abcdefgh")
    before, seen = text.split(), []
    for rate in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0):
        after = disturb.add_typos(text, rate, seed=1).split()
        seen.append({i: word for i, word in enumerate(after) if word != before[i]})
        assert len(after) == len(before)
        assert abs(len(seen[-1]) / len(before) - rate) < 0.12
    assert len(seen[-1]) == len(before)
    for fewer, more in pairwise(seen):
        assert fewer.items() <= more.items()
    assert disturb.add_typos(text, 1.0, seed=2) != disturb.add_typos(text, 1.0, seed=1)


CITY = Example(
    "q",
    "When did Mira leave Ostra for the Tolland works in May?",
    "In May, Mira Kovač left Ostra. Ostra's TOLLAND, or Tolland, hired Mira in 1931. The works "
    "stood in Ostravia.",
    (Answer("1931", 74), Answer("in 1931", 71)),
)


def test_shared_names_are_capitalised_in_both_and_no_months():
    check_example(CITY, "CITY")
    assert disturb.shared_names(CITY) == ["Mira", "Ostra", "Tolland"]
    other = Example("q", "Who saw the River Tisz?", "The River Tisz is a river. Who knows?")
    assert disturb.shared_names(other) == ["Tisz"]


@pytest.mark.parametrize("known", [(), disturb.COMMON.split()], ids=["invented", "common"])
def test_names_are_replaced_everywhere_and_answers_move_along(known):
    made = disturb.rename(CITY, known, seed=3)
    check_example(made, "renamed")
    assert made.answer_texts == CITY.answer_texts
    assert made.id == CITY.id
    pattern = (
        r"In May, (\w+) Kovač left (\w+)\. (\w+)'s TOLLAND, or (\w+), hired (\w+) in 1931\. "
        r"The works stood in Ostravia\."
    )
    mira, ostra, again, tolland, twice = re.fullmatch(pattern, made.context).groups()
    assert (again, twice) == (ostra, mira)
    assert made.question == f"When did {mira} leave {ostra} for the {tolland} works in May?"
    new = {mira, ostra, tolland}
    assert len(new) == 3
    assert not new & {"Mira", "Ostra", "Tolland"}
    assert new <= set(disturb.COMMON.split()) if known else not new & set(disturb.COMMON.split())


def test_an_example_without_names_or_with_one_in_its_answer_is_left_out():
    context = "The Tolland works hired Mira Kovač."
    inside = Answer("Mira Kovač", context.index("Mira"))
    assert disturb.rename(Example("q", "Who hired Mira?", context, (inside,))) is None
    works = Answer("Tolland works", 4)
    assert disturb.rename(Example("q", "Who hired Mira?", context, (works,))) is not None
    assert disturb.rename(Example("q", "Who hired her?", context, (works,))) is None
    assert disturb.rename(Example("q", "Who hired Mira?", context, (works,)), ["Tolland"]) is None


def test_names_in_capitals_stay_in_capitals():
    made = disturb.rename(Example("q", "What is the EEC?", "The EEC is one.", (Answer("one", 11),)))
    assert re.fullmatch("What is the [A-Z]{4,}\\?", made.question)


@pytest.mark.parametrize("known", [(), disturb.COMMON.split()], ids=["invented", "common"])
def test_renamed_almanac_is_the_same_text_about_others(known):
    count = 0
    for example in build_almanac(AlmanacConfig(questions=80, split="test")):
        names = disturb.shared_names(example)
        made = disturb.rename(example, known)
        if made is None:
            continue
        count += 1
        check_example(made, example.id)
        assert made.answer_texts == example.answer_texts
        split = rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)"
        old = re.split(split, f"{example.question}\n{example.context}")
        assert len(old) > 2
        rest = f"{made.question}\n{made.context}"
        for part in old:  # everything between the names is there, in order
            assert part in rest
            rest = rest[rest.index(part) + len(part) :]
        assert not set(names) & set(disturb.NAME.findall(f"{made.question} {made.context}"))
    assert count > 40


def test_common_names_are_whole_and_invented_ones_and_typos_are_not():
    tokenizer = byte_views.word_piece_tokenizer()
    common = disturb.COMMON.split()
    assert len(set(common)) == len(common)
    assert {len(pieces) for pieces in byte_views.word_pieces(common, tokenizer)} == {1}
    pairs = [("bridge", "brigde"), ("bridge", "bridge"), ("opened", "opned")]
    table = disturb.shatter(pairs, tokenizer)
    assert table["pieces"].tolist() == [1, 1, 1]
    assert (table["changed pieces"] > 1).tolist() == [True, False, True]
    assert table["bytes left"].tolist() == pytest.approx([100, 100, 100 * 5 / 6])
    assert table["pieces left"].tolist() == [0, 100, 0]
    plots_bytes.shattered(table).canvas.draw()


# --- scoring -------------------------------------------------------------------------------------


def test_every_condition_asks_the_same_sample():
    data = build_almanac(AlmanacConfig(questions=30, split="test"))
    config = rb.Robustness(questions=10, rates=(0.2, 1.0))
    made = rb.disturbed(data.examples, config)
    ids = [data.examples[i].id for i in range(0, 30, 3)]
    plain = {e.id: e for e in made["as written"]}
    assert list(made) == [
        *["as written", "typos 20 %", "typos 100 %", "another question"],
        *["common names", "invented names"],
    ]
    for condition in list(made)[:4]:
        assert [e.id for e in made[condition]] == ids
        for e in made[condition]:
            assert (e.context, e.answers) == (plain[e.id].context, plain[e.id].answers)
    asked = [e.question for e in made["as written"]]
    assert [e.question for e in made["another question"]] == asked[5:] + asked[:5]
    assert [e.id for e in made["common names"]] == [e.id for e in made["invented names"]]
    assert all(e.context != plain[e.id].context for e in made["invented names"])
    assert len(rb.disturbed(examples(4), config)["as written"]) == 4
    with pytest.raises(QalibError, match="at least 2"):
        rb.disturbed(examples(1), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"questions": 1}, "questions"), ({"rates": (0.1, 0.0)}, "rate"), ({"rates": (2.0,)}, "2.0")],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(QalibError, match=message):
        rb.Robustness(**settings)


class Copycat:
    """Answers with the passage's beginning, or wrongly where the question has a typo."""

    def __init__(self, known: set[str]):
        self.known = known
        self.calls = 0

    def predictions(self, asked):
        self.calls += 1
        return {e.id: e.context[:40] if e.question in self.known else "-" for e in asked}


def make_study(folder) -> Study:
    sections = {
        "robustness": {"questions": 12, "rates": [0.5]},
        "data": {"test": ["almanac"], "test_questions": 24, "passage_length": 400},
    }
    return Study("01_byte_encoding", Profile("ci", sections), 0, Store(folder, None))


def test_a_run_keeps_the_scores_of_every_question(tmp_path):
    study = make_study(tmp_path)
    test = study.data("test")
    reader, loaded = Copycat({e.question for e in test}), []

    def load():
        loaded.append(1)
        return reader

    run = rb.measure(study, "copycat", {"weights": "w"}, load)
    assert run.short in study.runs
    assert json.loads(run.file("data.json").read_text())[0]["questions"] == 24
    table = rb.scores(run)
    conditions = rb.disturbed(test.examples, rb.Robustness(questions=12, rates=(0.5,)))
    assert list(table) == list(conditions)
    assert reader.calls == len(conditions)
    for condition, asked in conditions.items():
        expected = {
            e.id: 100 * f1(e.context[:40] if e.question in reader.known else "-", e.answer_texts)
            for e in asked
        }
        assert table[condition].dropna().to_dict() == pytest.approx(expected)
        assert run.metrics[condition] == pytest.approx(np.mean(list(expected.values())))
    assert table["as written"].mean() > table["typos 50 %"].mean()
    again = rb.measure(study, "copycat", {"weights": "w"}, load)
    assert (again.key, len(loaded)) == (run.key, 1)
    assert rb.measure(study, "copycat", {"weights": "other"}, load).key != run.key


def points(rows: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = ["as written", "typos 10 %", "another question", "invented names"]
    scale = np.array([90, 60, 20, 50])
    table = pd.DataFrame(rng.random((rows, 4)) * scale, columns=columns)
    table.index = [f"q{i}" for i in range(rows)]
    table.loc[table.index[: rows // 2], "invented names"] = np.nan
    return table


@pytest.mark.parametrize("above_floor", [False, True])
@pytest.mark.parametrize("condition", ["typos 10 %", "invented names"])
def test_what_is_kept_is_a_ratio_of_means_over_the_same_draws(condition, above_floor):
    table = points()
    found = rb.kept(table, condition, above_floor, samples=20, seed=4)
    rows = table[table[condition].notna()]
    floor = rows["another question"] if above_floor else 0
    mine, whole = rows[condition] - floor, rows["as written"] - floor
    assert found[0] == pytest.approx(100 * mine.mean() / whole.mean())
    count = len(rows)
    drawn = np.random.default_rng(4).multinomial(count, np.full(count, 1 / count), 20)
    for value, times in zip(found[1:], drawn, strict=True):
        rowwise = [i for i, n in enumerate(times) for _ in range(n)]
        assert value == pytest.approx(100 * mine.iloc[rowwise].sum() / whole.iloc[rowwise].sum())


def test_kept_is_all_as_written_nothing_at_the_floor_and_undefined_without_a_gain():
    table = points()
    assert rb.kept(table, "as written") == pytest.approx(100)
    assert rb.kept(table, "another question", above_floor=True) == pytest.approx(0)
    assert rb.kept(2 * table, "typos 10 %") == pytest.approx(rb.kept(table, "typos 10 %"))
    blind = table.assign(**{"as written": table["another question"]})
    assert np.isnan(rb.kept(blind, "typos 10 %", above_floor=True)).all()
    assert np.isnan(rb.kept(0 * table, "typos 10 %")).all()


def test_summaries_have_a_row_a_reader_and_condition():
    tables = {"a": points(), "b": points(seed=1)}
    summary = rb.summary(tables)
    assert Counter(summary["reader"]) == {"a": 4, "b": 4}
    row = summary.set_index(["reader", "condition"]).loc[("b", "invented names")]
    half = tables["b"].dropna()
    assert row["questions"] == 20
    assert row["F1"] == pytest.approx(half["invented names"].mean())
    assert row["written"] == pytest.approx(half["as written"].mean())
    assert row["kept low"] < row["kept"] < row["kept high"]
    assert row["reading"] < row["kept"]
    floors = {name: table["another question"].mean() for name, table in tables.items()}
    for figure in (
        plots_bytes.typo_curves(summary, (0.1,), floors),
        plots_bytes.name_bars(summary),
    ):
        figure.canvas.draw()


def test_an_advantage_is_a_difference_over_the_same_questions():
    ours, theirs = points(), points(seed=1)
    value, low, high = rb.advantage(ours, theirs, "typos 10 %")
    expected = rb.kept(ours, "typos 10 %")[0] - rb.kept(theirs, "typos 10 %")[0]
    assert value == pytest.approx(expected)
    assert low < value < high
    assert rb.advantage(ours, ours.iloc[::-1], "typos 10 %", True) == pytest.approx((0, 0, 0))
    shown = rb.advantages(ours, theirs)
    assert shown.index.tolist() == ["typos 10 %", "invented names"]
    assert shown.loc["typos 10 %", ["of F1", "low", "high"]].tolist() == [value, low, high]
    with pytest.raises(QalibError, match="different questions"):
        rb.advantage(ours, theirs.iloc[1:], "typos 10 %")


def test_real_questions_stay_answerable(real_data):
    sample = load_squad(real_data / "squad-dev-v1.1.json").examples[::40]
    made = rb.disturbed(sample, rb.Robustness(questions=200))
    texts_of = {e.id: e.answer_texts for e in sample}
    for condition, asked in made.items():
        for example in asked:
            check_example(example, condition)
            assert example.answer_texts == texts_of[example.id]
    assert len(made["invented names"]) > 60
