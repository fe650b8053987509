"""Claims and answers look up the right arm, part and share of the labels, with the right sign: tables made by hand."""
import re

import pandas as pd
import pytest

from ssl_expr.advice import by_step, change_of_gain, under_the_paper
from ssl_expr.answers import (
    another_protocol,
    at_another_rate,
    embedding_alone,
    linear_or_not,
    pretrain_or_not,
    which_method,
    with_some_labels,
)
from ssl_expr.claims import METRIC, claims, claims_table, examine
from ssl_expr.findings import beyond_the_label, elsewhere, tally_verdicts
from ssl_expr.lookup import (
    LENGTHS,
    METHODS,
    SHORTER,
    STEPS,
    TENFOLD,
    TRANSFERS,
    UNIT_SIZE,
    best_linear,
    gain,
    in_every_way,
    kept_epoch,
    versus,
)
from ssl_expr.verdicts import FAILS, HOLDS, OPEN, PAPER_GAINS, UNKNOWN, Interval, NotRun, read_tables, select, signed

CLAIMS = {claim.key: claim for claim in claims()}
GENES, PCA = "logistic-genes", "logistic-pca"
TIMES = dict(n_splits=3, n_repeats=3)


def arm_of(name): return name.replace("_", "-")


def gains(part="main", protocol="strict", reference="scratch", mode="unfrozen", upto=0.1, half=0.01, **values):
    "Rows of `gains`: arm = its gain, with an interval of 0.01 to both sides."
    return [dict(part=part, protocol=protocol, arm=arm_of(arm), reference=reference, metric=METRIC, upto=upto,
                 mode="baseline" if arm.startswith("logistic") else mode, gain=value, low=value - half,
                 high=value + half, **TIMES)
            for arm, value in values.items()]


def over_both(part="main", mode="unfrozen", genes=0.05, pca=0.03, protocol="strict", upto=0.1, **values):
    "The same against scratch and against both linear models, which gain `genes` and `pca` over scratch."
    everyone = values | (dict(logistic_genes=genes, logistic_pca=pca) if mode == "unfrozen" else {})
    if mode == "unfrozen": everyone.pop("scratch", None)   # the reference itself
    return [row for reference, level in (("scratch", 0), (GENES, genes), (PCA, pca))
            for row in gains(part, protocol, reference, mode, upto, **{
                arm: value - level for arm, value in everyone.items()
                if arm_of(arm) != reference or mode != "unfrozen"})]


def changes(part, against="honest", upto=0.1, mode="unfrozen", half=0.01, **values):
    "Rows of a table of changes: `scarf` is the change of a score, `scarf_gain` that of its gain over scratch."
    return [dict(part=part, against=against, mode=mode, metric=METRIC, upto=upto, difference=value,
                 low=value - half, high=value + half, paired=True, **TIMES,
                 arm=f"{arm.removesuffix('_gain')} − scratch" if arm.endswith("_gain") else arm_of(arm))
            for arm, value in values.items()]


def table(*rows): return pd.DataFrame([row for some in rows for row in some])


# ------------------------------------------------------------------------------------------ the two protocols

def test_gains_under_the_paper_s_protocol_never_mix_with_the_strict_ones(tmp_path):
    both = table(gains(scarf=0.1), gains(protocol="paper", scarf=0.7), gains(vime=0.2),
                 gains(protocol="paper", vime=0.8), gains("organs", byol=0.3), gains(TENFOLD, "paper", byol=0.9))
    both.to_csv(tmp_path/"gains.csv", index=False)
    tables = read_tables(tmp_path, ["gains"])
    assert {name: found["gain"].round(6).tolist() for name, found in tables.items()} == {
        "gains": [0.1, 0.2, 0.3], PAPER_GAINS: [0.7, 0.8, 0.9]}
    assert gain(tables, METRIC, "scarf").value == pytest.approx(0.1)
    assert gain(dict(gains=tables[PAPER_GAINS]), METRIC, "scarf").value == pytest.approx(0.7)


def test_a_study_without_the_paper_s_protocol_has_no_gains_under_it(tmp_path):
    table(gains(scarf=0.1)).to_csv(tmp_path/"gains.csv", index=False)
    tables = read_tables(tmp_path, ["gains"])
    assert len(tables["gains"]) == 1
    with pytest.raises(NotRun): select(tables, PAPER_GAINS)


