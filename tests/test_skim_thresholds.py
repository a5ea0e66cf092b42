"""Promises counted out one by one; replays against the skimmer's own rule; cascades by force."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap
from qalib.skim import keep
from qalib.skim.cascade import candidates, choose_cascade, correct, logit, sigmoid
from qalib.skim.cost import CostModel
from qalib.skim.recall import question_scores
from qalib.skim.replay import Replay
from qalib.skim.settings import SkimConfig
from qalib.skim.thresholds import (
    Choice,
    allowed_rank,
    exact_interval,
    loss_threshold,
    recall_threshold,
    under_shift,
    work_threshold,
)

COST = CostModel.bert(6, 384)
LEVELS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]  # exact in float32 or far apart: nothing hangs on a bit


def made(questions: int, seed: int = 0, layers=(2, 4), windows: int = 1, **changes) -> Replay:
    """Questions with some blocks each; answers in one block, in two, in several ways or nowhere."""
    rng = np.random.default_rng(seed)
    row, window, answers, scores = [], [], [], {n: [] for n in layers}
    for question in range(questions):
        for part in range(windows):
            blocks = int(rng.integers(1, 8))
            held = np.zeros((blocks, 2), dtype=bool)
            if question % 10 != 9 and part == 0:
                first = int(rng.integers(blocks))
                held[first : first + 1 + question % 2, 0] = True
                held[int(rng.integers(blocks)), 1] = question % 3 == 0
            row += [question] * blocks
            window += [question * windows + part] * blocks
            answers.append(held)
            for depth, values in enumerate(scores.values(), 1):
                noise = rng.normal(size=blocks)
                values.append(1 / (1 + np.exp(-(2 * depth * (held.any(1) - 0.5) + noise))))
    scores = {n: np.concatenate(x).astype(np.float32) for n, x in scores.items()}
    sizes = rng.integers(1, 33, len(row))
    arrays = {"window": np.array(window) if windows > 1 else None, "always": 15} | changes
    return Replay(np.array(row), sizes, np.concatenate(answers), scores, **arrays)


@st.composite
def replays(draw, layers: int = 2):
    """A few questions, windows and blocks, with scores that are often equal."""
    blocks, row, window = [], 0, 0
    for step in draw(st.lists(st.integers(0, 2), min_size=1, max_size=10)):
        window, row = window + (step > 0), row + (step == 2)  # next block, window or question
        blocks.append((row, window))
    count = len(blocks)

    def column(each, **settings):
        return np.array(draw(st.lists(each, min_size=count, max_size=count)), **settings)

    return Replay(
        np.array([r for r, _ in blocks]),
        column(st.integers(1, 9)),
        column(st.tuples(st.booleans(), st.booleans())),
        {2 * n: column(st.sampled_from(LEVELS)) for n in range(1, layers + 1)},
        np.array([w for _, w in blocks]),
        draw(st.integers(3, 20)),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2)),
    )


def slow_found(replay: Replay, kept_blocks: set[int]) -> list[bool]:
    """Question by question, those with an answer: does one of them lie wholly in these blocks?"""
    found = []
    for question in sorted(set(replay.row.tolist())):
        mine = [n for n in range(len(replay.row)) if replay.row[n] == question]
        needed = [{n for n in mine if replay.answers[n, a]} for a in range(2)]
        if any(needed):
            found.append(any(blocks and blocks <= kept_blocks for blocks in needed))
    return found


def slow_kept(replay: Replay, at: dict[int, float]) -> list[set[int]]:
    """The blocks behind each skim point, window by window with the rule of the skimmer itself."""
    windows = [np.flatnonzero(replay.window == w).tolist() for w in range(replay.window.max() + 1)]
    left, history = set(range(len(replay.row))), []
    for layer in sorted(at):
        still = set()
        for mine in windows:
            scores = torch.tensor([[replay.scores[layer][n] for n in mine]])
            there = torch.tensor([[n in left for n in mine]])
            kept = keep.choose(scores.logit(), there, at[layer], replay.min_keep, replay.neighbours)
            still |= {n for n, yes in zip(mine, kept[0].tolist(), strict=True) if yes}
        left = still
        history.append(left)
    return history


@settings(max_examples=50)
@given(replay=replays(), first=st.sampled_from(LEVELS), second=st.sampled_from(LEVELS))
def test_a_replay_is_what_the_skimmer_would_do(replay, first, second):
    at = {2: first, 4: second}
    history = slow_kept(replay, at)
    window, place, order = replay.cell
    for kept, expected in zip(replay.kept(at).values(), history, strict=True):
        assert set(order[kept[window, place]].tolist()) == expected
        assert int(kept.sum()) == len(expected)
    tokens = [replay.sizes[list(kept)].sum() for kept in history]
    assert replay.read(at) == pytest.approx(tokens[-1] / replay.sizes.sum())
    assert replay.found(at).tolist() == slow_found(replay, history[-1])
    judges = {2: lambda passage, question: 100.0 * passage * (question + 1)}
    cost = CostModel(COST.layers, COST.head, judges=judges, left=1000)
    total = full = 0.0
    for number in range(replay.window.max() + 1):
        mine = set(np.flatnonzero(replay.window == number).tolist())
        n0, n1, n2 = (15 + replay.sizes[list(mine & s)].sum() for s in (mine, *history))
        always = int(replay.always[number])
        n0, n1, n2 = (n - 15 + always for n in (n0, n1, n2))
        full += cost.encoder([n0] * 7)
        total += cost.encoder([n0, n0, n1, n1, n2, n2, n2])
        total += 100.0 * (n0 - always) * (always - 2) + 1000 * (n0 + n1)
    assert replay.work(at, cost) == pytest.approx(total / full)


def test_nothing_skimmed_is_all_of_the_work():
    replay = made(20)
    assert (replay.read({}), replay.work({}, COST)) == (1, 1)
    assert replay.found({}).tolist() == [True] * 18
    assert replay.work({2: 0.0, 4: 0.0}, COST) == pytest.approx(1)


def test_parts_are_replays_of_their_own():
    replay = made(30, windows=2, always=np.arange(60))
    chosen = np.arange(30) % 3 == 1
    one, rest = replay.part(chosen), replay.part(~chosen)
    at = {2: 0.4, 4: 0.6}
    assert one.always.tolist() == [w for w in range(60) if w // 2 % 3 == 1]
    assert len(one.found(at)) + len(rest.found(at)) == len(replay.found(at))
    assert one.found(at).sum() + rest.found(at).sum() == replay.found(at).sum()
    shares = [part.read(at) * part.sizes.sum() for part in (one, rest)]
    assert sum(shares) == pytest.approx(replay.read(at) * replay.sizes.sum())


# --- recall ---


def conformity(replay: Replay, layer: int) -> np.ndarray:
    return replay.reached(replay.lasting({layer: replay.grids[layer]}))


@settings(max_examples=50)
@given(replay=replays())
def test_conformity_is_the_highest_threshold_at_which_an_answer_is_kept(replay):
    """Under the skimmer's whole rule, with its best blocks and neighbours; beyond 1: always."""
    highest = np.full(int(replay.answered.sum()), -np.inf)
    for threshold in [*LEVELS, 1.5]:
        found = np.array(slow_found(replay, slow_kept(replay, {2: threshold})[0]), dtype=bool)
        highest[found] = threshold if threshold <= 1 else np.inf
    assert conformity(replay, 2).tolist() == highest.tolist()
    bare = replace(replay, min_keep=0, neighbours=0)
    expected = question_scores(replay.scores[2], replay.answers, replay.row)
    assert conformity(bare, 2).tolist() == expected[replay.answered].tolist()


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("ties", [False, True])
def test_the_promise_is_kept_exactly_on_average(recall, ties):
    """Each of n + 1 questions in turn is the new one: exchangeable, and nothing left to chance."""
    rng = np.random.default_rng(0)
    for questions in (20, 33, 39):
        scores = rng.integers(0, 6, questions + 1) / 8 if ties else rng.random(questions + 1)
        row, ones = np.arange(questions + 1), np.ones(questions + 1)
        kept = 0
        for new in row:
            others = row != new
            cached = Replay(
                row[others], ones[others], ones[others], {1: scores[others]}, min_keep=0
            )
            kept += scores[new] >= recall_threshold(cached, 1, recall).thresholds[0]
        share = Fraction(int(kept), questions + 1)
        wish = Fraction(str(recall))
        assert share >= wish
        if not ties:
            assert share < wish + Fraction(1, questions + 1)


