"""Splits: patients on one side, classes in every part, labels nested."""
from collections import Counter

import numpy as np
import pytest

from ssl_expr.data import load, toy
from ssl_expr.splits import drop_small_classes, fitting_rows, label_fraction, make_split

SEEDS = range(25)


def made_up(seed, n=240):
    "Patients of one to four samples, three uneven classes (a patient may have two), a third of the rows unlabelled."
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n]
    labels = rng.choice(np.array(["A", "B", "C"], dtype=object), n, p=[0.5, 0.3, 0.2])
    labels[rng.random(n) < 0.3] = None
    order = rng.permutation(n)
    return labels[order], np.array([f"p{i}" for i in patients])[order]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("settings", [{}, {"labelled_share": 0.5}, {"disjoint_pretraining": True}, {"test_share": 0.3}])
def test_a_held_out_patient_is_nowhere_else_not_even_unlabelled(seed, settings):
    labels, patients = made_up(seed)
    split = make_split(labels, patients, split=seed, **settings)
    test, validation = set(patients[split.test]), set(patients[split.validation])
    learned = set(patients[split.train]) | set(patients[split.pretrain])
    assert not test & validation and not (test | validation) & learned
    left_out = np.isin(patients, list(test | validation))
    assert any(label is None for label in labels[left_out])     # the property was put to the test
    assert not left_out[fitting_rows(split)].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_may_pretrain_are_closed_further_and_never_opened(seed):
    labels, patients = made_up(seed)
    may = np.random.default_rng(seed).random(len(labels)) < 0.5
    split, without = (make_split(labels, patients, split=seed, may_pretrain=rows) for rows in (may, None))
    assert set(split.pretrain) == set(without.pretrain) & set(np.flatnonzero(may)) < set(without.pretrain)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(split, part), getattr(without, part))


@pytest.mark.parametrize("seed", SEEDS)
def test_patients_that_may_not_be_tested_are_learned_from_and_the_test_keeps_its_size(seed):
    labels, patients = made_up(seed)
    spent = np.random.default_rng(seed).random(len(labels)) < 0.15
    usual, fresh = (make_split(labels, patients, split=seed, may_test=may) for may in (None, ~spent))
    assert not set(patients[fresh.test]) & set(patients[spent])
    assert set(patients[usual.test]) & set(patients[spent]), "the property was put to the test"
    assert set(patients[fresh.train]) & set(patients[spent])
    assert 0.6 < len(fresh.test)/len(usual.test) < 1.6
    held_out = set(patients[fresh.test]) | set(patients[fresh.validation])
    assert not held_out & (set(patients[fresh.train]) | set(patients[fresh.pretrain]))


@pytest.mark.parametrize("seed", SEEDS)
def test_where_everybody_may_be_tested_nothing_changes(seed):
    labels, patients = made_up(seed)
    usual, same = (make_split(labels, patients, split=seed, may_test=may) for may in (None, np.ones(len(labels), bool)))
    for part, rows in vars(usual).items(): np.testing.assert_array_equal(rows, vars(same)[part])


@pytest.mark.parametrize("seed", SEEDS)
def test_by_sample_the_patients_do_straddle(seed):
    labels, patients = made_up(seed)
    split = make_split(labels, patients, "paper", seed)
    assert set(patients[split.test]) & set(patients[split.pretrain])
    parts = np.concatenate([split.pretrain, split.validation, split.test])
    np.testing.assert_array_equal(np.sort(parts), np.arange(len(labels)))     # each row in one part
    np.testing.assert_array_equal(fitting_rows(split, "paper"), np.arange(len(labels)))


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_only_labelled_rows_are_trained_and_scored_and_all_other_rows_pretrain(protocol):
    data = toy(300, unlabelled=0.4)                              # one sample per patient
    labels, patients = data.obs["label"].to_numpy(), data.obs["patient"].to_numpy()
    split = make_split(labels, patients, protocol)
    labelled = {i for i, label in enumerate(labels) if isinstance(label, str)}
    assert set(split.train) | set(split.validation) | set(split.test) == labelled
    assert set(split.pretrain) == set(range(300)) - set(split.validation) - set(split.test)
    disjoint = make_split(labels, patients, protocol, disjoint_pretraining=True)
    assert set(disjoint.pretrain) == set(split.pretrain) - set(split.train)
    np.testing.assert_array_equal(disjoint.test, split.test)


def test_shares_and_classes_of_the_parts_are_those_asked_for():
    labels = np.array(["A"]*200 + ["B"]*100)
    split = make_split(labels, np.arange(300), test_share=0.2, validation_share=0.16)
    for rows, share in ((split.test, 0.2), (split.validation, 0.16), (split.train, 0.64)):
        assert Counter(labels[rows]) == pytest.approx({"A": 200*share, "B": 100*share}, abs=1.01)


