"""Paper and here: the verdicts, the table, and the README's results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.study.claims import (
    DIFFERS,
    MATCHES,
    NOT_RUN,
    SAME_DIRECTION,
    Claim,
    Interval,
    compare,
    load_claims,
    verdict,
)
from qalib.study.readme import (
    check_readme,
    note_minutes,
    notebook_index,
    readme_table,
    recorded_runs,
    update_readme,
)
from qalib.study.run_cache import RunCache, stage

HEADER = "claim_id,paper,table,page,setting,metric,value,band,against,url\n"
LINES = """base,Doe 2020,Table 1,5,"Base, plain",F1,80.0,0.5,,https://example.org/doe
skim,Doe 2020,Table 1,5,Skimmed,F1,82.50,0.5,base,https://example.org/doe
gain,Doe 2020,Section 4,6,Skimmed minus base,F1,> 0,,,https://example.org/doe
fast,Doe 2020,Figure 2,7,Skimmed over base,time,< 1,,,https://example.org/doe
"""


@pytest.fixture
def claims(tmp_path: Path) -> dict[str, Claim]:
    (tmp_path / "doe.csv").write_text(HEADER + LINES)
    return load_claims(tmp_path)


def test_claims_are_read_with_what_the_paper_prints(claims):
    assert claims["skim"] == Claim(
        "skim",
        "Doe 2020",
        "Table 1, p. 5",
        "Skimmed",
        "F1",
        82.5,
        "",
        2,
        0.5,
        "base",
        "https://example.org/doe",
    )
    assert claims["base"].setting == "Base, plain"
    assert (claims["gain"].bound, claims["gain"].value) == (">", 0.0)
    assert (claims["fast"].bound, claims["fast"].value) == ("<", 1.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,b,c,1,e,F1,80.0,,,u", "line 2: a number needs a band"),
        ("a,b,c,1,e,F1,> 0,0.5,,u", "line 2: .* a bound .* has none"),
        ("a,b,c,1,e,F1,high,0.5,,u", "line 2: value and band must be numbers"),
        ("a,b,c,1,e,F1,nan,0.5,,u", "line 2: .*finite"),
        ("a,b,c,1,e,F1,80,-1,,u", "line 2: .*not below 0"),
        ("a,b,c,,e,F1,80,1,,u", "line 2: page is empty"),
        ("a,b,c,1,e,F1,80,1,,", "line 2: url is empty"),
        ("a,b,c,1,e,F1,80,1", "line 2: needs 10 fields"),
        ("a,b,c,1,e,F1,80,1,,u,more", "line 2: needs 10 fields"),
        ("a,b,c,1,e,F1,80,1,zz,u", "a is against 'zz'"),
        ("a,b,c,1,e,F1,80,1,,u\na,b,c,1,e,F1,80,1,,u", "line 3: the claim_id 'a' is there already"),
    ],
)
def test_a_mistake_in_a_claim_is_named_with_file_and_line(tmp_path, line, message):
    (tmp_path / "doe.csv").write_text(HEADER + line + "\n")
    with pytest.raises(QalibError, match=message):
        load_claims(tmp_path)


def test_the_columns_are_fixed(tmp_path):
    (tmp_path / "doe.csv").write_text("id,value\na,1\n")
    with pytest.raises(QalibError, match=r"doe\.csv: the first line must be claim_id,paper"):
        load_claims(tmp_path)


@pytest.mark.parametrize(
    ("claim_id", "here", "other_here", "expected"),
    [
        ("skim", None, [80.0], NOT_RUN),
        ("skim", [82.0], None, MATCHES),  # the edge of the band belongs to it
        ("skim", [83.0, 82.0, 84.0], None, MATCHES),
        ("skim", [81.9], None, DIFFERS),
        ("skim", [61.0, 63.0], [60.0, 58.0], SAME_DIRECTION),
        ("skim", [61.0, 63.0], [62.5], DIFFERS),
        ("skim", [61.0], [61.0], DIFFERS),
        ("skim", Interval(82.4, 81, 84), None, MATCHES),
        ("gain", Interval(0.8, 0.2, 1.4), None, MATCHES),
        ("gain", Interval(0.8, -0.2, 1.8), None, SAME_DIRECTION),
        ("gain", Interval(-0.1, -0.9, 0.7), None, DIFFERS),
        ("gain", [0.1, 0.2, 0.9], None, MATCHES),
        ("gain", [0.5, -0.1], None, SAME_DIRECTION),
        ("gain", [0.5], None, SAME_DIRECTION),  # one seed cannot settle it
        ("gain", [0.0], None, DIFFERS),
        ("fast", [0.5, 0.6], None, MATCHES),
        ("fast", Interval(0.9, 0.7, 1.1), None, SAME_DIRECTION),
        ("fast", [1.5], None, DIFFERS),
    ],
)
def test_verdicts(claims, claim_id, here, other_here, expected):
    assert verdict(claims[claim_id], here, claims["base"], other_here) == expected


@settings(deadline=None)
@given(
    value=st.integers(0, 1000),
    band=st.integers(0, 50),
    off=st.integers(-100, 100),
)
def test_a_number_matches_exactly_within_its_band(value, band, off):
    claim = Claim("a", "p", "t", "s", "F1", value / 10, "", 1, band / 10, "", "u")
    found = verdict(claim, [(value + off) / 10])
    assert found == (MATCHES if abs(off) <= band else DIFFERS)
    bound = replace(claim, bound=">", band=0.0)
    assert verdict(bound, [(value + off) / 10]) == (SAME_DIRECTION if off > 0 else DIFFERS)


def test_a_comparison_leaves_nothing_blank(claims):
    measured = {"base": [60.0, 61.0, 62.0], "skim": [64.25], "gain": None, "fast": []}
    table = compare(measured, "laptop", {"base": "6 layers"}, claims)
    source = "([Doe 2020, Table 1, p. 5](https://example.org/doe))"
    rows = [tuple(row.values()) for row in table.frame().to_dict("records")]
    assert rows[0] == (
        f"Base, plain, F1 {source}",
        "80.0",
        "61.0 ± 1.0 (n=3)",
        "-19.0",
        DIFFERS,
        "6 layers",
    )
    assert rows[1][1:] == ("82.50", "64.25 (n=1)", "-18.2", SAME_DIRECTION, "as in the paper")
    assert rows[2][1:5] == ("> 0", "-", "-", NOT_RUN)
    assert rows[3][1:5] == ("< 1", "-", "-", NOT_RUN)
    text = table.markdown()
    assert text == str(table) == repr(table) == table._repr_markdown_()
    lines = text.splitlines()
    assert lines[0].startswith("| row ")
    assert len(lines) == 6
    assert all(cell.strip() for line in lines for cell in line.strip("|").split("|"))


def test_an_interval_is_shown_with_its_ends(claims):
    row = compare({"gain": Interval(0.81, 0.2, 1.42)}, "study", "small", claims).rows[0]
    assert (row["here"], row["difference"], row["verdict"]) == ("0.8 [0.2, 1.4]", "+0.8", MATCHES)


def test_profile_ci_gives_no_verdicts(claims):
    table = compare({"base": [80.0]}, "ci", "", claims)
    assert table.rows[0]["verdict"] == NOT_RUN
    assert table.rows[0]["here"] == "80.0 (n=1)"
    assert table.markdown().startswith("Profile ci: ")


def test_mistakes_in_what_was_measured(claims):
    with pytest.raises(QalibError, match="'skimm'; did you mean 'skim'"):
        compare({"skimm": [1.0]}, "study", "", claims)
    with pytest.raises(QalibError, match=r"base: .*not finite"):
        compare({"base": [1.0, float("nan")]}, "study", "", claims)


def test_the_kits_own_claims_can_be_read():
    claims = load_claims()
    assert all(claim.url.startswith("https://") for claim in claims.values())


# --- the README --------------------------------------------------------------------------------

TABLE = """
[columns]
EM = "metrics.exact_match"
F1 = "metrics.parts.f1"
questions = "config.data.questions"
[[row]]
label = "Encoder"
stage = "score"
where = { model = { kind = "encoder" } }
[[row]]
label = "Bytes | words"
stage = "score"
where = { model = { kind = "bytes" } }
"""


def record(cache: RunCache, name: str, config: dict, metrics: dict, **inputs):
    """A recorded run of a toy stage."""

    @stage(name)
    def toy(config, work, **inputs):
        return metrics

    run = cache.run(toy, config, inputs)
    cache.publish(run, [])
    return run


@pytest.fixture
def records(tmp_path: Path) -> Path:
    cache = RunCache(tmp_path / "runs", tmp_path / "records")
    for seed, f1 in enumerate([76.0, 77.0, 78.0]):
        model = {"kind": "encoder", "layers": 6}
        config = {"seed": seed, "model": model, "data": {"questions": 100}}
        metrics = {"exact_match": 60 + seed, "parts": {"f1": f1}}
        record(cache, "score", config, metrics)
    record(cache, "train", {"model": {"kind": "bytes"}}, {})
    (cache.records / "table.toml").write_text(TABLE)
    return cache.records


def test_the_results_table_comes_from_the_records(records):
    assert len(recorded_runs(records)) == 4
    lines = readme_table(records).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["", "EM", "F1", "questions", "runs"]
    assert cells[2] == ["Encoder", "61.0 ± 1.0", "77.0 ± 1.0", "100", "3"]
    assert cells[3] == [r"Bytes \| words", "-", "-", "-", "0"]


def test_a_row_shows_what_its_reader_was_trained_on_and_what_a_paper_says(records):
    cache = RunCache(records.parent / "runs", records)
    trained = record(cache, "train", {"seed": 1}, {"questions": 2500})
    record(cache, "score", {"model": {"kind": "other"}}, {"f1": 50.0}, weights=trained)
    columns = '[columns]\nasked = "trained.metrics.questions"\n"EM, paper" = "paper"\n'
    row = "[[row]]\nlabel = 'x'\nstage = 'score'\nwhere = { model = { kind = '%s' } }\n"
    table = columns + row % "other" + "paper = 'byte-plain-em'\n" + row % "encoder"
    named = f"trained = '{trained.short}'\n"
    for more, asked in (("", "-"), (named, "2,500")):
        (records / "table.toml").write_text(table + more)
        lines = readme_table(records).splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        assert [row[1:3] for row in cells[2:]] == [["2,500", "30"], [asked, "-"]]
    (records / "table.toml").write_text(table + "paper = 'nobody-said'\n")
    with pytest.raises(QalibError, match="no paper claims 'nobody-said'"):
        readme_table(records)


def test_a_damaged_record_or_table_is_named(records):
    path = records / "train.jsonl"
    text = path.read_text()
    path.write_text("{")
    with pytest.raises(QalibError, match=r"train\.jsonl, line 1: is damaged"):
        readme_table(records)
    path.write_text(text)
    (records / "table.toml").write_text("[[row]]\nlabel = 'x'")
    with pytest.raises(QalibError, match=r"table\.toml: is no table"):
        readme_table(records)


def test_the_readme_is_brought_up_to_date_and_stays_so(records, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Kit\n<!-- results:begin --> old <!-- results:end -->\nEnd é\n")
    [problem] = check_readme(records, path)
    assert "README.md: its results are not those recorded" in problem
    assert update_readme(records, path)
    assert check_readme(records, path) == []
    assert not update_readme(records, path)
    text = path.read_text()
    assert text.startswith("# Kit\n<!-- results:begin -->\n\n| ")
    assert readme_table(records) in text
    assert text.endswith("|\n\n<!-- results:end -->\nEnd é\n")
    (records / "score.jsonl").unlink()
    assert len(check_readme(records, path)) == 1


def test_the_index_gives_what_was_measured(tmp_path):
    records, figures, notebooks = (tmp_path / n for n in ("records", "figures", "notebooks"))
    for folder in (records, figures / "laptop", notebooks):
        folder.mkdir(parents=True)
    cells = [{"cell_type": "markdown", "source": ["# Why?\n", "more"]}]
    (notebooks / "07_why.ipynb").write_text(json.dumps({"cells": cells}))
    stamp = {"runs": [], "seconds": 200.0}
    (figures / "laptop" / "07_why.stamp.json").write_text(json.dumps(stamp))
    note_minutes(records, figures)
    lost = {"runs": ["score-0123456789ab"], "seconds": 9.0}
    (figures / "study").mkdir()
    (figures / "study" / "07_why.stamp.json").write_text(json.dumps(lost))
    note_minutes(records, figures)
    [line] = notebook_index(records, notebooks).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["[07_why](notebooks/07_why.ipynb)", "Why?", "3", "-"]


def test_a_readme_without_markers_is_named(records, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Kit\n<!-- results:end -->\n<!-- results:begin -->\n")
    with pytest.raises(QalibError, match=r"README\.md: has no lines"):
        check_readme(records, path)
    (records / "table.toml").unlink()
    assert check_readme(records, path) == []  # a kit without a table