def test_the_promise_is_kept_over_many_splits():
    """Real blocks and answers, drawn again and again: the mean coverage lies where it is to be."""
    replay = made(1000, seed=1)
    reached, rng, found = conformity(replay, 4), np.random.default_rng(1), []
    assert len(reached) == 900
    for _ in range(400):
        drawn = rng.permutation(900)
        threshold = np.sort(reached[drawn[:199]])[allowed_rank(199, 0.95) - 1]
        found.append((reached[drawn[199:]] >= threshold).mean())
    spread = 4 * np.std(found) / 20
    assert 0.95 - spread < np.mean(found) < 0.955 + spread
    sharper = [np.sort(rng.random(199))[allowed_rank(199, 0.95, 0.9) - 1] for _ in range(2000)]
    kept = 1 - np.array(sharper)  # uniform scores: P(kept) is known
    assert (kept >= 0.95).mean() > 0.9 - 4 * (0.09 / 2000) ** 0.5


@pytest.mark.parametrize("questions", [13, 40, 130])
@pytest.mark.parametrize(("recall", "confidence"), [(0.8, 0.9), (0.9, 0.5), (0.5, 0.99)])
def test_confidence_is_the_exact_binomial(questions, recall, confidence):
    miss = 1 - Fraction(str(recall))
    chances = [
        math.comb(questions, k) * miss**k * (1 - miss) ** (questions - k)
        for k in range(questions + 1)
    ]
    allowed = [
        r for r in range(1, questions + 1) if sum(chances[:r]) <= 1 - Fraction(str(confidence))
    ]
    if allowed:
        assert allowed_rank(questions, recall, confidence) == max(allowed)
    else:
        with pytest.raises(QalibError, match="too few"):
            allowed_rank(questions, recall, confidence)