def steps_and_more():
    "Changes of gains and scores by every step and by another part, all different."
    rows = []
    for i, part in enumerate([*STEPS, TENFOLD]):
        rows += changes(part, scarf_gain=0.1 + i/100, vime_gain=0.3 + i/100, scarf=-0.1 - i/100, scratch=-0.2)
        rows += changes(part, upto=1.0, scarf_gain=0.5, vime_gain=0.5)
        rows += changes(part, mode="frozen", scarf_gain=0.6)
    return table(rows)


@pytest.mark.parametrize("part, arm, value", [(TENFOLD, "scarf", 0.13), (TENFOLD, "vime", 0.33),
                                              ("incomplete-genes", "vime", 0.31)])
def test_the_change_of_a_gain_is_that_of_the_whole_network_at_few_labels(part, arm, value):
    found = change_of_gain(dict(shortcut_means=steps_and_more()), METRIC, part, arm)
    assert (found.value, found.low, found.high) == pytest.approx((value, value - 0.01, value + 0.01))


def test_every_step_keeps_its_own_number_and_one_that_was_not_run_is_left_out():
    changed = steps_and_more()
    def found(rows): return {words: round(number.value, 6) for words, number in
                             by_step(dict(shortcut_means=rows), METRIC, "scarf").items()}
    assert found(changed) == {"quantile normalisation": 0.1, "genes with missing values kept": 0.11, "both": 0.12}
    assert found(changed[changed["part"] != "incomplete-genes"]) == {"quantile normalisation": 0.1, "both": 0.12}
    assert found(changed[changed["part"] == TENFOLD]) == {}


def under_both(**paper):
    "Tables of a study of both protocols; strictly, SCARF is far better than any linear model."
    whole = changes("main", "strict protocol", scarf_gain=0.21, vime_gain=-0.22, byol_gain=0.23, scarf=-0.31,
                    scratch=0.41)
    return {"gains": table(over_both(scarf=0.9, vime=-0.9, byol=-0.9)), "shortcut_means": steps_and_more(),
            "protocol_change_means": table(whole, changes("main", "strict protocol", upto=1.0, scarf_gain=0.77)),
            PAPER_GAINS: table(over_both(protocol="paper", genes=0.05, pca=0.08, **paper))}


@pytest.mark.parametrize("scarf, vime, answer, winner, highest", [
    (0.10, -0.1, "Yes", "SCARF fine-tuned", "SCARF fine-tuned, +0.020"),
    (0.02, 0.12, "Yes", "VIME fine-tuned", "VIME fine-tuned, +0.040"),
    (0.085, -0.1, "No", "nothing pretrained", "SCARF fine-tuned, +0.005"),      # a tie
    (0.06, 0.07, "No", "nothing pretrained", "VIME fine-tuned, −0.010")])       # above genes, below components
def test_whether_the_paper_s_protocol_changes_the_answer_is_decided_there(scarf, vime, answer, winner, highest):
    told = another_protocol(under_both(scarf=scarf, vime=vime, byol=-0.2))
    assert re.findall(r"\b(Yes|No)\b", told) == [answer]
    assert f"principal components, is {winner};" in told and highest in told


def test_what_the_protocol_changes_is_told_of_gains_and_its_steps_of_scarf():
    tables = under_both(scarf=0.1, vime=0.1, byol=0.1)
    scores, changed = under_the_paper(tables, METRIC)
    assert {arm: round(number.value, 6) for arm, number in scores.items()} == {"SCARF": -0.31, "from scratch": 0.41}
    assert {arm: round(number.value, 6) for arm, number in changed.items()} == dict(SCARF=0.21, VIME=-0.22, BYOL=0.23)
    told = another_protocol(tables)
    assert "SCARF +0.210 (+0.200 to +0.220); VIME −0.220 (−0.230 to −0.210); BYOL +0.230" in told
    assert "quantile normalisation +0.100" in told and "both +0.120" in told
    assert not {"+0.770", "−0.310", "+0.300", "+0.500"} & set(re.findall(r"[+−]\d\.\d{3}", told))


