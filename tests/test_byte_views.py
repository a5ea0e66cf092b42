"""What a reader of bytes sees: every table against counting by hand, reach against arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv1d

from qalib.data.squad import Answer, Example, make_dataset
from qalib.readers.byte_reader import ByteReaderConfig, TextConvolution
from qalib.study import byte_views, plots_bytes

TEXTS = ["Mira Kovač paid 5 £ – no more.", "plain ASCII", "橋は1931年", "ÿ and ź", "x\ud83dy"]
texts = st.lists(st.text(st.characters(exclude_categories=()), max_size=30), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_views.word_piece_tokenizer()


def test_first_layer_costs_are_those_of_its_tensors():
    rows, length, width, kernel = 3, 20, 5, 7
    one_hot = torch.empty(rows, 256, length, device="meta")
    filters = torch.empty(width, 256, kernel, device="meta")
    made = conv1d(one_hot, filters, padding="same")
    cost = 1e6 * byte_views.first_layer_cost(rows, length, width, kernel)
    whole, looked_up = cost.loc["one-hot convolution"], cost.loc["look-up"]
    assert whole["input, MB"] == one_hot.nbytes
    products = made.numel() * filters[0].numel()  # every output is a sum over a whole filter
    assert whole["multiplications, millions"] == pytest.approx(products)
    assert whole["additions, millions"] == pytest.approx(products)
    assert looked_up["input, MB"] == torch.empty(rows, length, dtype=torch.uint8).nbytes
    assert looked_up["multiplications, millions"] == 0
    layer = TextConvolution(width, kernel)
    summed = layer(torch.zeros(rows, length).long(), torch.ones(rows, length).bool())
    assert looked_up["additions, millions"] == pytest.approx(summed.numel() * kernel)


@given(texts)
def test_symbols_are_counted_one_by_one(some):
    counts = [0] * 256
    for character in "".join(some):
        counts[min(255, ord(character))] += 1
    assert byte_views.symbol_counts(some).tolist() == counts


def test_passages_are_different_and_in_order():
    asked = [Example(f"q{n}", "?", text) for n, text in enumerate("babcac")]
    assert byte_views.passages(make_dataset("few", asked)) == ["b", "a", "c"]


def test_characters_have_their_numbers_bytes_and_pieces(tokenizer):
    table = byte_views.character_table("Café – ź", tokenizer)
    assert table["character"].tolist() == list("Café – ź")
    assert table["the page's number"].tolist() == [67, 97, 102, 233, 32, 255, 32, 255]
    assert table["code point"].iloc[5] == "U+2013"
    assert table["UTF-8 bytes"].tolist()[3:6] == ["195 169", "32", "226 128 147"]
    assert table["word piece"].tolist() == ["cafe"] * 4 + ["", "–", "", "z"]


def test_samples_are_counted_in_every_unit(tokenizer):
    table = byte_views.unit_counts({**byte_views.SAMPLES, "rare": "a \U0001f98e b"}, tokenizer)
    for name, row in table.iterrows():
        assert row["code points"] == len(row["text"])
        assert row["UTF-8 bytes"] == len(row["text"].encode())
        assert row["look alike"] == sum(ord(c) >= 255 for c in row["text"])
        pieces = tokenizer.tokenize(row["text"])
        assert (row["word pieces"], row["unknown"]) == (len(pieces), pieces.count("[UNK]")), name
    assert table.loc["English", "look alike"] == 0
    assert table.loc["rare", "unknown"] == 1


def test_lengths_have_a_row_a_text_and_unit(tokenizer):
    table = byte_views.sequence_lengths(TEXTS, tokenizer)
    by_unit = {unit: rows["length"].tolist() for unit, rows in table.groupby("unit")}
    assert tuple(table["unit"].unique()) == byte_views.UNITS
    assert by_unit["code points"] == [len(text) for text in TEXTS]
    assert by_unit["UTF-8 bytes"] == [len(text.encode("utf-8", "surrogatepass")) for text in TEXTS]
    said = [text.replace("\ud83d", "\ufffd") for text in TEXTS]
    assert by_unit["word pieces"] == [len(tokenizer.tokenize(text)) for text in said]


def test_lost_characters_are_listed_by_the_passages_they_stand_in():
    table = byte_views.lost_table(["č–č", "–", "é", "…–ÿ"])
    assert table.index.tolist() == ["–", "č", "ÿ", "…"]
    assert table["passages"].tolist() == [3, 1, 1, 1]
    assert table["times"].tolist() == [3, 2, 1, 1]
    assert table.loc["č", "name"] == "latin small letter c with caron"
    assert byte_views.lost_table(["plain"]).empty


def test_only_bytes_survive_everything(tokenizer):
    table = byte_views.survival([*TEXTS, "one of 5", "Caf\u00e9"], tokenizer)
    assert table.loc["UTF-8 bytes"].tolist() == [100, 100]
    # all but the texts with characters from U+00FF on; the é of the last one is kept
    assert table.loc["code points"].tolist() == pytest.approx([300 / 7, 300 / 7])
    # small letters only; then also "plain ASCII"; accents and unknown characters never
    assert table.loc["word pieces", "exactly"] == pytest.approx(100 / 7)
    assert table.loc["word pieces", "but for case and spaces"] > 200 / 7 - 1


def test_an_excerpt_shows_the_richest_text():
    long = "x" * 50 + "čć" + "y" * 50
    assert byte_views.excerpt(["–" * 9, long], around=4) == "xxxxčćyy"
    assert byte_views.excerpt(["plain text"], around=3) == "plain "
    assert byte_views.excerpt(["č"], around=3) == "č"


@pytest.mark.parametrize(("layers", "kernel"), [(5, 11), (3, 5), (1, 7)])
def test_what_a_reader_sees_is_what_counting_gives(layers, kernel):
    config = ByteReaderConfig(layers=layers, kernel=kernel, width=24, norm=False)
    text = "abcdefghij klmno " * 10
    for part, depth in {"encoder": layers, "reader": 2 * layers}.items():
        field = byte_views.receptive_field(depth, kernel)
        seen = np.flatnonzero(byte_views.influence(config, text, part))
        middle = len(text) // 2
        assert seen.tolist() == list(range(middle - field // 2, middle + field // 2 + 1))


def test_the_page_has_another_receptive_field_than_its_layers():
    assert byte_views.receptive_field(5, 11) == 51
    assert byte_views.receptive_field(10, 11) == 101


def test_instance_norm_and_recurrence_see_the_whole_row():
    text = "abcdefghij klmno " * 10
    for config in (
        ByteReaderConfig(layers=2, kernel=5, width=24),
        ByteReaderConfig(encoder="lstm", mixer="lstm", width=24, norm=False),
    ):
        assert (byte_views.influence(config, text, "encoder") > 0).all()
    local = byte_views.influence(ByteReaderConfig(layers=2, kernel=5, norm=False), text, "encoder")
    assert (local > 0).sum() == 9


def test_influence_is_told_for_both_parts_with_and_without_norm():
    config = ByteReaderConfig(layers=2, kernel=3, width=16)
    table = byte_views.influence_table(config, length=60)
    seen = table[table["influence"] > 0].groupby(["norm", "part"]).size()
    assert seen.to_dict() == {
        (False, "encoder"): 5,
        (False, "reader"): 9,
        (True, "encoder"): 60,
        (True, "reader"): 60,
    }
    assert plots_bytes.reach(table, {"encoder": 5, "reader": 9}).axes[0].get_yscale() == "log"


@given(st.integers(0, 60), st.integers(1, 4), st.sampled_from([1, 3, 5]))
def test_valid_lengths_are_those_of_valid_convolutions(length, layers, kernel):
    found = byte_views.valid_lengths(length, layers, kernel)
    x = torch.zeros(1, 1, length)
    for expected in found:
        assert expected == x.shape[2]
        enough = x.shape[2] >= kernel
        x = conv1d(x, torch.zeros(1, 1, kernel)) if enough else torch.zeros(1, 1, 0)


def test_what_valid_convolutions_lose_is_counted_by_position():
    context = "".join(chr(97 + n % 26) for n in range(60))

    def asked(name: str, question: int, *starts: int) -> Example:
        answers = tuple(Answer(context[a : a + 3], a) for a in starts)
        return Example(name, "x" * question, context, answers)

    data = make_dataset(
        "few",
        [
            asked("short, at the start", 8, 0, 7),
            asked("just enough, first with a place", 9, 8),
            asked("last with a place", 20, 49),
            asked("one too late", 20, 50),
            asked("one of two is inside", 3, 0, 30),
        ],
    )
    # two layers of width 5 see 9 characters and leave 8 positions less; two stacks, 8 at each side
    table = byte_views.lost_to_valid(data, 2, 5)
    assert table["questions"].tolist() == [2, 2]
    assert table["percent"].tolist() == [40, 40]
    assert [name.split()[-2] for name in table.index[:1]] == ["9"]
    output = conv1d(torch.zeros(1, 1, 60), torch.zeros(1, 1, 9))
    again = conv1d(output, torch.zeros(1, 1, 9))
    assert output.shape[2] == 52  # encoder: 4 at each side
    assert again.shape[2] == 60 - 2 * 8  # and the mixer's 4


def test_figures_are_drawn_from_their_tables(tokenizer):
    from qalib.data.byte_features import byte_vector
    from qalib.readers.byte_reader import sinusoids

    counts = byte_views.symbol_counts(TEXTS)
    figures = [
        plots_bytes.one_hot_picture(byte_vector(TEXTS[0]).numpy(), counts, TEXTS[0]),
        plots_bytes.length_histogram(byte_views.sequence_lengths(TEXTS, tokenizer)),
        plots_bytes.waves(sinusoids(30, 4).numpy()),
    ]
    points = sorted(figures[0].axes[0].collections[0].get_offsets().tolist())
    assert points == [[place, min(255, ord(c))] for place, c in enumerate(TEXTS[0])]
    assert figures[2].axes[0].images[0].get_array().shape == (8, 30)
    for figure in figures:
        figure.canvas.draw()