@pytest.mark.parametrize(
    ("recall", "confidence", "needed"),
    [(0.995, None, 199), (0.9, None, 9), (0.5, None, 1), (0.995, 0.95, 598), (0.9, 0.95, 29)],
)
def test_how_many_questions_a_wish_takes(recall, confidence, needed):
    assert allowed_rank(needed, recall, confidence) == 1
    with pytest.raises(QalibError, match=f"{needed - 1} questions.*at least {needed}"):
        allowed_rank(needed - 1, recall, confidence)


def test_the_sharpest_threshold_that_the_wish_allows():
    replay = made(400)
    choice = recall_threshold(replay, 2, 0.9, cost=COST)
    reached = sorted(conformity(replay, 2))
    assert choice.thresholds == (reached[35],)  # floor(361 x 0.1) = 36
    assert (choice.questions, choice.left_out) == (360, 40)
    assert choice.found >= 325 / 360
    assert choice.read == replay.read({2: reached[35]})
    assert choice.work == replay.work(choice.at, COST)
    assert "probability 0.9, on average" in choice.promise
    SkimConfig({"kind": "question"}, (2,), **choice.settings)
    firm = recall_threshold(replay, 2, 0.9, confidence=0.95)
    assert "with confidence 0.95" in firm.promise
    assert firm.work is None
    assert firm.thresholds < choice.thresholds
    assert firm.read > choice.read


def test_a_higher_wish_never_gets_a_higher_threshold():
    replay = made(400)
    for confidence in (None, 0.9):
        wishes = [0.5, 0.8, 0.9, 0.95, 0.98]
        chosen = [recall_threshold(replay, 4, wish, confidence) for wish in wishes]
        thresholds = [choice.thresholds[0] for choice in chosen]
        assert thresholds == sorted(thresholds, reverse=True)
        assert all(c.found >= wish for c, wish in zip(chosen, wishes, strict=True))


def test_equal_scores_keep_everything():
    row = np.arange(20)
    replay = Replay(row, row + 1, row >= 0, {1: np.full(20, 0.5)}, min_keep=0)
    choice = recall_threshold(replay, 1, 0.9)
    assert (choice.thresholds, choice.found, choice.read) == ((0.5,), 1, 1)


def test_an_answer_needs_all_of_its_blocks_and_any_answer_will_do():
    # question 0: answer 0 in two blocks, answer 1 in one; question 1: an answer in two windows
    replay = Replay(
        row=np.array([0, 0, 0, 1, 1, 1, 2]),
        sizes=np.ones(7),
        answers=np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 0], [0, 1], [0, 0]]),
        scores={1: np.array([0.9, 0.2, 0.4, 0.3, 0.9, 0.6, 0.9])},
        window=np.array([0, 0, 0, 1, 1, 2, 3]),
        min_keep=0,
    )
    assert conformity(replay, 1).tolist() == [0.4, 0.6]
    assert replay.found({1: 0.5}).tolist() == [False, True]
    assert recall_threshold(replay, 1, 0.5).thresholds == (0.4,)
    assert recall_threshold(replay, 1, 0.5).left_out == 1