@pytest.mark.parametrize("paper, verdict", [(0.9, HOLDS), (0.8, OPEN), (0.7, FAILS)])
def test_the_paper_s_protocol_raises_the_scores_only_if_it_does_with_all_labels(paper, verdict):
    "With few labels it lowers them."
    change = []
    for fraction, theirs in ((0.1, 0.5), (1.0, paper)):
        change += [row | dict(fraction=fraction, protocol="paper", paired=False) for row in changes(
            "main", "strict protocol", scratch=theirs - 0.8, scarf=theirs - 0.8, scarf_gain=0.0)]
    found = examine(CLAIMS["strict-protocol"], dict(protocol_change=table(change)))
    assert found.verdict == verdict and found.number.value == pytest.approx(paper - 0.8)


# ---------------------------------------------------------------------------------------------- epochs kept

def epochs(few, full, part="main", most=100):
    "Epochs kept in that part, by three shares up to a tenth and by the full one; frozen encoders keep the last."
    return [dict(part=part, protocol="strict", arm="scarf", mode=mode, fraction=fraction, most=most,
                 epoch=most if mode == "frozen" else epoch)
            for mode in ("unfrozen", "frozen")
            for fraction, epoch in [(0.02, few - 1), (0.05, few), (0.1, few + 1), (1.0, full)]]


@pytest.mark.parametrize("few, full, cut", [(97, 97, True), (98, 40, True), (94, 94, False), (50, 51, False)])
def test_training_is_called_cut_off_only_where_the_median_network_keeps_one_of_the_last_epochs(few, full, cut):
    tables = dict(kept_epochs=table(epochs(few, full), epochs(12, 13, TENFOLD), epochs(999, 999, "organs", 1000)))
    told = kept_epoch(tables)
    assert ("cut off" in told) == cut and "at most 100" in told and str(few) in told
    assert "12" in kept_epoch(tables, TENFOLD) and "cut off" not in kept_epoch(tables, TENFOLD)
    assert "999" in kept_epoch(tables, "organs") and "cut off" in kept_epoch(tables, "organs")


# ------------------------------------------------------------------------------------------------- intervals

def test_turning_and_subtracting_intervals_leaves_the_longer_side_where_it_belongs():
    assert -Interval(0.1, 0.0, 0.4) == Interval(-0.1, -0.4, 0.0)
    found = Interval(1.0, 0.7, 1.0) - Interval(0.2, 0.2, 0.6)   # down by hypot(0.3, 0.4) = 0.5, up by nothing
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.3, 0.8))


def test_a_loss_of_labels_keeps_its_sign_in_words():
    assert Interval(-0.4, -0.9, 0.25).shares() == "−40% (−90% to 25%)"


# ------------------------------------------------------------------------------------- right share, right part

@pytest.fixture
def tables():
    "Genes lead with few labels, components along the whole curve and at ten times the rate; every number is its own."
    def world(part, shift, **linear):
        return [row for mode, by in (("unfrozen", 0), ("frozen", -0.2), ("linear probe", -0.3))
                for row in over_both(part, mode, **linear, scarf=0.01 + by + shift, vime=-0.06 + by + shift,
                                     byol=0.02 + by + shift, scratch=by)]
    few, faster = world("main", 0), world(TENFOLD, 0.05, genes=0.07, pca=0.09)
    whole = over_both(upto=1.0, genes=0.03, pca=0.04, scarf=0.005, vime=-0.015, byol=0.025)
    whole += gains(mode="frozen", upto=1.0, scarf=-0.4, vime=-0.45, byol=-0.5)
    return dict(gains=table(few, faster, whole))


def test_the_best_linear_model_is_that_of_the_same_share_and_part(tables):
    assert best_linear(tables, METRIC) == best_linear(tables, METRIC, upto=0.1) == GENES
    assert best_linear(tables, METRIC, upto=1.0) == best_linear(tables, METRIC, part=TENFOLD) == PCA


@pytest.mark.parametrize("arm, other, mode, upto, value", [
    ("scarf", GENES, "unfrozen", 0.1, -0.04), ("scarf", GENES, "unfrozen", 1.0, -0.025),
    ("scarf", "vime", "frozen", 0.1, 0.07), ("scarf", "vime", "frozen", 1.0, 0.05),
    ("scarf", GENES, "frozen", 0.1, -0.24), ("vime", "scarf", "unfrozen", 1.0, -0.02)])
