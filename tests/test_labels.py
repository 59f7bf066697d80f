"""A label means one class, the right one, or it is refused with what there is."""

import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.data.labels import (
    UNCLEAR,
    erased_earlier,
    erased_labels,
    match_labels,
    model_label_names,
    resolve_labels,
)
from hf_esc.errors import LabelError

CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Ankle boot"]
# ImageNet's style, with two classes called crane.
ANIMALS = [
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "crane",
    "crane, wading bird",
    "great white shark, white shark",
]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("Trouser", [1]),
        ("trouser", [1]),
        (" TROUSER ", [1]),
        ("ankle boot", [3]),
        ("ankle_boot", [3]),
        ("t shirt/top", [0]),
        ("1", [1]),
        (1, [1]),
        (0, [0]),
        ("Trouser,Pullover", [1, 2]),
        ("Pullover, Trouser", [1, 2]),
        ("Trouser,1", [1]),
        ("3,Trouser,", [1, 3]),
        (["Pullover", 0, "3"], [0, 2, 3]),
        (["Trouser,Pullover", "Trouser"], [1, 2]),
    ],
)
def test_a_name_or_a_number_or_several(requested, expected):
    assert resolve_labels(requested, CLOTHES, 4) == expected


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("tench", [0]),
        ("Tinca tinca", [0]),
        ("tench, Tinca tinca", [0]),
        ("tench,Tinca tinca", [0]),
        ("tench, goldfish", [0, 1]),
        ("white shark", [4]),
        ("crane", [2]),  # the whole name of one class before a synonym of another
        ("wading bird", [3]),
    ],
)
def test_one_synonym_is_enough(requested, expected):
    assert resolve_labels(requested, ANIMALS, 5) == expected


@given(st.permutations(ANIMALS), st.integers(0, 4))
def test_every_whole_name_means_its_own_class_in_any_order(names, index):
    assert resolve_labels(names[index], names, 5) == [index]


@pytest.mark.parametrize("requested", [[], "", ",", " , ", ()])
def test_no_label_is_an_error(requested):
    with pytest.raises(LabelError, match=r"No label to forget|There is no label ''"):
        resolve_labels(requested, CLOTHES, 4)


def test_an_unknown_label_lists_the_near_ones_and_else_all():
    with pytest.raises(LabelError, match=r"no label 'Trousers'. Near it: 'Trouser'"):
        resolve_labels("Trousers", CLOTHES, 4)
    with pytest.raises(LabelError, match=r"no label 'xyzzy'. The labels are 'T-shirt/top', 'Trouser', 'Pullover'"):
        resolve_labels("xyzzy", CLOTHES, 4)
    with pytest.raises(LabelError, match="'n19', … 80 more"):  # a thousand names are no help
        resolve_labels("?", [f"n{i}" for i in range(100)], 100)


@pytest.mark.parametrize(("written", "meant"), [("mug", "coffee mug"), ("boot", "Ankle boot"), ("shark", ANIMALS[4])])
def test_a_word_of_a_name_is_near_it(written, meant):
    with pytest.raises(LabelError, match=f"no label '{written}'. Near it: .*'{meant}'"):
        resolve_labels(written, [*CLOTHES, *ANIMALS, "coffee mug"], 10)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_same_letters_are_the_same_name_however_their_accents_are_written(form):
    names = ["Café", "Müsli", "Ångström"]
    written = [unicodedata.normalize(form, name) for name in names]
    other = [unicodedata.normalize("NFD" if form == "NFC" else "NFC", name) for name in reversed(names)]
    assert match_labels(written, other, 3, 3) == [2, 1, 0]
    assert [resolve_labels(name.upper(), written, 3) for name in names] == [[0], [1], [2]]


def test_one_unknown_label_among_known_ones_is_an_error():
    with pytest.raises(LabelError, match="no label 'Skirt'"):
        resolve_labels("Trouser,Skirt", CLOTHES, 4)


@pytest.mark.parametrize("requested", [4, -1, "4", "-1", "+7"])
def test_a_number_beyond_the_classes_is_an_error(requested):
    with pytest.raises(LabelError, match=rf"no class {int(requested)}: the 4 classes are 'T-shirt/top'"):
        resolve_labels(requested, CLOTHES, 4)
    with pytest.raises(LabelError, match=rf"no class {int(requested)}: the 4 classes are 0 to 3"):
        resolve_labels(requested, None, 4)


def test_a_name_needs_names():
    assert resolve_labels("2,0", None, 4) == [0, 2]
    with pytest.raises(LabelError, match=r"'Trouser' is a name, and there are no label names .* from 0 to 3"):
        resolve_labels("Trouser", None, 4)


def test_a_label_that_two_classes_share_is_an_error():
    with pytest.raises(LabelError, match=r"'crane' could be any of the classes \[0, 1\]"):
        resolve_labels("crane", ["crane, machine", "crane, bird"], 2)
    with pytest.raises(LabelError, match=r"'a b' could be any of the classes \[0, 1\]"):
        resolve_labels("a b", ["a_b", "A-b"], 2)