# --- work ---


@pytest.mark.parametrize("cost", [None, COST])
@pytest.mark.parametrize("changes", [{}, {"min_keep": 2, "neighbours": 1}])
def test_the_lowest_threshold_for_so_much_work(cost, changes):
    replay = made(60, **changes)
    tried = np.unique([0, *replay.scores[2], 1])

    def left(threshold):
        at = {2: threshold}
        return replay.read(at) if cost is None else replay.work(at, cost)

    for wish in (1.0, 0.95, 0.9):
        choice = work_threshold(replay, 2, wish, cost)
        assert choice.thresholds[0] == min(t for t in tried if left(t) <= wish)
        assert (choice.read if cost is None else choice.work) <= wish
    assert work_threshold(replay, 2, 1.0, cost).thresholds == (0,)
    with pytest.raises(QalibError, match=r"leaves .* of the work"):
        work_threshold(replay, 2, 0.01, cost)


# --- loss ---


def test_the_sharpest_threshold_that_loses_little():
    measured = {0.0: 75.0, 0.1: 75.2, 0.2: 74.4, 0.3: 74.5, 0.5: 73.0}
    assert loss_threshold(measured) == 0.3
    assert loss_threshold(measured, most=0) == 0.1
    assert loss_threshold(measured, most=9) == 0.5
    assert loss_threshold({0: 75.0}) == 0


def test_a_bound_of_the_loss_is_stricter_than_the_loss():
    rng = np.random.default_rng(0)
    full = rng.random(4000)
    measured = {0.0: full}
    for threshold, share in ((0.2, 0.001), (0.4, 0.008), (0.6, 0.02)):
        measured[threshold] = np.where(rng.random(4000) < share, 0.0, full)
    lost = {t: 100 * (full - x).mean() for t, x in measured.items()}
    assert lost[0.4] < 0.5 < lost[0.6]
    assert loss_threshold(measured) == 0.4
    assert loss_threshold(measured, most=lost[0.4] + 1e-9) == 0.4
    assert loss_threshold(measured, most=lost[0.4] + 1e-9, confidence=0.975) < 0.4
    upper = 100 * paired_bootstrap(full, measured[0.4], samples=2000).high
    assert loss_threshold(measured, most=upper + 0.05, confidence=0.975) == 0.4
    assert loss_threshold(measured, most=upper - 0.05, confidence=0.975) == 0.2


def test_few_questions_without_a_loss_prove_little():
    same = {0.0: np.full(50, 0.7), 0.5: np.full(50, 0.7)}
    assert loss_threshold(same, most=0.5) == 0.5
    assert loss_threshold(same, most=0.5, confidence=0.9) == 0
    many = {t: np.repeat(x, 100) for t, x in same.items()}
    assert loss_threshold(many, most=0.5, confidence=0.9) == 0.5


def test_the_first_threshold_that_fails_ends_the_search():
    rng = np.random.default_rng(0)
    full = rng.random(3000)
    bad = np.where(rng.random(3000) < 0.05, 0.0, full)
    measured = {0.0: full, 0.2: bad, 0.4: full}
    assert loss_threshold(measured, most=0.5) == 0.4
    assert loss_threshold(measured, most=0.5, confidence=0.9) == 0


# --- cascades ---


def best_by_force(replay: Replay, sets, lost: int) -> float:
    """The least work of all thresholds that are scores, with so many answers lost at most."""
    least = 1.0
    for points in sets:
        for thresholds in product(*(np.unique([*replay.scores[n], 1.0]) for n in points)):
            at = dict(zip(points, thresholds, strict=True))
            if (~replay.found(at)).sum() <= lost:
                least = min(least, replay.work(at, COST))
    return least


@pytest.mark.parametrize(
    ("sets", "changes"),
    [([(2,), (4,)], {"neighbours": 1}), ([(2,), (4,), (2, 4)], {"min_keep": 0})],
)
def test_the_search_finds_what_brute_force_finds(sets, changes):
    replay = made(7, **changes)
    for lost in (0, 1, 3):
        tried = [
            replay.work(dict(zip(points, thresholds, strict=True)), COST)
            for points in sets
            for thresholds in candidates(replay, points, lost, grid=12)
        ]
        assert min([1.0, *tried]) == pytest.approx(best_by_force(replay, sets, lost))