def test_two_arms_are_compared_over_the_share_that_was_asked_for(tables, arm, other, mode, upto, value):
    assert versus(tables, METRIC, arm, other, upto, mode=mode).value == pytest.approx(value)


def test_in_each_way_of_use_the_best_linear_model_beside_it_is_the_opponent(tables):
    found = {key: round(number.value, 6) for key, number in in_every_way(tables, METRIC).items()}
    assert found["fine-tuned", "scarf"] == -0.04                                       # 0.01 against 0.05, genes
    assert found["fine-tuned at ten times the learning rate", "scarf"] == -0.03        # 0.06 against 0.09, components
    assert found["frozen under a head", "byol"] == -0.23 and found["under a linear probe", "vime"] == -0.41
    assert ("fine-tuned with the embedding rescaled", "scarf") not in found


def test_a_rescaled_embedding_s_gain_is_its_own_and_no_other_s(tables):
    rescaled = table(over_both(UNIT_SIZE, scarf=0.08))
    why = examine(CLAIMS["few-labels-scarf"], dict(gains=pd.concat([tables["gains"], rescaled]))).why
    assert "at the paper's learning rate: +0.080" in why


# --------------------------------------------------------------------- verdicts turn with the numbers they claim

SIGNS = pytest.mark.parametrize("value, verdict", [(0.1, HOLDS), (0.005, OPEN), (-0.1, FAILS)])


@SIGNS
def test_fine_tuning_beats_a_head_if_it_does_along_the_whole_curve(value, verdict):
    "The table holds frozen minus unfrozen; with few labels it is the other way round."
    rows = [row for arm in METHODS for upto, by in ((1.0, -value), (0.1, value))
            for row in gains(reference=arm, mode="frozen", upto=upto, **{arm: by})]
    found = examine(CLAIMS["unfrozen"], dict(gains=table(rows)))
    assert found.verdict == verdict and "SCARF " + ("+" if value > 0 else "−") in found.measured


@pytest.mark.parametrize("other, verdict", [(-0.1, HOLDS), (0.005, OPEN), (0.1, FAILS)])
def test_vime_does_harm_if_it_loses_on_one_data_set(other, verdict):
    rows = table(gains(vime=0.1, scarf=-0.1), gains("organs", vime=other, scarf=-0.1), gains(upto=1.0, vime=-0.1))
    assert examine(CLAIMS["vime-caution"], dict(gains=rows)).verdict == verdict


def phenotypes(value, fewest):
    "Embedding minus genes with all labels and with the fewest; half of them in between; less on components."
    return table([dict(part="main", outcome="stage", arm=arm, mode="linear probe", metric=METRIC, fraction=fraction,
                       n_labels=round(500*fraction), reference=reference, mean=by, low=by - 0.01, high=by + 0.01,
                       **TIMES)
                  for fraction, mean in ((0.1, fewest), (0.5, 0.333), (1.0, value))
                  for reference, by in ((GENES, mean), (PCA, -mean)) for arm in METHODS])


def of_survival(value):
    rows = [dict(part="main", cancer_type="all", arm=arm, reference=reference, concordance=by, low=by - 0.01,
                 high=by + 0.01, n_patients=900, n_events=300, **TIMES)
            for reference, by in (("genes", value), ("pca", -value), ("", 0.6)) for arm in METHODS]
    return table(rows)


@pytest.mark.parametrize("value, verdict, word", [(-0.1, HOLDS, "no"), (0.005, OPEN, "not shown"),
                                                  (0.1, FAILS, "in part")])
def test_an_embedding_is_judged_against_the_genes_with_all_labels_and_on_survival(value, verdict, word):
    "With the fewest labels, and against components, it is the other way round."
    tables = dict(phenotypes=phenotypes(value, -value), survival=of_survival(value))
    assert examine(CLAIMS["other-phenotypes"], tables).verdict == verdict
    assert examine(CLAIMS["survival"], tables).verdict == verdict
    assert f"Survival: {word}" in beyond_the_label(tables)


