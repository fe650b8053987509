"""ComBat, levels only: equal to inmoose 0.9.1, to the formula written out slowly, and honest about awkward batches.

Reference numbers: tests/reference/combat.csv, made by the script in its comment lines. Where inmoose is installed it is
also asked directly.
"""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssl_expr import combat
from ssl_expr.combat import batch_effects, combat_mean_only, shrink

REFERENCE = pd.read_csv(Path(__file__).parent/"reference"/"combat.csv", comment="#")
CASES = list(REFERENCE["case"].unique())


def made_up(seed, sizes, n_genes=40, strength=1.0):
    "Shuffled samples of batches of these sizes, every batch with a level of its own."
    rng = np.random.default_rng(seed)
    batches = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(5, rng.gamma(4, 0.3, n_genes), (len(batches), n_genes)) \
        + rng.normal(0, strength, (len(sizes), n_genes))[batches], batches


def slow_combat(x, batches, ddof=0):
    "The formulas of Johnson, Li & Rabinovic (2007) gene by gene, with batch size and variance 1 in the posterior mean."
    names, result = sorted(set(batches)), np.array(x, dtype=float)
    rows = {name: [i for i, b in enumerate(batches) if b == name] for name in names}
    n, n_genes = len(x), len(x[0])
    grand = [sum(x[i][g] for i in range(n))/n for g in range(n_genes)]
    mean = {(k, g): sum(x[i][g] for i in rows[k])/len(rows[k]) for k in names for g in range(n_genes)}
    sigma = [(sum((x[i][g] - mean[batches[i], g])**2 for i in range(n))/n)**0.5 for g in range(n_genes)]
    for k in names:
        gamma = [(mean[k, g] - grand[g])/sigma[g] for g in range(n_genes)]
        bar = sum(gamma)/n_genes
        tau2 = sum((value - bar)**2 for value in gamma)/(n_genes - ddof)
        for g in range(n_genes):
            for i in rows[k]:
                z = (x[i][g] - grand[g])/sigma[g] - (tau2*gamma[g] + bar)/(tau2 + 1)
                result[i, g] = z*sigma[g] + grand[g]
    return result


@pytest.mark.parametrize("case", CASES)
def test_the_result_equals_the_committed_reference_numbers(case):
    rows = REFERENCE[REFERENCE["case"] == case]
    genes = [name for name in rows if name.startswith("gene-")]
    given, want = (rows[rows["kind"] == kind] for kind in ("input", "corrected"))
    x = given[genes].to_numpy()
    result = combat_mean_only(x, given["batch"], given["group"])
    np.testing.assert_allclose(result, want[genes].to_numpy(), rtol=0, atol=1e-8)
    assert abs(result - x).max() > 0.1     # something was corrected at all


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sizes, strength", [
    ((6, 6), 1), ((2, 9, 20), 1), ((3, 3, 3, 3), 4), ((5, 40), 0), ((2, 2), 1)])
def test_the_result_equals_inmoose_where_it_is_installed(sizes, strength):
    pycombat_norm = pytest.importorskip("inmoose.pycombat", reason="inmoose is not installed").pycombat_norm
    x, batches = made_up(len(sizes), sizes, strength=strength)
    want = np.asarray(pycombat_norm(pd.DataFrame(x.T), list(batches), mean_only=True, par_prior=True)).T
    np.testing.assert_allclose(combat_mean_only(x, batches), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 3, 7), (1, 3, 4)])
def test_the_result_equals_the_formula_written_out(sizes, ddof):
    x, batches = made_up(7, sizes, n_genes=15)
    result = combat_mean_only(x, batches, ddof=ddof, single="adjust")
    np.testing.assert_allclose(result, slow_combat(x, list(batches), ddof), rtol=0, atol=1e-12)


def test_the_two_variances_differ():
    x, batches = made_up(7, (4, 4), n_genes=15)
    assert abs(combat_mean_only(x, batches) - combat_mean_only(x, batches, ddof=1)).max() > 1e-4


def test_each_group_is_corrected_as_if_it_were_alone():
    x, batches = made_up(0, (8, 12, 20))
    groups = np.random.default_rng(1).choice(["lung", "skin"], 40)
    together = combat_mean_only(x, batches, groups)
    for name in ("lung", "skin"):
        rows = groups == name
        np.testing.assert_allclose(together[rows], combat_mean_only(x[rows], batches[rows]), rtol=0, atol=1e-12)