@settings(max_examples=50)
@given(replay=replays(layers=3), lost=st.integers(0, 3), grid=st.integers(1, 4))
def test_candidates_lose_no_more_than_allowed(replay, lost, grid):
    if lost >= replay.answered.sum():
        return
    for points in ((2,), (2, 4), (2, 4, 6)):
        for thresholds in candidates(replay, points, lost, grid):
            assert (~replay.found(dict(zip(points, thresholds, strict=True)))).sum() <= lost


@pytest.mark.parametrize("ties", [False, True])
def test_a_corrected_cascade_keeps_the_promise_exactly_on_average(ties):
    """As for one threshold: each question in turn is new, whatever the thresholds were before."""
    rng = np.random.default_rng(3)
    values = rng.random((2, 40)).astype(np.float32)
    if ties:
        values = (values * 4).round() / 4  # 0 and 1 are among them
    row, ones = np.arange(40), np.ones(40)
    for found in ({2: 0.3, 4: 0.9}, {2: 0.0, 4: 0.5}, {2: 1.0, 4: 1e-6}):
        kept = 0
        for new in row:
            others = row != new
            scores = {2: values[0][others], 4: values[1][others]}
            cached = Replay(row[others], ones[others], ones[others], scores, min_keep=0)
            at = correct(cached, found, 0.9)
            kept += all(s[new] >= np.float32(at[n]) for n, s in zip((2, 4), values, strict=True))
        assert kept >= 36
        assert ties or kept == 36


@settings(max_examples=50)
@given(replay=replays(), first=st.sampled_from(LEVELS), second=st.sampled_from(LEVELS))
def test_the_correction_loses_no_more_than_the_allowed_questions(replay, first, second):
    answered = int(replay.answered.sum())
    if answered < 2:
        return
    at = correct(replay, {2: first, 4: second}, recall=0.5)
    assert (~replay.found(at)).sum() <= allowed_rank(answered, 0.5) - 1
    assert all(0 <= t <= 1 and t == np.float32(t) for t in at.values())


def test_logits_keep_the_order_of_float32():
    one = np.float32(1)
    p = np.array([0, 1e-45, 1e-30, 0.5, np.nextafter(one, np.float32(0)), one], dtype=np.float32)
    assert (np.diff(logit(p)) > 0).all()
    assert np.isfinite(logit(p)).all()
    np.testing.assert_allclose(sigmoid(logit(p)), p, atol=1e-7)
    np.testing.assert_allclose(sigmoid(np.array([-800.0, 0, 800])), [0, 0.5, 1])


def test_a_chosen_cascade():
    replay = made(2000, layers=(2, 3, 4))
    choice = choose_cascade(replay, COST, recall=0.95)
    assert choice == choose_cascade(replay, COST, recall=0.95)
    assert len(choice.layers) == 2
    assert choice.work < 1
    assert choice.questions + choice.left_out == 1000
    assert 0.95 < choice.found < 0.97
    config = SkimConfig({"kind": "question"}, (2, 3, 4), **choice.settings)
    assert config.threshold_at == choice.at
    single = choose_cascade(replay, COST, recall=0.95, layers=[(2,), (3,), (4,)])
    assert choice.work <= single.work + 0.02
    triple = choose_cascade(replay, COST, recall=0.95, layers=[(2, 3, 4)], grid=4)
    assert triple.layers == (2, 3, 4)
    one, firm = (choose_cascade(replay, COST, 0.95, sure, [(3,)]) for sure in (None, 0.95))
    assert firm.thresholds < one.thresholds
    assert firm.work > one.work
    assert "confidence" in firm.promise


def test_where_skimming_cannot_pay_no_layer_is_chosen():
    dear = CostModel(COST.layers, COST.head, judges=dict.fromkeys((2, 4), lambda n, q: 1e12))
    choice = choose_cascade(made(100), dear, recall=0.9)
    assert (choice.layers, choice.thresholds, choice.work, choice.found) == ((), (), 1, 1)


def test_the_promise_of_a_cascade_holds_although_it_was_searched_for():
    """Of questions without any signal, searched hard: the rest are not fooled."""
    rng, kept = np.random.default_rng(0), []
    blocks, questions = 3, 240
    for seed in range(40):
        row = np.repeat(np.arange(questions), blocks)
        scores = {n: rng.random(len(row)).astype(np.float32) for n in (1, 2, 3)}
        answers = np.tile([True, False, False], questions)
        replay = Replay(row, np.full(len(row), 20), answers, scores, min_keep=0)
        new = replay.part(np.arange(questions) >= 140)
        choice = choose_cascade(
            replay.part(np.arange(questions) < 140), COST, 0.8, grid=4, seed=seed
        )
        kept.append(new.found(choice.at).mean())
    assert np.mean(kept) > 0.8 - 3 * np.std(kept) / 40**0.5
    assert np.mean(kept) < 0.83