def test_outcomes_are_shown_with_the_fewest_labels_and_with_all():
    told = beyond_the_label(dict(phenotypes=phenotypes(-0.1, 0.2)))
    rows = {line.split("|")[1].strip(): line for line in told.splitlines() if line.startswith("| stage")}
    assert [*rows] == ["stage, 50 labels", "stage, 500 labels"] and "0.333" not in told
    assert "+0.200" in rows["stage, 50 labels"] and "−0.100" in rows["stage, 500 labels"]


@SIGNS
@pytest.mark.parametrize("key, part", [
    ("split-by-patient", "split-by-sample"), ("fit-on-training", "fit-on-everything"),
    ("select-on-validation", "test-selection")])
def test_a_shortcut_raises_the_scores_only_if_scores_rise_along_the_whole_curve(key, part, value, verdict):
    "Gains, and scores with few labels, move the other way."
    rows = table(changes(part, upto=1.0, scarf=value, scratch=value, scarf_gain=-value),
                 changes(part, upto=0.1, scarf=-value, scratch=-value, scarf_gain=-value))
    tables = dict(shortcut_means=rows, kept_epochs=table(epochs(50, 50, "honest")))
    assert examine(CLAIMS[key], tables).verdict == verdict


@SIGNS
@pytest.mark.parametrize("key, part, sign", [("like-for-like", "unlike-optimisers", 1), ("tuned-gain", TENFOLD, -1)])
def test_what_moves_the_gain_is_judged_by_gains_and_not_by_scores(key, part, sign, value, verdict):
    rows = table(changes(part, upto=1.0, scarf=-sign*value, scratch=-sign*value, scarf_gain=sign*value),
                 changes(part, upto=0.1, scarf=-sign*value, scratch=-sign*value, scarf_gain=-sign*value))
    assert examine(CLAIMS[key], dict(shortcut_means=rows)).verdict == verdict


@SIGNS
def test_a_faster_scratch_is_judged_by_scratch_with_few_labels(value, verdict):
    means = table(changes(TENFOLD, scratch=value, scarf=-value), changes(TENFOLD, upto=1.0, scratch=-value))
    shares = table([row | dict(fraction=1.0) for row in changes(TENFOLD, scratch=-value)])
    found = examine(CLAIMS["tuned-baseline"], dict(shortcut_means=means, shortcuts=shares))
    assert found.verdict == verdict and found.number.value == pytest.approx(value)


@pytest.mark.parametrize("full, shorter, verdict", [
    (0.1, (-0.1, 0.05, 0.05), HOLDS), (0.1, (0.05, 0.05, 0.05), FAILS), (0.1, (0.0, 0.05, 0.05), OPEN),
    (-0.1, (-0.1, -0.1, -0.1), FAILS)])
def test_a_shorter_pretraining_has_to_lose_where_the_published_one_wins(full, shorter, verdict):
    own = dict(zip(SHORTER, shorter, strict=True), scarf=full)
    rows = table(gains(LENGTHS, **own), gains(LENGTHS, upto=1.0, **{arm: -value for arm, value in own.items()}))
    assert examine(CLAIMS["full-length"], dict(gains=rows)).verdict == verdict


@pytest.mark.parametrize("value, verdict", [(-0.1, HOLDS), (0.005, OPEN), (0.1, FAILS)])
def test_frozen_encoders_stay_behind_if_they_do_with_all_labels(value, verdict):
    rows = [dict(part="main", arm=arm, mode=mode, reference="scratch", metric=METRIC, fraction=fraction, difference=by,
                 low=by - 0.01, high=by + 0.01, **TIMES) for arm in (*METHODS, "scratch")
            for mode, fraction, by in (("frozen", 1.0, value), ("frozen", 0.1, -value), ("unfrozen", 1.0, -value))]
    tables = dict(difference=table(rows), label_curve=pd.DataFrame([dict(part="main", mode="frozen", **TIMES)]))
    assert examine(CLAIMS["frozen"], tables).verdict == verdict


@pytest.mark.parametrize("scarf, vime, byol, verdict", [
    (0.2, 0.1, 0.1, HOLDS), (0.2, 0.3, 0.1, FAILS), (0.2, 0.1, 0.3, FAILS), (0.2, 0.1, 0.19, OPEN),
    (-0.1, -0.2, -0.2, FAILS)])