def test_the_order_of_samples_and_the_names_of_batches_do_not_matter():
    x, batches = made_up(0, (8, 12, 20))
    names, order = np.array(["GSE9", "GSE10", "other"])[batches], np.random.default_rng(1).permutation(40)
    shuffled = combat_mean_only(x[order], pd.Series(names[order], dtype="category"))
    np.testing.assert_allclose(shuffled, combat_mean_only(x, batches)[order], rtol=0, atol=1e-12)


def test_blocks_of_genes_change_nothing(monkeypatch):
    x, batches = made_up(0, (8, 12, 20), n_genes=23)
    whole = combat_mean_only(x, batches)
    monkeypatch.setattr(combat, "_blocks", lambda n, n_genes: (slice(i, i + 5) for i in range(0, n_genes, 5)))
    np.testing.assert_array_equal(combat_mean_only(x, batches), whole)


def test_blocks_cover_all_genes_and_stay_small():
    slices = list(combat._blocks(50_000, 1000))
    np.testing.assert_array_equal(np.concatenate([np.arange(1000)[block] for block in slices]), np.arange(1000))
    assert max(block.stop - block.start for block in slices)*50_000 <= 2**22
    assert next(combat._blocks(10**9, 3)) == slice(0, 1)


@pytest.mark.parametrize("given, got", [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)])
def test_the_type_is_kept_and_the_input_untouched(given, got):
    x, batches = made_up(0, (8, 12))
    x = x.astype(given)
    before = x.copy()
    result = combat_mean_only(x, batches)
    assert result.dtype == got
    np.testing.assert_array_equal(x, before)
    tolerance = 1e-6 if got == np.float32 else 1e-12
    np.testing.assert_allclose(result, slow_combat(x.astype(float), list(batches)), rtol=tolerance)


def test_the_result_can_be_written_to_a_file_on_disk_or_over_the_input(tmp_path):
    x, batches = made_up(0, (8, 12))
    x = x.astype(np.float32)
    want = combat_mean_only(x, batches)
    on_disk = np.memmap(tmp_path/"out.bin", np.float32, "w+", shape=x.shape)
    assert combat_mean_only(x, batches, out=on_disk) is on_disk
    np.testing.assert_array_equal(np.fromfile(tmp_path/"out.bin", np.float32).reshape(x.shape), want)
    assert combat_mean_only(x, batches, out=x) is x
    np.testing.assert_array_equal(x, want)
    with pytest.raises(ValueError, match="out must be floating point of shape"):
        combat_mean_only(x, batches, out=np.zeros((2, 2)))


def test_a_refusal_leaves_the_matrix_that_was_to_be_overwritten_as_it_was():
    x, batches = made_up(0, (4, 4, 1))
    before, groups = x.copy(), np.where(batches == 0, "a", "b")
    x = np.concatenate([x, x])
    with pytest.raises(ValueError, match="single sample in group 'b'"):
        combat_mean_only(x, [*"aabbaabba", *batches], [*"ggggggggg", *groups], out=x)
    np.testing.assert_array_equal(x, np.concatenate([before, before]))


def test_one_batch_in_all_or_in_a_group_is_left_unchanged():
    x, batches = made_up(0, (8, 12))
    np.testing.assert_array_equal(combat_mean_only(x, ["a"]*20), x)
    np.testing.assert_array_equal(combat_mean_only(x, batches, groups=batches), x)
    np.testing.assert_array_equal(combat_mean_only(x[:1], ["a"]), x[:1])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_gene_without_spread_inside_batches_is_unchanged_and_disturbs_no_other(value):
    x, batches = made_up(0, (8, 12, 3))
    want = combat_mean_only(x, batches)
    constant, per_batch = np.full(len(x), value), value + batches/3
    result = combat_mean_only(np.column_stack([constant, x, per_batch]), batches)
    np.testing.assert_array_equal(result[:, [0, -1]], np.column_stack([constant, per_batch]))
    np.testing.assert_allclose(result[:, 1:-1], want, rtol=0, atol=1e-12)


def test_a_group_in_which_nothing_varies_is_unchanged():
    x, _ = made_up(0, (4,))
    np.testing.assert_array_equal(combat_mean_only(x, [0, 1, 2, 3], single="adjust"), x)
    np.testing.assert_array_equal(combat_mean_only(np.ones((4, 3)), [0, 0, 1, 1]), np.ones((4, 3)))