# --- another kind of questions ---


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (5, 10, 0.1871, 0.8129),
        (98, 100, 0.9296, 0.9976),
    ],
)
def test_the_exact_interval(hits, trials, low, high):
    """Values from published tables."""
    np.testing.assert_allclose(exact_interval(hits, trials), [low, high], atol=6e-5)


@settings(max_examples=20)
@given(trials=st.integers(1, 25), confidence=st.sampled_from([0.5, 0.9]), data=st.data())
def test_the_ends_of_the_interval_leave_each_tail_its_share(trials, confidence, data):
    hits = data.draw(st.integers(0, trials))
    low, high = exact_interval(hits, trials, confidence)
    tail = (1 - confidence) / 2

    def chance(p, counts):
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in counts)

    assert low <= hits / trials <= high
    if hits:
        assert chance(low, range(hits, trials + 1)) == pytest.approx(tail)
    if hits < trials:
        assert chance(high, range(hits + 1)) == pytest.approx(tail)


def test_behaviour_under_shift():
    choice = recall_threshold(made(1000), 2, 0.9)
    same = under_shift(choice, made(1000, seed=5), cost=COST)
    assert same.low < 0.9 < same.high
    assert (same.questions, same.left_out) == (900, 100)
    assert 0 < same.work < 1
    other = made(1000, seed=5)
    harder = Replay(other.row, other.sizes, other.answers, {2: other.scores[2] ** 2})
    shifted = under_shift(choice, harder)
    assert shifted.high < 0.9
    assert shifted.read < same.read
    assert shifted.work is None


def test_mistakes_are_named():
    row, small = np.array([0, 0, 1]), made(20)
    silent = Replay(row, row + 1, row > 5, {1: np.full(3, 0.5)})
    choice = Choice((1,), (0.5,), "", 1, 0, 1.0, 1.0, None)
    for call, words in (
        (lambda: Replay(row, row[:2], row > 0, {}), "sizes: 2 entries for 3"),
        (lambda: Replay(row, row, row > 0, {3: row[:1]}), "scores of layer 3: 1 entries"),
        (lambda: Replay(row, row + 1, row > 0, {3: row - 1.0}), "sigmoid"),
        (lambda: Replay(row, row + 1, row > 0, {3: row * np.nan}), "sigmoid"),
        (lambda: Replay(row[:0], row[:0], row[:0], {}), "no block"),
        (lambda: Replay(row, row, row > 0, {}), "at least one token"),
        (lambda: small.kept({3: 0.5}), "no scores of layer 3"),
        (lambda: small.part(np.zeros(20, dtype=bool)), "no question"),
        (lambda: recall_threshold(small, 3), "no scores of layer 3"),
        (lambda: recall_threshold(small, 2), "18 questions.*at least 199"),
        (lambda: recall_threshold(small, 2, 1.0), "only a threshold of 0 is certain"),
        (lambda: recall_threshold(silent, 1, 0.5), "0 questions.*at least 1"),
        (lambda: work_threshold(small, 7), "no scores of layer 7"),
        (lambda: loss_threshold({0.1: 3.0}), "threshold 0"),
        (lambda: loss_threshold({0: 3.0}, most=-1), "from 0 up"),
        (lambda: loss_threshold({0: 3.0, 0.5: np.ones(3)}), "cannot be paired"),
        (lambda: loss_threshold({0: 3.0, 0.5: 3.0}, confidence=0.9), "question by question"),
        (lambda: loss_threshold({0: np.ones(2)}, confidence=1.0), "confidence lies"),
        (lambda: choose_cascade(small, COST, 0.5, layers=[(2, 3)]), r"\(2, 3\) are not all"),
        (lambda: choose_cascade(small, COST, 0.5, layers=[()]), "are not all"),
        (lambda: choose_cascade(small, COST, 0.5, searched=1.0), "share between 0 and 1"),
        (lambda: choose_cascade(small, COST), "too few"),
        (lambda: choose_cascade(made(1), COST, 0.5), "cut in two"),
        (lambda: under_shift(choice, silent), "at least one question"),
        (lambda: exact_interval(1, 2, 1.0), "confidence lies"),
    ):
        with pytest.raises(QalibError, match=words):
            call()