def test_scarf_gains_most_if_it_does_in_wide_encoders_from_depth_seven(scarf, vime, byol, verdict):
    "In flatter and in narrower ones the order is the other way round."
    rows = [dict(part="main", arm=arm, metric=METRIC, mode="unfrozen", depth=depth, width=width, gain=by, low=by - 0.01,
                 high=by + 0.01, pretrain_epochs=9, published_epochs=9, **TIMES)
            for arm, value in (("scarf", scarf), ("vime", vime), ("byol", byol))
            for depth, width, by in ((2, 1024, -value), (7, 1024, value), (10, 1024, value), (7, 256, -value))]
    assert examine(CLAIMS["depth-width"], dict(architecture=table(rows))).verdict == verdict


def sizes(below, above, vime=0.0):
    "Scores and differences to scratch after pretraining on fewer samples than the paper needs, and on more."
    rows = [dict(part="main", arm=arm, mode="unfrozen", metric=METRIC, n_pretrain=n, mean=0.8 + by, difference=by,
                 low=by - 0.01, high=by + 0.01, pretrain_epochs=9, published_epochs=9, **TIMES)
            for n, value in ((500, below), (1000, below), (7000, above))
            for arm, by in zip(METHODS, (value, vime, value), strict=True)]
    return dict(pretraining_size=table(rows), pretraining_size_difference=table(rows))


@pytest.mark.parametrize("below, above, verdict", [(-0.1, 0.1, HOLDS), (0.1, -0.1, FAILS), (0.1, 0.1, FAILS),
                                                   (-0.1, -0.1, FAILS), (-0.1, 0.005, OPEN)])
def test_a_threshold_needs_losses_below_and_gains_above(below, above, verdict):
    assert examine(CLAIMS["threshold"], sizes(below, above)).verdict == verdict


def test_as_many_steps_are_told_from_as_many_epochs():
    tables = sizes(-0.1, 0.1)
    longer = tables["pretraining_size"].query("arm == 'scarf' and n_pretrain == 500").assign(
        part=LENGTHS, pretrain_epochs=1234, mean=0.9, low=0.89, high=0.91)
    tables["pretraining_size"] = pd.concat([tables["pretraining_size"], longer])
    told = examine(CLAIMS["threshold"], tables).why.split("Samples or steps?")[1]
    assert told.index("0.700") < told.index("0.900") < told.index("1,234 epochs")


@SIGNS
def test_uniform_replacement_is_judged_with_few_labels_in_pairs_or_from_scores(value, verdict):
    paired = table(gains(scarf=0.05, scarf_marginal=0.02), gains(reference="scarf-marginal", scarf=value))
    found = examine(CLAIMS["replacement"], dict(gains=paired, replacement=pd.DataFrame([dict(
        part="main", arm="scarf", **TIMES)])))
    assert (found.verdict, round(found.number.value, 6)) == (verdict, value)
    scores = table([dict(part="main", arm=arm, mode="unfrozen", metric=METRIC, fraction=fraction, mean=by,
                         low=by - 0.005, high=by + 0.005, **TIMES)
                    for arm, sign in (("scarf", 1), ("scarf-marginal", 0), ("scratch", -1))
                    for fraction, by in ((0.05, 0.8 + sign*value), (0.1, 0.8 + sign*value), (1.0, 0.8 - 3*sign*value))])
    found = examine(CLAIMS["replacement"], dict(replacement=scores))
    assert (found.verdict, round(found.number.value, 6)) == (verdict, value)


@pytest.mark.parametrize("key, arm, part", [("saved-tcga", "byol", "main"), ("saved-tissue", "vime", "organs"),
                                            ("saved-transfer", "byol", "gtex-to-tcga")])
