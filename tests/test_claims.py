"""Paper and here: the intervals, the verdicts, the table, and the README's results."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from qalib.errors import QalibError
from qalib.study.claims import (
    NOT_RUN,
    PAPER,
    Claim,
    Interval,
    SeedVariance,
    compare,
    interval,
    load_claims,
    seed_variance,
    verdict,
)
from qalib.study.readme import readme_table, updated_readme
from qalib.study.run_cache import RunCache, stage

HEADER = "claim_id,paper,table,page,setting,metric,value,url\n"
LINES = """base,Doe 2020,Table 1,5,"Base, plain",F1,80.0,https://example.org/doe
skim,Doe 2020,Table 1,5,Skimmed,F1,82.50,https://example.org/doe
gain,Doe 2020,Section 4,6,Skimmed minus base,F1,> 0,https://example.org/doe
fast,Doe 2020,Figure 2,7,Skimmed over base,time,< 1,https://example.org/doe
"""


@pytest.fixture
def claims(tmp_path: Path) -> dict[str, Claim]:
    (tmp_path / "doe.csv").write_text(HEADER + LINES)
    return load_claims(tmp_path)


def test_claims_are_read_with_what_the_paper_prints(claims):
    skim, gain, fast = (claims[name] for name in ("skim", "gain", "fast"))
    assert claims["base"].setting == "Base, plain"
    assert (skim.bound, skim.number, skim.digits, skim.page) == ("", 82.5, 2, "5")
    assert (gain.bound, gain.number, fast.bound, fast.number) == (">", 0.0, "<", 1.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,b,c,1,e,F1,high,u", "line 2: value"),
        ("a,b,c,1,e,F1,nan,u", "line 2: value"),
        ("a,b,c,,e,F1,80,u", "line 2: page"),
        ("a,b,c,1,e,F1,80,", "line 2: url"),
        ("a,b,c,1,e,F1,80", "line 2: url is None"),
        ("a,b,c,1,e,F1,80,u,more", "line 2 has no key .more"),
    ],
)
def test_a_mistake_in_a_claim_is_named_with_file_and_line(tmp_path, line, message):
    (tmp_path / "doe.csv").write_text(HEADER + line + "\n")
    with pytest.raises(QalibError, match=message):
        load_claims(tmp_path)


# --- intervals ---------------------------------------------------------------------------------


def test_seed_variance_is_pooled_within_rows():
    rows = [np.array([1.0, 3.0]), np.array([[10.0, 12.0], [13.0, 15.0], [16.0, 18.0]])]
    assert seed_variance(rows) == SeedVariance((2.0 + 18.0) / 3, 3)  # means 11, 14, 17
    assert seed_variance([np.array([5.0])]).df == 0


def test_without_questions_the_interval_is_that_of_a_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 2, (5, 1)), rng.normal(0, 2, (5, 1))
    found = interval(ours, theirs)
    expected = ttest_ind(ours[:, 0], theirs[:, 0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.seeds, found.complete) == (5, True)


def test_one_seed_without_others_to_pool_gives_an_incomplete_interval():
    scores = np.random.default_rng(0).normal(50, 20, 400)
    found = interval(scores)
    assert found.high - found.mean == pytest.approx(1.966 * scores.std(ddof=1) / 20, rel=1e-3)
    assert (found.seeds, found.complete) == (1, False)
    assert interval([[50.0]]).high == np.inf


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_rate_of_false_positives_is_five_percent(seeds):
    """Simulated tables of equal readers: as many intervals as promised hold the difference 0.

    A row's score is a seed effect plus question effects, shared and of its own. With one seed a
    row, the variance over seeds comes from two other rows with three.
    """
    rng, outside, draws = np.random.default_rng(seeds), 0, 1500
    for _ in range(draws):
        shared = rng.normal(0, 4, 60)

        def row(number, shared=shared):
            own = shared + rng.normal(0, 2, 60)  # the same in all seeds of a row
            return rng.normal(0, 1.0, (number, 1)) + own + rng.normal(0, 0.5, (number, 60))

        table = [row(seeds) for _ in range(2)] + [row(max(seeds, 3)) for _ in range(2)]
        found = interval(*table[:2], pool=seed_variance(table))
        outside += not found.low <= 0 <= found.high
    assert 0.03 < outside / draws < 0.07


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim_id", "here", "expected"),
    [
        ("skim", None, NOT_RUN),
        ("skim", Interval(82.4, 81, 84, 2), "matched"),
        ("skim", Interval(82.496, 82.496, 82.496), "matched"),  # within the rounding
        ("skim", Interval(82.4, 82.4, 82.4), "below"),
        ("skim", Interval(90.0, 85, 95, 1, False), "above"),
        ("skim", Interval(82.4, -np.inf, np.inf, 1, False), "open"),
        ("gain", Interval(0.8, 0.2, 1.4, 3), "supported"),
        ("gain", Interval(0.8, 0.2, 1.4, 1, False), "open"),  # other seeds may differ
        ("gain", Interval(0.8, -0.2, 1.8, 3), "open"),
        ("gain", Interval(-0.8, -1.2, -0.1, 3), "contradicted"),
        ("gain", Interval(0.5, 0.5, 0.5), "supported"),  # a number that no seed changes
        ("fast", Interval(0.9, 0.7, 1.1, 2), "open"),
        ("fast", Interval(0.8, 0.7, 0.9, 2), "supported"),
        ("fast", Interval(1.5, 1.2, 1.8, 2), "contradicted"),
    ],
)
def test_verdicts(claims, claim_id, here, expected):
    assert verdict(claims[claim_id], here) == expected


def test_a_comparison_pools_the_seeds_of_all_rows_of_a_metric(claims):
    rng = np.random.default_rng(0)
    base, skim = rng.normal(60, 9, (3, 50)), rng.normal(85, 9, (1, 50))
    time = rng.normal([[0.4], [0.6]], 0.1, (2, 50))
    measured = {"base": base, "skim": skim, "gain": (skim, base), "fast": time}
    pool = seed_variance([base, skim])  # not with the time, another metric
    expected = {
        "base": interval(base, pool=pool),
        "skim": interval(skim, pool=pool),
        "gain": interval(skim, base, pool),
        "fast": interval(time),
    }
    rows = compare(measured, "study", "", claims)
    for row, (name, here), digits in zip(rows, expected.items(), (1, 2, 1, 2), strict=True):
        assert f"[{here.low:.{digits}f}, {here.high:.{digits}f}]" in row["here"]
        assert row["verdict"] == verdict(claims[name], here)
    assert [row["verdict"] for row in rows] == ["below", "matched", "supported", "open"]
    assert rows[1]["here"].endswith("(1 seed)")


def test_a_comparison_leaves_nothing_blank(claims):
    measured = {"base": [60.0, 61.0, 62.0], "skim": [64.25], "gain": None, "fast": 0.5}
    rows = compare(measured, "laptop", {"base": "6 layers"}, claims)
    source = "([Doe 2020, Table 1, p. 5](https://example.org/doe))"
    assert tuple(rows[0].values()) == (
        f"Base, plain, F1 {source}",
        "80.0",
        "61.0 [58.5, 63.5] (3 seeds)",
        "-19.0",
        "below",
        "6 layers",
    )
    assert list(rows[1].values())[1:4] == ["82.50", "64.25 [59.95, 68.55] (1 seed)", "-18.25"]
    assert list(rows[2].values())[1:5] == ["> 0", "-", "-", NOT_RUN]
    assert list(rows[3].values())[1:] == ["< 1", "0.50", "-0.50", "supported", "as in the paper"]
    assert all(cell for row in rows for cell in row.values())
    assert compare({"base": [80.0]}, "ci", "", claims)[0]["verdict"] == NOT_RUN


def test_mistakes_in_what_was_measured(claims):
    with pytest.raises(QalibError, match="'skimm'; did you mean 'skim'"):
        compare({"skimm": [1.0]}, "study", "", claims)
    with pytest.raises(QalibError, match=r"base: .*not finite"):
        compare({"base": [1.0, float("nan")]}, "study", "", claims)


def test_the_kits_own_claims_can_be_read():
    claims = load_claims()
    lines = [path.read_text(encoding="utf-8").splitlines() for path in PAPER.glob("*.csv")]
    assert len(claims) == sum(len(found) - 1 for found in lines)  # no claim_id is there twice
    assert all(claim.url.startswith("https://") for claim in claims.values())


# --- the README --------------------------------------------------------------------------------

TABLE = """test = "dev"
[[row]]
label = "Encoder"
reader = "encoder"
[[row]]
label = "Bytes | words"
reader = "bytes"
test = "other"
paper = "byte-plain-em"
"""


@pytest.fixture
def records(tmp_path: Path) -> Path:
    @stage("evaluate")
    def toy(config, work, test):
        return {"exact_match": 60 + config["seed"], "f1": 76.0 + config["seed"], "questions": 1000}

    cache = RunCache(tmp_path / "runs", tmp_path / "records")
    for seed in range(3):
        run = cache.run(toy, {"reader": "encoder", "seed": seed}, {"test": "dev"})
        cache.publish(run, [])
    cache.publish(cache.run(toy, {"reader": "bytes", "seed": 9}, {"test": "dev"}), [])
    (cache.records / "table.toml").write_text(TABLE)
    return cache.records


def test_the_results_table_comes_from_the_records(records):
    lines = readme_table(records).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["", "EM", "F1", "EM, paper", "questions", "seeds"]
    assert cells[2] == ["Encoder", "61.0 ± 1.0", "77.0 ± 1.0", "-", "1,000", "3"]
    assert cells[3] == [r"Bytes \| words", "-", "-", "30", "-", "0"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluate.jsonl", "{", r"evaluate\.jsonl, line 1: is damaged"),
        ("table.toml", "[[row]]\nlabel = 'x'", r"table\.toml: a row cannot be shown"),
        ("table.toml", TABLE.replace("byte-plain-em", "nobody-said"), "nobody-said"),
    ],
)
def test_a_damaged_record_or_table_is_named(records, file, text, message):
    (records / file).write_text(text)
    with pytest.raises(QalibError, match=message):
        readme_table(records)


def test_the_readme_is_brought_up_to_date(records, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Kit\n<!-- results:begin --> old <!-- results:end -->\nEnd é\n")
    text = updated_readme(records, path)
    table = readme_table(records)
    assert text == f"# Kit\n<!-- results:begin -->\n\n{table}\n\n<!-- results:end -->\nEnd é\n"
    path.write_text("# Kit\n<!-- results:end -->\n<!-- results:begin -->\n")
    with pytest.raises(QalibError, match=r"README\.md: has no lines"):
        updated_readme(records, path)
