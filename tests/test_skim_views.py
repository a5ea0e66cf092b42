"""Notebook 05: its recorded looks and tables on a toy study, and its figures."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from qalib.data.batches import collate
from qalib.data.features import Window, make_windows
from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap
from qalib.skim.blocks import even_blocks, make_blocks
from qalib.skim.loss import SkimLossConfig, block_labels
from qalib.skim.predictors import ModelShape, PredictorConfig, build_predictor
from qalib.study import plots_skim, skim_looks, skim_study, skim_views
from qalib.study.entries import Run
from qalib.study.profiles import Profile
from qalib.study.reader_stages import per_question
from qalib.study.session import Study
from qalib.study.skim_scores import layer_table, read_judged
from qalib.study.skim_training import SkimTraining, build_skim_reader, trained_skim_reader
from qalib.study.store import Store

SIZE = 16
SECTIONS = {
    "data": {"train_questions": 50, "test_questions": 20, "passage_length": 400},
    "skim_ablations": {"train_questions": 50, "passage_length": 300},
    "encoder": {
        "encoder": {"random_start": True, "layers": 2, "width": 32, "heads": 4},
        "train": {"max_steps": 4, "tokens_per_batch": 1024, "learning_rate": 0.01, "log_every": 1},
    },
    "skim": {
        "predictor": {"kind": "diagonal", "block_size": SIZE},
        "seeds": 2,
        "alphas": [1.0, 0.0],
        "held_out": 0.3,
        "early": 1,
        "middle": 2,
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("05_block_skim_training", Profile("ci", SECTIONS), 0, Store(folder, None))


@pytest.fixture(scope="module")
def readers(study) -> dict[str, list[Run]]:
    return {"plain": skim_study.plain_runs(study), "joint": skim_study.joint_runs(study)}


@pytest.fixture(scope="module")
def judged(study, readers) -> list[Run]:
    named = {str(n): run for n, run in enumerate(readers["joint"])}
    return list(skim_study.judged(study, named, study.data("test")).values())


@pytest.fixture(scope="module")
def words(study) -> Run:
    return skim_views.lexical_blocks(study, study.data("test"))


@pytest.fixture(scope="module")
def shown(study, readers) -> skim_looks.Shown:
    return skim_looks.example(study, readers["joint"][0])


@pytest.fixture(scope="module")
def model(study, readers):
    return trained_skim_reader(readers["joint"][0], study.store)


@pytest.fixture(scope="module")
def windows(study, model) -> list[Window]:
    plan = skim_study.asked(study)
    found = make_windows(study.data("test").examples, model.tokenizer, plan.base.windows)
    return [window for window in found if len(window.spans)]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def window(example: int, passage: int, *spans: tuple[int, int]) -> Window:
    """A window whose passage begins at position 3; spans count from there."""
    ids, gold = np.ones(passage + 4, np.int32), np.array(spans, np.int32).reshape(-1, 2) + 3
    offsets = np.array([(5 * n, 5 * n + 4) for n in range(passage)], np.int32)
    weights = np.full(len(spans), 1 / max(1, len(spans)), np.float32)
    return Window(example, ids, ids.astype(np.int8), 3, offsets, gold, weights)


# --- one example -------------------------------------------------------------------------------


def test_the_example_is_chosen_by_a_rule():
    first = window(0, 10, (1, 2))  # answer in the first block
    split = window(1, 20, (4, 5), (9, 9))  # answers in two blocks
    straddles = window(2, 20, (9, 10))
    long = [window(3, 100, (50, 51)), window(3, 100, (50, 51))]  # two windows
    fit, longer, late = window(4, 12, (6, 7)), window(5, 23, (6, 7)), window(6, 60, (6, 7))
    every = [first, split, straddles, *long, fit, longer, late]
    assert skim_looks.choose_window(every, 5) is longer  # five blocks are enough
    assert skim_looks.choose_window(every[:-2], 5) is fit
    with pytest.raises(QalibError, match="in one block of 5 tokens"):
        skim_looks.choose_window(every[:-3], 5)


def test_the_example_is_what_the_reader_sees(study, readers, model, shown):
    plan, examples = skim_study.asked(study), study.data("test").examples
    found = next(e for e in examples if e.question == shown.asks)
    (chosen,) = make_windows([found], model.tokenizer, plan.base.windows)
    assert len(shown.of) == len(chosen)
    assert len(shown.texts) == len(shown.labels) == -(-len(chosen.offsets) // SIZE)
    assert shown.labels.sum() == 1
    assert shown.answer in shown.texts[shown.labels.argmax()]
    batch = collate([chosen])
    with torch.inference_mode():
        output = model.run(batch, skim=False)
    for layer in (1, 2):
        np.testing.assert_allclose(shown.logits[1, layer - 1], output.scores[layer][0], atol=1e-4)
    assert shown.probabilities == pytest.approx(1 / (1 + np.exp(-shown.logits)))
    before = build_skim_reader(plan.joint(base=replace(plan.base, seed=0)), None, study.store)
    with torch.inference_mode():
        output = before.eval().run(batch, skim=False)
    np.testing.assert_allclose(shown.logits[0, 1], output.scores[2][0], atol=1e-4)
    assert not np.allclose(shown.logits[0], shown.logits[1], atol=1e-3)


def test_the_layers_are_seen_as_transformers_gives_them(study, readers, model, windows, shown):
    batch = collate(windows[:3])
    with torch.inference_mode():
        blocks = model.run(batch, skim=False).blocks
        views = dict(skim_looks.layer_views(model, batch, blocks))
        encoder = build_skim_reader(skim_study.asked(study).joint(), None, study.store).reader
        encoder.load_state_dict(model.reader.state_dict())
        encoder.eval().encoder.set_attn_implementation("eager")
        given = encoder.encoder(**batch.inputs, output_attentions=True).attentions
    assert list(views) == [1, 2]
    for number, expected in enumerate(given, 1):
        real = batch.inputs["attention_mask"]
        ours = views[number].attention.probabilities.transpose(1, 2)[real]
        torch.testing.assert_close(ours, expected.transpose(1, 2)[real], atol=1e-5, rtol=1e-4)


def test_attention_of_a_block_goes_somewhere(shown):
    table = skim_looks.where_it_goes(shown)
    assert list(table.index) == list(range(1, len(shown.labels) + 1))
    np.testing.assert_allclose(table.sum(axis=1), 100, atol=0.5)  # kept in half precision
    place = np.flatnonzero(shown.of == 1)
    own = shown.maps[1][np.ix_(place, place)].sum() / len(place)
    assert table.loc[2, "its own block"] == pytest.approx(100 * own, rel=1e-4)


def test_the_diagonal_module_does_not_see_the_question(shown):
    torch.manual_seed(0)
    whole, asks = torch.from_numpy(shown.maps[1]), torch.from_numpy(shown.question)
    erased = whole.masked_fill(asks[:, None] | asks, 0.0)
    moved = {}
    for kind in ("diagonal", "question"):
        config = PredictorConfig(kind, block_size=SIZE)
        module = build_predictor(config, ModelShape(1, 1, 1), 1).eval()
        with torch.inference_mode():
            seen, blind = (module(shown.sight(x)) for x in (whole, erased))
        moved[kind] = (seen - blind).abs().max().item()
    assert moved["diagonal"] == 0
    assert moved["question"] > 0.01


# --- labels ------------------------------------------------------------------------------------


def test_labels_are_counted_as_the_loss_makes_them(study, windows):
    found = skim_views.count_labels(windows, SIZE)
    batch = collate(windows)
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    blocks = make_blocks(ids, real, batch.mask, (), SIZE)
    for two, ending in ((False, ""), (True, " two")):
        rule = SkimLossConfig(two_tokens=two)
        labels = block_labels(blocks, batch.spans, batch.weights, rule)
        share = labels.sum() / blocks.real.sum()
        assert found[f"positive{ending}"] == pytest.approx(share.item())
        none = 1 - labels.any(dim=1).float().mean()
        assert found[f"none{ending}"] == pytest.approx(none.item())
    assert found["none"] == 0
    recorded = skim_views.label_counts(study, "test")
    assert recorded == pytest.approx(found)
    assert recorded["questions"] == len(study.data("test"))


def test_a_question_is_counted_once_however_many_windows_it_has():
    one_token = [window(0, 12, (3, 3)), window(0, 12, (4, 4)), window(1, 12, (3, 3), (0, 2))]
    found = skim_views.count_labels(one_token, 4)
    assert found == {
        "questions": 2,
        "positive": 3 / 9,
        "positive two": 0.0,  # the second gold answer has two tokens, the first has not
        "none": 0.0,
        "none two": 1.0,
    }
    later = skim_views.count_labels([*one_token, window(0, 12, (8, 9))], 4)
    assert later["none two"] == 0.5


# --- curves ------------------------------------------------------------------------------------


def test_word_overlap_is_judged_without_a_network(words, windows, model):
    blocks = read_judged(words)
    assert list(blocks.scores) == [1]
    lexical = build_predictor(PredictorConfig("lexical", block_size=SIZE), ModelShape(1, 1, 1), 1)
    for number in (0, 7):
        batch = collate([windows[number]])
        with torch.inference_mode():
            sight = model.run(batch, skim=False).blocks
            logits = lexical(skim_looks.Sight({}, sight, batch.inputs["input_ids"]))[0]
        ours = blocks.scores[1][blocks.row == number]
        np.testing.assert_allclose(ours, logits.sigmoid(), atol=1e-5)


def test_recall_curves_are_those_of_the_judged_blocks(study, judged):
    points = skim_views.recall_points(study, judged[0])
    table = layer_table(judged[0])
    for layer, line in points.groupby("layer"):
        assert len(line) == skim_views.GRID
        assert line["found"].is_monotonic_increasing
        assert line["found"].iloc[-1] == 1
        at = line.set_index("kept")["found"]
        for share in (0.4, 0.6):
            assert at.loc[share] == pytest.approx(table.loc[layer, f"found at {share:g}"], abs=1e-5)
    mean = skim_views.mean_curves(study, judged)
    both = [skim_views.recall_points(study, run)["found"] for run in judged]
    np.testing.assert_allclose(mean["found"], np.mean(both, axis=0))


# --- attention ---------------------------------------------------------------------------------


def test_attention_to_answers_is_what_a_slow_sum_gives(model, windows):
    chosen = windows[:4]
    found = skim_looks.mean_attention(model, chosen, SIZE)
    single = skim_looks.mean_attention(model, chosen, SIZE, budget=1)
    assert found["even"] == pytest.approx(single["even"])
    for row, alone in zip(found["layers"], single["layers"], strict=True):
        assert row == pytest.approx(alone, rel=1e-3)
    given, shares, own, other, even = [], [], [], [], []
    for w in chosen:
        batch = collate([w])
        of = even_blocks(batch.mask, SIZE)[0].tolist()
        holds = {of[p] for start, end in w.spans for p in range(start, end + 1)}
        passage = [p for p, block in enumerate(of) if block >= 0]
        answer = [p for p in passage if of[p] in holds]
        with torch.inference_mode():
            blocks = model.run(batch, skim=False).blocks
            view = dict(skim_looks.layer_views(model, batch, blocks))[2]
        p = view.attention.probabilities[0].mean(0).numpy()
        asks = range(1, w.first - 1)
        given.append(np.mean([p[i, answer].sum() for i in asks]))
        shares.append(given[-1] / np.mean([p[i, passage].sum() for i in asks]))
        even.append(len(answer) / len(passage))
        kinds = {True: [], False: []}
        for block in range(max(of) + 1):
            place = [x for x in passage if of[x] == block]
            if len(place) == SIZE:
                inside = np.mean([p[i, place].sum() for i in place])
                kinds[block in holds].append(inside)
        own += [np.mean(kinds[True])] if kinds[True] else []
        other += [np.mean(kinds[False])] if kinds[False] else []
    expected = {"given": given, "share": shares, "own answer": own, "own other": other}
    for name, values in expected.items():
        assert found["layers"][1][name] == pytest.approx(100 * np.mean(values), rel=1e-3), name
    assert found["even"] == pytest.approx(100 * np.mean(even), rel=1e-4)


def test_attention_is_looked_at_with_and_without_predictors(study, readers):
    looked = {
        name: [skim_looks.answer_attention(study, run, questions=6) for run in runs]
        for name, runs in readers.items()
    }
    points = skim_views.attention_points(looked)
    assert list(zip(points["reader"], points["layer"], strict=True)) == [
        (name, layer) for name in readers for layer in (1, 2)
    ]
    mean = np.mean([run.metrics["layers"][0]["share"] for run in looked["joint"]])
    row = points[(points["reader"] == "joint") & (points["layer"] == 1)]
    assert row["share"].item() == pytest.approx(mean)
    assert looked["joint"][0].metrics["even"] == pytest.approx(looked["plain"][0].metrics["even"])


# --- tables ------------------------------------------------------------------------------------


def test_classifier_scores_are_those_of_scikit_learn(judged):
    points = skim_views.classifier(judged)
    assert len(points) == 4
    for row in points.itertuples():
        blocks = read_judged(judged[row.seed])
        said = blocks.scores[row.layer] >= 0.5
        assert row.f1 == pytest.approx(100 * f1_score(blocks.labels, said, zero_division=0))
        macro = f1_score(blocks.labels, said, average="macro", zero_division=0)
        assert row.both == pytest.approx(100 * macro)
    everything = f1_score(blocks.labels, np.ones(len(blocks.labels), bool))
    assert skim_views.all_positive_f1(judged[0]) == pytest.approx(100 * everything)
    text = skim_views.spread(points, "layer")
    assert list(text.index) == [1, 2]
    assert all("±" in cell for cell in text["f1"])


@pytest.mark.parametrize(
    ("said", "labels"), [([1, 0, 1, 1], [1, 0, 0, 1]), ([1, 1], [1, 0]), ([0, 0], [1, 0])]
)
def test_the_other_class_follows_from_the_first(said, labels):
    said, labels = np.array(said, bool), np.array(labels, bool)
    hits = (said & labels).sum()
    row = pd.Series({"recall": hits / labels.sum(), "accuracy": (said == labels).mean()})
    expected = 100 * f1_score(~labels, ~said, zero_division=0)
    assert skim_views._other_f1(row, labels.mean()) == pytest.approx(expected)


def test_the_price_of_recall_is_set_beside_word_overlap(judged, words):
    table = skim_views.kept_table(judged, words)
    assert list(table.index) == [1, 2, skim_views.WORDS]
    kept = [layer_table(run).loc[2, "kept at 0.99"] for run in judged]
    assert table.loc[2, "kept for 99 % found"] == pytest.approx(100 * np.mean(kept))
    found = layer_table(words).loc[1, "found at 0.6"]
    assert table.loc["words", "found in 60 % kept"] == pytest.approx(100 * found)


def test_the_gain_is_joint_minus_plain(study, readers):
    scored = {
        name: [skim_study.score(study, name, run) for run in runs] for name, runs in readers.items()
    }
    points = skim_views.scores(scored)
    mean = points.groupby("reader")["F1"].mean()
    gain = skim_views.gain(study, scored, "F1")
    assert gain.difference == pytest.approx(mean["joint"] - mean["plain"])
    test = study.data("test")
    ours, theirs = (
        np.stack([per_question(test, run)["EM"] for run in scored[name]])
        for name in ("joint", "plain")
    )
    assert skim_views.gain(study, scored, "EM") == paired_bootstrap(ours, theirs)


def test_alphas_are_set_side_by_side(study):
    tuned = skim_study.tuning(study)
    table = skim_views.tuning_table(study, tuned)
    assert list(table.index) == [1.0, 0.0]
    assert table.loc[1.0, ["layer 1", "layer 2"]].notna().all()
    assert table.loc[0.0, ["layer 1", "layer 2"]].isna().all()
    f1 = tuned[1.0][1].metrics["f1"]
    held = 50 - tuned[1.0][0].metrics["questions"]
    assert tuned[1.0][1].metrics["questions"] == held
    assert table.loc[1.0, "F1"] == f1
    assert table.loc[1.0, "F1 error"] == pytest.approx((f1 * (100 - f1) / held) ** 0.5)


def test_the_reader_that_ships_is_trained_like_a_fresh_one():
    shipped, fresh = (
        build_skim_reader(SkimTraining(start=start), None, None)
        for start in ("shipped", "pretrained")
    )
    learns = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (shipped, fresh)]
    assert learns[0] == learns[1]
    assert not any("word_embeddings" in name for name in learns[0])


# --- figures -----------------------------------------------------------------------------------


def test_the_map_frames_every_block_and_marks_the_answer(shown):
    fig = plots_skim.attention_map(shown)
    whole = next(ax for ax in fig.axes if ax.get_xlabel() == "attended to")
    frames = [(p.get_x() + 0.5, p.get_width(), p.get_linewidth()) for p in whole.patches]
    assert len(frames) == len(shown.labels)
    for block, (first, width, line) in enumerate(frames):
        place = np.flatnonzero(shown.of == block)
        assert (first, width) == (place[0], len(place))
        assert (line > 2) == shown.labels[block]
    titles = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert titles == [
        f"{n}, answer" if holds else f"{n}" for n, holds in enumerate(shown.labels, 1)
    ]


def test_probabilities_are_drawn_before_and_after(shown):
    before, after, *_ = plots_skim.block_probabilities(shown).axes
    for ax, values in zip((before, after), shown.probabilities, strict=True):
        np.testing.assert_allclose(ax.collections[0].get_array().ravel(), values.ravel())
        assert len(ax.patches) == shown.labels.sum()


def test_curves_of_both_readers_are_drawn(readers):
    curves = skim_views.loss_curves(readers)
    assert set(curves["reader"]) == {"plain", "joint"}
    assert set(curves["seed"]) == {0, 1}
    plain, joint = plots_skim.loss_curves(curves).axes
    ends = curves[curves["step"] == 4].groupby("reader")["loss"].mean()
    assert plain.lines[0].get_ydata()[-1] == pytest.approx(ends["plain"])
    assert joint.lines[0].get_ydata()[-1] == pytest.approx(ends["joint"])


def test_the_classifier_stands_beside_paper_and_baselines(judged):
    points = skim_views.classifier(judged)
    baselines = {"word overlap": 41.0, "every block": 33.0}
    fig = plots_skim.classifier(points, baselines, {1: 80.99, 2: 89.37})
    names = [text.get_text() for text in fig.legends[0].texts]
    assert names[:3] == ["precision", "recall", "F1"]
    assert names[-2:] == ["F1, word overlap", "F1, every block"]
    (ax,) = fig.axes
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert list(drawn["F1, every block"]) == [33.0, 33.0]
    assert list(drawn["F1, paper, BERT-base, at this depth"]) == [80.99, 89.37]


def test_every_layer_has_its_curve_beside_words(study, judged, words):
    points = skim_views.mean_curves(study, judged)
    overlap = skim_views.recall_points(study, words)
    left, right = plots_skim.recall_curves(points, overlap).axes
    for ax in (left, right):
        labels = [line.get_label() for line in ax.lines]
        assert labels[:4] == ["layer 1", "layer 2", "word overlap", "as many as tokens"]
        np.testing.assert_allclose(ax.lines[2].get_ydata(), overlap["found"])


def test_scores_that_are_nearly_equal_look_so():
    rows = [("plain", 0, 40.0, 50.0), ("joint", 0, 40.0, 50.01)]
    points = pd.DataFrame(rows, columns=["reader", "seed", "EM", "F1"])
    for ax in plots_skim.scores(points).axes:
        low, high = ax.get_xlim()
        assert high - low >= 1
        assert len(ax.lines) == 4


def test_attention_is_drawn_for_both_readers():
    rows = [("plain", 1, 20.0, 30.0, 25.0), ("plain", 2, 22.0, 31.0, 24.0)]
    rows += [("joint", 1, 21.0, 35.0, 20.0), ("joint", 2, 40.0, 50.0, 15.0)]
    columns = ["reader", "layer", "share", "own answer", "own other"]
    left, right = plots_skim.attention_given(pd.DataFrame(rows, columns=columns), 18.0).axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[20, 22], [21, 40]]
    assert [line.get_label() for line in right.lines] == [
        "plain, answer",
        "plain, other",
        "joint, answer",
        "joint, other",
    ]
    assert left.get_ylim()[1] > 40
    assert right.get_ylim()[1] > 50