def test_labels_saved_are_those_of_the_arm_and_data_that_the_claim_names(key, arm, part):
    "Everybody else loses labels; beside it stands the linear model that is best along the whole curve."
    rows = [dict(part=where, arm=who, mode="unfrozen", metric=METRIC, reference="scratch", target="best",
                 saved=share, low=share - 0.1, high=share + 0.1)
            for where in ("main", "organs", "gtex-to-tcga") for who in METHODS
            for share in [0.6 if (who, where) == (arm, part) else -0.5]]
    rows += [rows[0] | dict(part=part, arm=who, mode="baseline", saved=share)
             for who, share in ((GENES, 0.11), (PCA, 0.22))]
    tables = dict(labels_saved=table(rows), label_curve=table([dict(part=part, arm=arm, n_pretrain=7000)]), gains=table(
        over_both(part, genes=0.05, pca=0.03, **{arm: 0.0}), over_both(part, genes=0.03, pca=0.05, upto=1.0, scarf=0)))
    found = examine(CLAIMS[key], tables)
    assert found.verdict == HOLDS and found.number.value == pytest.approx(0.6)
    assert "principal components, against the same network: 22%" in found.why


@pytest.mark.parametrize("key, arm, part", [("scarf-homogeneous", "scarf", "organs"), *(
    ("byol-heterogeneous", "byol", part) for part in TRANSFERS)])
def test_each_method_leads_on_the_data_that_the_paper_recommends_it_for(key, arm, part):
    def verdict(where, value):
        rows = [row for reference in ("scratch", *METHODS) if reference != arm
                for row in gains(where, reference=reference, **{arm: value})]
        return examine(CLAIMS[key], dict(gains=table(rows))).verdict
    elsewhere = "unseen-cohorts" if arm == "scarf" else "main"
    assert [verdict(part, 0.1), verdict(part, -0.1), verdict(elsewhere, 0.1)] == [HOLDS, FAILS, UNKNOWN]


def test_a_loss_is_turned_into_a_gain_by_the_arm_and_part_that_the_claim_names():
    rows = table(gains(scarf=0.1, vime=-0.1, byol=0.1), gains(UNIT_SIZE, scarf=-0.1, vime=0.1, byol=-0.1),
                 gains(TENFOLD, scarf=-0.1, vime=-0.1, byol=-0.1))
    assert [examine(CLAIMS[key], dict(gains=rows)).verdict for key in ("unit-size", "tuned-method")] == [HOLDS, FAILS]


def test_the_table_of_claims_keeps_the_ends_of_an_interval_apart():
    row = claims_table(dict(gains=table(gains(scarf=0.1)))).set_index("key").loc["few-labels-scarf"]
    assert (row["low"], row["estimate"], row["high"]) == pytest.approx((0.09, 0.1, 0.11))


# -------------------------------------------------------------------------------------- the answers in words

def in_main(**gained): return dict(gains=table(over_both(**gained)))


@pytest.mark.parametrize("gained, words", [
    (dict(scarf=0.1, vime=-0.1, byol=0.0), "Yes: with few labels surely better than the best linear model: SCARF fine"),
    (dict(scarf=0.0, vime=0.03, byol=-0.1), "in some use VIME is better than the network from scratch"),
    (dict(scarf=-0.1, vime=-0.1, byol=-0.1), "No: with few labels it does harm"),
    (dict(scarf=-0.1, vime=0.0, byol=-0.1), "Not shown")])
def test_pretrain_or_not(gained, words): assert words in pretrain_or_not(in_main(**gained))


@pytest.mark.parametrize("genes, pca, scarf, word", [
    (0.05, 0.03, 0.02, "Yes."), (0.05, 0.03, 0.1, "No: SCARF fine-tuned is better."), (0.005, 0.0, 0.0, "Probably."),
    (-0.05, -0.07, -0.09, "No: the network from scratch is better.")])
def test_whether_logistic_regression_would_have_done(genes, pca, scarf, word):
    told = linear_or_not(in_main(genes=genes, pca=pca, scarf=scarf, vime=-0.2, byol=-0.3))
    assert f"have done?** {word}" in told and f"is SCARF fine-tuned: {signed(scarf - genes)} (" in told


def test_a_linear_model_on_the_network_s_terms_is_beaten_at_the_rate_at_which_it_is():
    rows = table(over_both("like-for-like", scarf=0.1, vime=-0.1),
                 over_both("like-for-like-tenfold", genes=0.0, pca=0.2, scarf=0.15, vime=0.3),
                 over_both(scarf=-0.3, vime=-0.3))
    told = linear_or_not(dict(gains=rows)).split("surely beaten by: ")[1]
    assert told == "SCARF fine-tuned, VIME fine-tuned at ten times the learning rate."