def test_a_name_that_is_the_number_of_another_class_is_an_error_and_an_int_is_a_number():
    assert resolve_labels(["1", 0], ["9", "1", "5"], 3) == [0, 1]
    with pytest.raises(LabelError, match=r"'1' is the name of class 0 and the number of class 1 .'0'."):
        resolve_labels("1", ["1", "0"], 2)
    assert resolve_labels(1, ["1", "0"], 2) == [1]


# A data set's classes in a model.


@given(st.permutations(range(5)))
def test_permuted_names_are_matched_by_name(order):
    assert match_labels([ANIMALS[i] for i in order], ANIMALS, 5, 5) == list(order)


def test_a_data_set_may_hold_a_part_of_the_models_classes():
    assert match_labels(["Ankle boot", "Trouser"], CLOTHES, 2, 4) == [3, 1]
    assert match_labels(["Tinca tinca", "goldfish"], ANIMALS, 2, 5) == [0, 1]


def test_writing_that_differs_is_the_same_name():
    assert match_labels(["ankle_boot", "PULLOVER", "trouser", "T-shirt/top"], CLOTHES, 4, 4) == [3, 2, 1, 0]


def test_equal_lists_are_matched_one_to_one_even_with_a_name_twice():
    assert match_labels(["crane", "tench", "crane"], ["crane", "tench", "crane"], 3, 3) == [0, 1, 2]


@pytest.mark.parametrize(("data", "model"), [(None, CLOTHES), (CLOTHES, None), (None, None)])
def test_without_names_on_one_side_numbers_are_matched_where_the_counts_agree(data, model):
    assert match_labels(data, model, 4, 4) == [0, 1, 2, 3]


def test_a_name_that_two_classes_of_the_model_have_goes_by_its_place_where_all_others_stand_in_theirs():
    model = ["tench", "crane", "jay", "crane"]
    for data in (["tench", "crane", "jay", "crane2"], ["tench", "machine", "jay", "crane"], model):
        assert match_labels(data, model, 4, 4) == [0, 1, 2, 3]
    for data in (["jay", "crane", "tench", "crane2"], ["tench", "crane", "jay"], ["tench", "crane", "jay", "tench "]):
        with pytest.raises(LabelError, match=r"'crane' could be any of|same class"):
            match_labels(data, model, len(data), 4)
    with pytest.raises(LabelError, match="could be any of"):
        match_labels(["crane", "crane2"], ["crane", "crane"], 2, 2)  # nothing tells the order
    assert match_labels(["crane", "jay", "tench"], model, 3, 4, unclear=True) == [UNCLEAR, 2, 0]


def test_names_that_are_numbers_in_another_order_are_no_numbers():
    numbers = [str(number) for number in range(12)]
    for data, model in ((sorted(numbers), None), (None, sorted(numbers))):
        with pytest.raises(LabelError, match="numbers in another order: class 2 is called '10'"):
            match_labels(data, model, 12, 12)
    assert match_labels(None, numbers, 3, 12) == [0, 1, 2]  # what they are called is their number


def test_counts_that_differ_are_an_error_that_shows_both_sides():
    with pytest.raises(LabelError, match=r"data set has 3 classes .no names. and the model 4 .'T-shirt/top'"):
        match_labels(None, CLOTHES, 3, 4)
    with pytest.raises(LabelError, match=r"data set has 4 classes .'T-shirt/top'.* and the model 10 .no names."):
        match_labels(CLOTHES, None, 4, 10)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (["Trouser", "Skirt"], "no label 'Skirt'"),
        ([*CLOTHES, "Hat"], "no label 'Hat'"),
        (["Trouser", "trouser"], "same class of the model"),
    ],
)
def test_names_that_are_not_the_models_are_an_error_that_shows_both_sides(data, why):
    with pytest.raises(LabelError, match=f"{why}.*Data set: '{data[0]}', .*Model: 'T-shirt/top', .*Rename"):
        match_labels(data, CLOTHES, len(data), 4)


def test_a_name_that_could_be_two_of_the_models_is_an_error():
    with pytest.raises(LabelError, match=r"any of the classes \[0, 1\]"):
        match_labels(["crane"], ["crane, machine", "crane, bird"], 1, 2)


def test_names_of_a_model_come_in_the_order_of_its_logits_and_placeholders_are_none():
    assert model_label_names(SimpleNamespace(id2label={1: "dog", 0: "cat", 3: "fish", 2: "bird"})) == [
        "cat",
        "dog",
        "bird",
        "fish",
    ]
    assert model_label_names(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None
    assert model_label_names(SimpleNamespace(id2label={0: "LABEL_0", 1: "cat"})) == ["LABEL_0", "cat"]
    assert model_label_names(SimpleNamespace(id2label=None)) is None


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3), st.sets(st.integers(0, 9)))
def test_what_was_erased_earlier_is_in_the_ledger_and_not_asked_for(records, asked):
    config = SimpleNamespace(erasures=[{"label_ids": record or None} for record in records])
    earlier = erased_earlier(config, asked)
    assert earlier == sorted(set(earlier))
    assert not set(earlier) & asked
    assert set(earlier) | (asked & erased_labels(config)) == {label for record in records for label in record}
    assert erased_earlier(SimpleNamespace(), asked) == []