def test_a_batch_of_one_sample_is_refused_by_name_or_kept_or_adjusted():
    x, batches = made_up(0, (8, 12, 1))
    alone = batches == 2
    with pytest.raises(ValueError, match="batch '2' has a single sample .1 such batches.: drop it, or choose"):
        combat_mean_only(x, batches)
    kept = combat_mean_only(x, batches, single="keep")
    np.testing.assert_array_equal(kept[alone], x[alone])
    np.testing.assert_allclose(kept[~alone], combat_mean_only(x[~alone], batches[~alone]), rtol=0, atol=1e-12)
    adjusted = combat_mean_only(x, batches, single="adjust")
    assert abs(adjusted[alone] - x.mean(0)).mean() < 0.8*abs(x[alone] - x.mean(0)).mean()
    groups = np.where(alone, "lung", "skin")
    np.testing.assert_array_equal(combat_mean_only(x, batches, groups)[alone], x[alone])     # nothing to compare with


def test_only_the_lonely_batch_of_a_group_is_kept_where_groups_have_other_batches():
    x, _ = made_up(0, (12,))
    batches, groups = np.array(list("aaabbbdbbccc")), np.array(list("gggggghhhhhh"))     # in h: d alone, two b, three c
    result = combat_mean_only(x, batches, groups, single="keep")
    np.testing.assert_array_equal(result[6], x[6])
    for rows in (slice(0, 6), slice(7, 12)):
        np.testing.assert_allclose(result[rows], combat_mean_only(x[rows], batches[rows]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="batch 'd' has a single sample in group 'h' .1 such batches."):
        combat_mean_only(x, batches, groups)


def test_shrinking_goes_from_one_common_shift_to_no_change():
    effects = np.random.default_rng(0).normal(0.7, 1, (1, 1000))
    faint, strong = 0.7 + (effects - 0.7)*1e-4, effects*1e4
    assert np.ptp(shrink(faint)) < 1e-7*np.ptp(faint) and abs(shrink(faint).mean() - faint.mean()) < 1e-12
    np.testing.assert_allclose(shrink(strong), strong, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(shrink(np.array([[3.0]])), [[3.0]])
    with pytest.raises(ValueError, match="needs more than 1 genes"):
        shrink(np.array([[3.0]]), ddof=1)


def test_effects_are_distances_in_units_of_the_spread_inside_batches():
    x, batches = made_up(3, (10, 30))
    rows = np.argsort(batches, kind="stable")
    effects, spread = batch_effects(x, rows, np.array([10, 30]))
    shifted, same = batch_effects(x*2 + 5, rows, np.array([10, 30]))
    np.testing.assert_allclose(shifted, effects)
    np.testing.assert_allclose(same, 2*spread)
    np.testing.assert_allclose(np.array([10, 30])@effects, 0, atol=1e-10)     # weighted by size they cancel


@pytest.mark.parametrize("change, message", [
    (dict(batches=[0]*7), "8 samples need a batch each, got 7"),
    (dict(groups=["a"]*9), "8 samples need a group each, got 9"),
    (dict(batches=["a", None, *"aabbbb"]), "row 1 has no batch .1 such rows.: name it or drop it"),
    (dict(groups=["a", np.nan, *"aabbbb"]), "row 1 has no group"),
    (dict(X=np.where(np.eye(8) > 0, np.nan, 1)), "missing value in row 0, column 0 .*FillMissing"),
    (dict(X=np.where(np.eye(8) > 0, np.inf, 1)), "infinite value in row 0, column 0"),
    (dict(X=np.ones(8)), "samples x genes"),
    (dict(X=np.array([["a"]*3]*8)), "must hold numbers"),
    (dict(single="drop"), "single must be one of")])
def test_what_cannot_be_corrected_is_refused_in_one_sentence(change, message):
    x, batches = made_up(0, (4, 4))
    with pytest.raises(ValueError, match=message) as refusal:
        combat_mean_only(**(dict(X=x, batches=batches) | change))
    assert "\n" not in str(refusal.value)


def test_labels_dealt_at_random_are_found_after_a_correction_inside_each_class_only():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    accuracy = {"plain": [], "inside": []}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        studies, labels = np.repeat(np.arange(30), 10), rng.permutation(np.repeat([0, 1, 2], 100))
        x = rng.normal(size=(300, 100)) + rng.normal(size=(30, 100))[studies]
        for name, groups in (("plain", None), ("inside", labels)):
            corrected = combat_mean_only(x, studies, groups, single="adjust")
            accuracy[name].append(cross_val_score(LogisticRegression(C=0.01), corrected, labels, cv=5).mean())
    assert max(accuracy["plain"]) < 0.42 and min(accuracy["inside"]) > 0.55, accuracy