def test_the_example_shows_the_best_use_and_everyone_s_score_where_labels_are_few(tables):
    "At ten times the rate SCARF, VIME and BYOL lie 0.03, 0.10 and 0.02 below components."
    rows = [dict(part=part, arm=arm, mode=mode, metric=METRIC, fraction=fraction, n_labels=n, mean=mean + by, low=0.1,
                 high=0.9) for fraction, n, by in ((0.02, 20, -0.2), (0.06, 61, 0.0), (0.1, 100, 0.1), (1.0, 990, 0.2))
            for part, arm, mode, mean in (("main", GENES, "baseline", 0.61), ("main", PCA, "baseline", 0.62),
                                          ("main", "scratch", "unfrozen", 0.63), (TENFOLD, "scratch", "unfrozen", 0.64),
                                          ("main", "byol", "unfrozen", 0.65), (TENFOLD, "byol", "unfrozen", 0.66),
                                          (TENFOLD, "scarf", "unfrozen", 0.67), ("main", "scratch", "frozen", 0.68))]
    told = with_some_labels(tables | dict(label_curve=table(rows)))
    assert "With 61 labels" in told and "BYOL fine-tuned at ten times the learning rate 0.660" in told
    assert re.findall(r"(\d\.\d{3}) \(", told) == ["0.610", "0.660", "0.630", "0.640"]


def test_a_method_moves_with_the_learning_rate_if_its_own_gain_surely_does():
    rows = table(changes(TENFOLD, scarf_gain=0.005, vime_gain=0.1, byol_gain=-0.2, scarf=0.3, scratch=0.3))
    told = at_another_rate(dict(shortcut_means=rows))
    assert "Yes, for VIME and BYOL." in told and "SCARF +0.005" in told and "BYOL −0.200" in told
    assert "Hardly." in at_another_rate(dict(shortcut_means=rows.assign(low=-0.4, high=0.4)))


def test_an_embedding_alone_is_called_better_where_it_is():
    rows = table(over_both(), over_both(mode="linear probe", scarf=0.2, vime=0.05, byol=-0.1, scratch=-0.2))
    told = embedding_alone(dict(gains=rows))
    assert re.search(r"Better: SCARF; a tie: VIME; worse: BYOL and untrained encoder\b", told)
    assert "SCARF +0.150" in told and "BYOL −0.150" in told and "untrained encoder −0.250" in told


def test_the_method_that_comes_out_highest_is_the_highest(tables):
    told = which_method(tables)
    assert "BYOL fine-tuned at ten times the learning rate comes out highest, −0.020" in told
    assert "VIME" not in told   # neither first nor tied with it, in any way of use


def test_every_data_set_has_its_own_number_and_a_word_against_its_own_linear_model():
    rows = table(over_both(scarf=0.02, vime=0.1, byol=0.2),
                 over_both("organs", genes=0.2, pca=0.25, scarf=0.245, vime=0.3, byol=0.21))
    curve = table([dict(part=part, metric=METRIC, fraction=0.1, n_labels=80, n_pretrain=700, n_test=70, **TIMES)
                   for part in ("main", "organs")])
    told = elsewhere(dict(gains=rows, label_curve=curve))
    main, organs = ([cell.strip() for cell in line.split("|")[-4:-1]] for line in told.splitlines() if "| 3 |" in line)
    def words(cells): return [(cell.split(" ")[0], re.search(r"\) (.*)", cell)[1]) for cell in cells]
    assert words(main) == [("+0.020", "worse"), ("+0.100", "better"), ("+0.200", "better")]
    assert words(organs) == [("+0.245", "a tie"), ("+0.300", "better"), ("+0.210", "worse")]


def test_verdicts_are_counted_each_in_its_kind():
    told = tally_verdicts(pd.DataFrame(dict(verdict=[HOLDS] + 2*[FAILS] + 3*[OPEN] + 4*[UNKNOWN], source="paper")))
    assert "10 claims" in told and re.findall(r"\b(\d) (hold|do not|cannot)", told) == [
        ("1", "hold"), ("2", "do not"), ("3", "cannot")]