def test_the_same_split_number_gives_the_same_rows_and_another_gives_others():
    labels, patients = made_up(0)
    first, again, other = (make_split(labels, patients, split=number) for number in (3, 3, 4))
    np.testing.assert_array_equal(first.test, again.test)
    np.testing.assert_array_equal(first.train, again.train)
    assert set(first.test) != set(other.test)


def test_hidden_labels_leave_the_test_alone_and_stay_in_pretraining():
    labels = np.array(["A"]*150 + ["B"]*150)
    full, few = (make_split(labels, np.arange(300), labelled_share=share) for share in (1.0, 0.2))
    np.testing.assert_array_equal(full.test, few.test)
    assert len(few.train) + len(few.validation) == 48
    assert len(few.pretrain) == 300 - len(few.test) - len(few.validation)


def test_a_split_does_not_depend_on_how_missing_labels_or_patients_are_written():
    labels, patients = made_up(1)
    expected = make_split(labels, patients)
    nan = np.array([np.nan if label is None else label for label in labels], dtype=object)
    renamed = np.unique(patients, return_inverse=True)[1]
    np.testing.assert_array_equal(make_split(nan, list(patients)).test, expected.test)
    assert len(make_split(nan, renamed).test) == pytest.approx(len(expected.test), abs=4)


@pytest.mark.parametrize("seed", range(10))
def test_label_fractions_are_nested_stratified_and_rounded_up(seed):
    labels = np.array(["A"]*100 + ["B"]*30 + ["C"]*7)
    rows = np.random.default_rng(seed).permutation(1000)[:137]
    before = set()
    for percent in range(1, 101):
        kept = label_fraction(labels, rows, percent/100, seed)
        classes = Counter(labels[np.isin(rows, kept)])
        assert classes == {name: -(-percent*n//100) for name, n in {"A": 100, "B": 30, "C": 7}.items()}
        assert before <= set(kept)
        before = set(kept)
    assert before == set(rows)


def test_another_seed_keeps_other_rows():
    labels, rows = np.array(["A", "B"]*50), np.arange(100)
    assert set(label_fraction(labels, rows, 0.1, 0)) != set(label_fraction(labels, rows, 0.1, 1))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"): label_fraction(["A", "B"], [0, 1], fraction)


def test_a_fraction_of_unlabelled_rows_is_refused():
    with pytest.raises(ValueError, match="row 7 has no label"): label_fraction(["A", None], [4, 7], 0.5)
    with pytest.raises(ValueError, match="2 rows need as many labels, got 1"): label_fraction(["A"], [4, 7], 0.5)


def test_small_classes_lose_their_labels_and_large_ones_keep_every_one():
    subtype = load("coadread").obs["subtype"]
    kept = drop_small_classes(subtype)
    assert Counter(kept) == {"CIN": 328, None: 143, "MSI": 63, "GS": 58}
    assert Counter(drop_small_classes(subtype, 10))["HM-SNV"] == 10
    with pytest.raises(ValueError, match="class 'HM-SNV' has 10"): make_split(subtype, np.arange(592))
    make_split(kept, np.arange(592))


TWENTY = ["A"]*20 + ["B"]*20
BAD = {
    "one class": (dict(labels=["A"]*40), "at least two classes of labels, got 1"),
    "no labels": (dict(labels=[None]*40), "at least two classes of labels, got 0"),
    "a class too small": (dict(labels=["A"]*30 + ["B"]*10), "class 'B' has 10 labelled samples, fewer than 15"),
    "a class of two patients": (dict(labels=TWENTY, patients=[*range(20), *[50, 51]*10]), "of 2 patients only"),
    "an unknown protocol": (dict(labels=TWENTY, protocol="strickt"), "known are strict, paper"),
    "too few patients": (dict(labels=TWENTY, patients=range(39)), "40 labels need as many patients, got 39"),
    "a patient missing": (dict(labels=TWENTY, patients=[*range(39), None]), "row 39 has no patient"),
    "no test": (dict(labels=TWENTY, test_share=0), "test_share must be in (0, 0.5], got 0"),
    "all test": (dict(labels=TWENTY, test_share=0.9), "test_share must be in (0, 0.5], got 0.9"),
    "no training": (dict(labels=TWENTY, test_share=0.5, validation_share=0.5), "leave nothing to train on"),
    "no labels kept": (dict(labels=TWENTY, labelled_share=0.0), "label fraction"),
    "too few labels kept": (dict(labels=TWENTY, labelled_share=0.05), "keep more labels"),
    "nobody to pretrain on": (dict(labels=TWENTY, may_pretrain=np.arange(40) < 20, disjoint_pretraining=True),
                              "none of the 20 rows that may pretrain"),
    "a class with one label kept": (dict(labels=["A"]*200 + ["B"]*15, patients=range(215), labelled_share=0.08),
                                    "class 'B' has no sample in the"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_a_split_that_cannot_be_made_is_answered_with_one_sentence(arguments, message):
    with pytest.raises(ValueError) as refusal: make_split(**({"patients": range(40)} | arguments))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
