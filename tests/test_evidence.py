"""No number typed by hand, no verdict by taste: pages equal tables byte for byte, verdicts follow from intervals."""
import json
import re
import shutil
from math import nan
from pathlib import Path

import made_up
import numpy as np
import pandas as pd
import pytest

from ssl_expr.answers import gains_by_use, how_many_labels, linear_or_not, share_by_share
from ssl_expr.claims import METRIC, NOT_RUN, PAPER_METRIC, claims, claims_table, examine
from ssl_expr.findings import QUESTIONS, elsewhere, findings, subtypes_and_normals
from ssl_expr.lookup import METHODS, TABLES, TENFOLD, WHOLE, versus
from ssl_expr.pages import (
    BEGIN,
    END,
    block_of,
    marks,
    publish,
    published,
    published_recipe,
    replace_block,
    replace_in_notebook,
)
from ssl_expr.report import LINEAR, label, read_runs
from ssl_expr.run import declared
from ssl_expr.savings import gain_area
from ssl_expr.study import COLLECTIONS, Plan, read_profile, tables_read
from ssl_expr.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    PAPER_GAINS,
    UNKNOWN,
    Interval,
    all_of,
    any_of,
    read_tables,
    select,
    share_of,
)

REPOSITORY = Path(__file__).resolve().parent.parent
CLAIMS = {claim.key: claim for claim in claims()}
TIMES = dict(n_splits=3, n_repeats=3)


def gains(curves):
    "Mean differences over label fractions, as the study collects them, with intervals of a fixed width."
    rows = []
    for (part, protocol, metric), table in curves.groupby(["part", "protocol", "metric"]):
        lines = {key: line.sort_values("fraction") for key, line in table.groupby(["arm", "mode"])}
        for reference in [("scratch", "unfrozen"), ("logistic-genes", "baseline"), ("logistic-pca", "baseline")]:
            for (arm, mode), line in lines.items():
                if (arm, mode) == reference: continue
                for upto in (0.1, 0.3, 1.0):
                    gain = float(gain_area(line["fraction"], line["mean"], lines[reference]["mean"], upto))
                    rows.append(dict(part=part, protocol=protocol, arm=arm, mode=mode, reference=reference[0],
                                     metric=metric, upto=upto, gain=gain, low=gain - 0.008, high=gain + 0.009, **TIMES))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    "The folder of a made-up study's tables."
    folder = tmp_path_factory.mktemp("collected")
    found = made_up.tables(fractions=made_up.FEW)
    found |= made_up.questions(METHODS, depths=(2, 7, 10)) | dict(gains=gains(found["label_curve"]))
    found = {name: table[table["metric"].isin([METRIC, PAPER_METRIC])] if "metric" in table else table
             for name, table in found.items()}
    made_up.write(folder, found)
    return folder


@pytest.fixture
def repository(collected, tmp_path):
    "A clone with made-up tables of the profile `study`."
    (tmp_path/"nbs").mkdir()
    for name in ("README.md", "nbs/index.ipynb"): shutil.copy(REPOSITORY/name, tmp_path/name)
    shutil.copytree(collected, tmp_path/"figures"/"data"/"study")
    return tmp_path


# pages and tables

@pytest.mark.skipif(not list((REPOSITORY/"figures"/"data"/"study").glob("*.csv")),
                    reason="the profile `study` has no collected tables yet")
@pytest.mark.parametrize("name", ["README.md", "nbs/index.ipynb", "figures/claims.md", "figures/claims.csv"])
def test_every_published_number_is_that_of_the_committed_tables(name):
    same = (REPOSITORY/name).read_bytes() == published(REPOSITORY, "study")[name].encode()
    assert same, (   # not compared in the assertion: a diff of pages takes pytest a quarter of an hour
        f"{name} is not what the tables give: run `ssl-expr figures --profile study`")


@pytest.mark.parametrize("name", ["README.md", "nbs/index.ipynb"])
def test_every_number_of_the_recipe_is_that_of_the_committed_tables(name):
    same = (REPOSITORY/name).read_bytes() == published_recipe(REPOSITORY, "unmixing")[name].encode()
    assert same, (
        f"{name} is not what the tables give: run `ssl-expr figures --profile unmixing`")


def test_the_recipe_and_the_findings_leave_each_other_alone(repository):
    shutil.copytree(REPOSITORY/"figures"/"data"/"unmixing", repository/"figures"/"data"/"unmixing",
                    ignore=shutil.ignore_patterns("runs"))
    publish(repository, "study")
    findings = block_of((repository/"README.md").read_text())
    path = repository/"figures"/"data"/"unmixing"/"over_best.csv"
    table = pd.read_csv(path)
    table.assign(difference=table["difference"] + 0.5).to_csv(path, index=False)
    assert publish(repository, "unmixing", published_recipe) == ["README.md", "nbs/index.ipynb"]
    assert block_of((repository/"README.md").read_text()) == findings
    recipe = block_of((repository/"README.md").read_text(), "recommended")
    assert "+0.5" in recipe and publish(repository, "unmixing", published_recipe) == []
    publish(repository, "study")
    assert block_of((repository/"README.md").read_text(), "recommended") == recipe


def test_publishing_writes_four_files_and_again_none(repository):
    assert set(publish(repository, "study")) == {"README.md", "nbs/index.ipynb", "figures/claims.md",
                                                 "figures/claims.csv"}
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}
    assert publish(repository, "study") == []
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()} == before


def test_publishing_leaves_what_people_wrote_alone(repository):
    def around(name): return re.sub(f"{BEGIN}.*?{END}", "", (repository/name).read_text(), flags=re.S)
    def cells(): return json.loads((repository/"nbs"/"index.ipynb").read_text())["cells"]
    before, readme, were = around("nbs/index.ipynb"), around("README.md"), cells()
    publish(repository, "study")
    assert (around("README.md"), around("nbs/index.ipynb")) == (readme, before)
    assert sum(now != was for now, was in zip(cells(), were, strict=True)) == 1


@pytest.mark.parametrize("name", ["README.md", "nbs/index.ipynb", "figures/claims.md"])
def test_a_number_changed_by_hand_is_noticed(repository, name):
    publish(repository, "study")
    path, number = repository/name, r"\+0\.\d{3} \("
    typed, text = path.read_text(), path.read_text()
    typed, text = (typed[:typed.index(BEGIN)], typed[typed.index(BEGIN):]) if BEGIN in typed else ("", text)
    assert re.search(number, text)
    path.write_text(typed + re.sub(number, "+0.999 (", text, count=1))
    assert published(repository, "study")[name] != path.read_text()


def test_other_tables_write_other_pages(repository):
    before = published(repository, "study")
    path = repository/"figures"/"data"/"study"/"gains.csv"
    table = pd.read_csv(path)
    table.assign(gain=table["gain"] + 0.01).to_csv(path, index=False, lineterminator="\n")
    assert all(text != before[name] for name, text in published(repository, "study").items())


def test_every_number_of_the_findings_is_in_a_table(collected):
    tables, runs = read_tables(collected, TABLES), read_runs(collected, "curves")
    paragraphs = findings(tables, runs).split("\n\n")
    text = "\n".join(part for part in paragraphs if "With which method" not in part)   # differences of two gains
    known = {f"{abs(value):.3f}" for table in tables.values()
             for value in table.select_dtypes("number").to_numpy().ravel()}
    found = re.findall(r"\d\.\d{3}", text)
    assert len(found) > 40 and set(found) <= known


def test_findings_stay_on_one_page_and_answer_every_question(collected):
    text = findings(read_tables(collected, TABLES), read_runs(collected, "curves"))
    prose = [word for line in text.splitlines() if not line.startswith("|") for word in line.split()]
    assert len(prose) < 900 and text.count("\n| ---") in (4, 5)   # tables: use, labels saved, outcomes, data, verdicts
    for question in ("Should I pretrain?", "With which method?", "How many labels", "Would logistic regression",
                     "And on other data?", "What holds of the paper?", "Does the paper's protocol change the answer?"):
        assert question in text
    assert len(QUESTIONS) == 13 and "fig_headline.png" in text


@pytest.mark.parametrize("low, high, verdict", [(0.02, 0.1, HOLDS), (-0.02, 0.1, OPEN), (-0.1, -0.02, FAILS)])
def test_the_paper_s_protocol_lifts_scarf_only_if_its_gain_does(low, high, verdict):
    "Scores that rise are no gain."
    of = dict(part="main", metric=METRIC, mode="unfrozen", upto=0.1, against="strict protocol", paired=False, **TIMES)
    rows = [dict(arm=arm, difference=(a + b)/2, low=a, high=b, **of)
            for arm, a, b in (("scarf", 0.2, 0.3), ("scratch", 0.1, 0.2), ("scarf − scratch", low, high))]
    found = examine(CLAIMS["strict-gain"], dict(protocol_change_means=pd.DataFrame(rows)))
    assert found.verdict == verdict and (found.number.low, found.number.high) == (low, high)


def test_gains_stand_beside_the_best_linear_model_of_the_same_labels_and_rate(collected):
    tables, metric = read_tables(collected, TABLES), "balanced_accuracy"
    faster = tables["gains"].query("part == 'main'").assign(part=TENFOLD)
    faster["gain"] += 0.3*(faster["arm"] == "logistic-pca")   # another model is best there
    tables["gains"] = pd.concat([tables["gains"], faster])
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in gains_by_use(tables).splitlines() if line.startswith("| ")]
    header, rows = lines[0], {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}
    assert header == ["used how", "best linear model", "SCARF", "VIME", "BYOL"]
    for way, part, table, value, where in (
            ("fine-tuned", "main", "gains", "gain", dict(upto=0.1)),
            ("fine-tuned at ten times the learning rate", TENFOLD, "gains", "gain", dict(upto=0.1)),
            ("fine-tuned, all labels", "main", "difference", "difference", dict(fraction=1.0))):
        over = select(tables, table, part=part, metric=metric, reference="scratch", **where)
        over = over[over["mode"].isin(["unfrozen", "baseline"])].set_index("arm")
        best = over.loc[["logistic-genes", "logistic-pca"], value].idxmax()
        assert rows[way]["best linear model"].startswith(f"{over.loc[best, value]:+.3f}".replace("-", "−"))
    against = select(tables, "difference", part="main", metric=metric, reference=best, mode="unfrozen", fraction=1.0)
    for row in against[against["arm"].isin(METHODS)].itertuples():
        assert rows[way][label(row.arm)].endswith("better" if row.low > 0 else "worse" if row.high < 0 else "a tie")


def test_who_beats_a_linear_model_on_equal_terms_is_said(collected):
    tables = read_tables(collected, TABLES)
    assert "on the network's terms" not in linear_or_not(tables)
    main, parts = tables["gains"].query("part == 'main'"), ("like-for-like", "like-for-like-tenfold")
    equal = [main.assign(part=part) for part in parts]
    equal[1] = equal[1].assign(**{column: equal[1][column] + 0.9*(equal[1]["arm"] == "vime")
                                  for column in ("gain", "low", "high")})
    answer = linear_or_not(tables | dict(gains=pd.concat([tables["gains"], *equal])))
    told = answer.split("surely beaten by")[1]
    assert "VIME fine-tuned at ten times the learning rate" in told and "BYOL" not in told


def test_links_of_readme_and_front_page_lead_to_the_same_places(repository):
    pages = published(repository, "study")
    index = "".join("".join(cell["source"]) for cell in json.loads(pages["nbs/index.ipynb"])["cells"])
    readme, index = (re.findall(r"\]\(([^)]*)\)", text[text.index(BEGIN):text.index(END)])
                     for text in (pages["README.md"], index))
    assert [f"../{link}" for link in readme] == index and len(readme) >= 6
    assert all((REPOSITORY/link).exists() for link in readme if link.startswith("nbs/"))


@pytest.mark.parametrize("text", ["no marks", f"{BEGIN} only", f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_one_pair_of_marks_is_refused(text):
    with pytest.raises(ValueError, match="once, in this order"): replace_block(text, "new")


def test_a_notebook_without_the_marks_is_refused():
    notebook = json.dumps(dict(cells=[dict(cell_type="code", source=[BEGIN, END])]))
    with pytest.raises(ValueError, match="one markdown cell"): replace_in_notebook(notebook, "new")


def test_replacing_a_block_twice_is_replacing_it_once():
    notebook = (REPOSITORY/"nbs"/"index.ipynb").read_text(encoding="utf-8")
    once = replace_in_notebook(notebook, "a line\n\nand ± another")
    assert replace_in_notebook(once, "a line\n\nand ± another") == once != notebook


# prose without numbers

RESULT = re.compile(r"±\s*\d|\d+(?:\.\d+)?\s?%|(?<![\w.])\d+\.\d+(?![\w.]*\d)")
NO_RESULTS = [   # in README, outside the findings
    "arXiv 2507.13912",                      # number of the paper
    "Python 3.11",                           # version
    "dropout 0.2", "decay 0.9",              # settings of the authors' code
    "1 % of about 1,000", "1 % of a few",    # the authors' validation set
]


def prose(text):
    "What people wrote: without the findings, code and addresses."
    blocks = (f"{BEGIN}.*?{END}", "{}.*?{}".format(*marks("recommended")))
    for pattern in (*blocks, r"```.*?```", r"`[^`\n]*`", r"\]\([^)]*\)"):
        text = re.sub(pattern, " ", text, flags=re.S)
    return text


def results_in(text):
    for phrase in NO_RESULTS: text = text.replace(phrase, "")
    return [text[max(0, found.start() - 40):found.end() + 20] for found in RESULT.finditer(text)]


def front_page():
    cells = json.loads((REPOSITORY/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_readme_and_front_page_hold_no_result_outside_the_findings():
    readme = (REPOSITORY/"README.md").read_text(encoding="utf-8")
    assert results_in(prose(readme)) == [] and results_in(prose(front_page())) == []
    unused = [phrase for phrase in NO_RESULTS if phrase not in prose(readme)]
    assert not unused, f"no longer in README: {unused}"


@pytest.mark.parametrize("text, results", [
    ("SCARF gains 3.1 % of accuracy", 1), ("0.93 against 0.91", 2), ("saves 49% of the labels", 1), ("80 ± 2", 1),
    ("a loss of −0.02", 1), ("592 tumours, 20,531 genes, chapter 10, Fig. 3, v1.2.3, 2025", 0)])
def test_the_detector_tells_results_from_sizes(text, results):
    assert len(results_in(text)) == results


# verdicts

@pytest.mark.parametrize("low, high, side", [(0.01, 0.03, 1), (0.0, 0.03, 0), (-0.01, 0.03, 0), (-0.01, 0.0, 0),
                                             (-0.03, -0.01, -1)])
def test_an_interval_that_touches_zero_is_a_tie(low, high, side):
    assert Interval((low + high)/2, low, high).side() == side


def test_every_and_some_agree_with_counting_all_resolutions():
    "An undecided number may turn out either way: the verdict stands only if all ways lead to it."
    from itertools import product
    for sides in product([-1, 0, 1], repeat=3):
        ways = list(product(*([side] if side else [-1, 1] for side in sides)))
        for verdict, quantifier in ((all_of(*sides), all), (any_of(*sides), any)):
            answers = {quantifier(side > 0 for side in way) for way in ways}
            assert verdict == (OPEN if len(answers) > 1 else HOLDS if True in answers else FAILS)


def test_subtracting_intervals_is_never_narrower_than_either():
    a, b = Interval(0.8, 0.77, 0.83), Interval(0.7, 0.65, 0.74)
    difference = a - b
    assert difference.high - difference.low >= max(a.high - a.low, b.high - b.low)
    rng = np.random.default_rng(0)
    draws = rng.normal(0.8, 0.03/1.96, 10**5) - rng.normal(0.7, 0.03/1.96, 10**5)
    exact = Interval(0.8, 0.77, 0.83) - Interval(0.7, 0.67, 0.73)
    assert np.allclose(np.quantile(draws, [0.025, 0.975]), [exact.low, exact.high], atol=1e-3)


def test_wilsons_interval_covers_as_it_says():
    rng = np.random.default_rng(1)
    found = [share_of(int(yes), 8) for yes in rng.binomial(8, 0.7, 2000)]
    assert np.mean([number.low <= 0.7 <= number.high for number in found]) > 0.92


def gain_table(low, high, arm="scarf", **linear):
    rows = [dict(arm=arm, gain=(low + high)/2, low=low, high=high, reference="scratch", mode="unfrozen")]
    for reference, (value, half) in linear.items():
        rows.append(dict(arm=reference, gain=value, low=value - half, high=value + half, reference="scratch",
                         mode="baseline"))
    return dict(gains=pd.DataFrame(rows).assign(part="main", protocol="strict", metric=METRIC, upto=0.1, **TIMES))


@pytest.mark.parametrize("low, high, verdict", [(0.001, 0.02, HOLDS), (-0.001, 0.02, OPEN), (-0.02, 0.0, OPEN),
                                                (-0.02, -0.001, FAILS)])
def test_a_gain_is_judged_by_its_interval(low, high, verdict):
    assert examine(CLAIMS["few-labels-scarf"], gain_table(low, high)).verdict == verdict


def test_a_gain_says_what_the_linear_model_does_at_the_same_point():
    why = examine(CLAIMS["few-labels-scarf"], gain_table(0.01, 0.03, **{"logistic-genes": (0.08, 0.01),
                                                                        "logistic-pca": (0.05, 0.01)})).why
    assert "logistic regression on genes) gains +0.080" in why and "−0.060" in why and "worse" in why
    assert "No linear model" in examine(CLAIMS["few-labels-scarf"], gain_table(0.01, 0.03)).why


def test_a_verdict_that_accuracy_would_change_says_so():
    table = gain_table(0.01, 0.03)["gains"]
    other = table.assign(metric="accuracy", gain=0.0, low=-0.01, high=0.01)
    found = examine(CLAIMS["few-labels-scarf"], dict(gains=pd.concat([table, other])))
    assert found.verdict == HOLDS and f"By accuracy: {OPEN}" in found.why


@pytest.mark.parametrize("share, low, high, verdict", [
    (0.45, 0.2, 0.6, HOLDS), (0.8, 0.7, 0.9, HOLDS), (0.45, -0.1, 0.6, OPEN), (0.45, nan, 0.6, OPEN),
    (0.3, 0.1, 0.48, FAILS), (-0.4, -0.9, -0.1, FAILS), (nan, nan, nan, FAILS), (nan, nan, 0.6, OPEN)])
def test_labels_saved_are_judged_against_the_papers_share(share, low, high, verdict):
    row = dict(part="main", protocol="strict", arm="byol", mode="unfrozen", reference="scratch", target="best",
               metric=METRIC, saved=share, low=low, high=high)
    tables = gain_table(0, 1, arm="byol", **{"logistic-genes": (0.0, 0.1)})
    tables["gains"] = pd.concat([tables["gains"], tables["gains"].assign(upto=1.0)])
    tables["labels_saved"] = pd.DataFrame([row])
    def found(n_pretrain):   # nothing fails where the paper itself expects nothing
        curve = pd.DataFrame([dict(part="main", arm="byol", n_pretrain=n_pretrain)])
        return examine(CLAIMS["saved-tcga"], tables | dict(label_curve=curve)).verdict
    assert (found(7000), found(600)) == (verdict, OPEN if verdict == FAILS else verdict)


def test_an_arm_is_compared_with_another_used_alike():
    "A reference in the tables is a whole network; frozen is compared with frozen, through the network from scratch."
    def rows(mode, reference, **values):
        return [dict(part="main", protocol="strict", arm=arm, reference=reference, mode=mode, metric=METRIC, upto=0.1,
                     gain=value, low=value - 0.01, high=value + 0.01) for arm, value in values.items()]
    tables = dict(gains=pd.DataFrame(rows("frozen", "scratch", scarf=0.1, vime=0.3) + rows("frozen", "scarf", vime=-0.5)
                                     + rows("unfrozen", "scratch", scarf=0.8, vime=0.4)
                                     + rows("unfrozen", "scarf", vime=-0.4)))
    assert versus(tables, METRIC, "vime", "scarf", mode="frozen").value == pytest.approx(0.2)
    assert versus(tables, METRIC, "vime", "scarf").value == pytest.approx(-0.4)


@pytest.mark.parametrize("second, verdict", [(0.05, HOLDS), (0.005, OPEN), (-0.05, FAILS)])
def test_advice_to_use_a_method_is_asked_of_every_data_set_and_of_no_pretraining_too(second, verdict):
    def rows(part, scarf):
        same = dict(part=part, protocol="strict", reference="scratch", mode="unfrozen", metric=METRIC, upto=0.1)
        return [dict(same, arm=arm, gain=value, low=value - 0.01, high=value + 0.01, n_splits=1, n_repeats=1)
                for arm, value in dict(scarf=scarf, vime=-0.2, byol=-0.2).items()]
    tables = dict(gains=pd.DataFrame(rows("main", 0.05) + rows("organs", second)))
    assert examine(CLAIMS["scarf-homogeneous"], tables).verdict == verdict


@pytest.mark.parametrize("linear, scarf, verdict", [
    ((0.08, 0.01), (0.04, 0.06), HOLDS), ((0.08, 0.01), (0.15, 0.17), FAILS), ((0.0, 0.01), (-0.01, 0.01), OPEN),
    ((-0.05, 0.01), (-0.01, 0.01), FAILS)])
def test_our_own_advice_can_fail(linear, scarf, verdict):
    table = pd.concat([gain_table(*(scarf if arm == "scarf" else (-0.2, -0.1)), arm=arm)["gains"] for arm in METHODS]
                      + [gain_table(0, 0, **{"logistic-genes": linear})["gains"].iloc[1:]])
    assert examine(CLAIMS["linear-first"], dict(gains=table)).verdict == verdict


@pytest.mark.parametrize("before, after, verdict", [
    ((-0.3, -0.2), (0.1, 0.2), HOLDS), ((-0.3, 0.2), (0.1, 0.2), OPEN), ((-0.3, -0.2), (-0.2, -0.1), FAILS),
    ((0.2, 0.3), (0.1, 0.2), FAILS)])
def test_a_loss_that_another_rate_turns_into_a_gain(before, after, verdict):
    slow = pd.concat([gain_table(*before, arm=arm, **{"logistic-genes": (0.05, 0.01)})["gains"] for arm in METHODS])
    fast = pd.concat([gain_table(*after, arm=arm, **{"logistic-genes": (0.05, 0.01)})["gains"] for arm in METHODS])
    tables = dict(gains=pd.concat([slow, fast.assign(part=TENFOLD)]).drop_duplicates())
    assert examine(CLAIMS["tuned-method"], tables).verdict == verdict
    assert "at ten times the learning rate" in examine(CLAIMS["few-labels-vime"], tables).why
    assert claims_table(tables).set_index("key").loc["few-labels-vime", "at_tenfold_rate"] != UNKNOWN
    assert "ten times" not in examine(CLAIMS["few-labels-vime"], dict(gains=slow.drop_duplicates())).why


@pytest.mark.parametrize("used, verdict", [((10, 30, 60), HOLDS), ((30, 10, 60), FAILS), ((30, 30, 30), FAILS)])
def test_the_order_of_collapse_is_counted_over_shapes(used, verdict):
    arms = dict(zip(("vime", "scarf", "byol"), used, strict=True))
    rows = [dict(part="main", depth=depth, width=width, arm=arm, index=i + 1, singular_value=1.0 if i < n else 1e-3)
            for arm, n in arms.items() for depth in (2, 7) for width in (64, 256) for i in range(64)]
    assert examine(CLAIMS["collapse"], dict(spectra=pd.DataFrame(rows))).verdict == verdict


@pytest.mark.parametrize("epochs, verdict", [(500, HOLDS), (6, OPEN)])
def test_a_pretraining_that_was_cut_short_decides_nothing_about_the_paper_s(epochs, verdict):
    rows = [dict(part="main", protocol="strict", arm="vime", depth=depth, width=1024, mode="unfrozen", metric=METRIC,
                 gain=-0.2, low=-0.3, high=-0.1, pretrain_epochs=epochs, published_epochs=500, **TIMES)
            for depth in (2, 7)]
    found = examine(CLAIMS["vime-wide"], dict(architecture=pd.DataFrame(rows)))
    assert found.verdict == verdict and ("cut short" in found.why) == (verdict == OPEN)


def test_paired_differences_are_used_where_there_are_any():
    scores = pd.DataFrame([dict(part="main", protocol="strict", replacement="uniform", arm=nan, mode="unfrozen",
                                corruption_rate=rate, metric=METRIC, mean=0.9, low=0.87, high=0.93, **TIMES)
                           for rate in (0.0, 0.3)])
    paired = scores.query("corruption_rate > 0").assign(difference=0.0, low=-0.005, high=0.005)
    claim = CLAIMS["corruption-uniform"]
    assert examine(claim, dict(corruption=scores)).verdict == OPEN
    assert examine(claim, dict(corruption=scores, corruption_difference=paired)).verdict == HOLDS


def test_replacements_are_judged_apart():
    rows = [dict(part="main", protocol="strict", replacement=replacement, arm=arm, mode=mode, corruption_rate=rate,
                 metric=METRIC, mean=mean, low=mean - 0.003, high=mean + 0.003, **TIMES)
            for replacement, kept in (("uniform", 0.2), ("marginal", 0.89)) for rate, mean in ((0.0, 0.9), (0.3, kept))
            for arm, mode in ((nan, "unfrozen"), ("logistic-genes", "baseline"), ("boosted-trees", "baseline"))]
    found = {name: examine(CLAIMS[f"corruption-{name}"], dict(corruption=pd.DataFrame(rows)))
             for name in ("uniform", "marginal")}
    assert (found["uniform"].verdict, found["marginal"].verdict) == (FAILS, HOLDS)
    assert "−0.700" in found["uniform"].measured and "logistic regression on genes −0.700" in found["uniform"].why


def test_without_tables_nothing_can_be_told_and_the_reason_is_said():
    table = claims_table({})
    assert set(table["verdict"]) == {UNKNOWN} and set(table["why"]) == {NOT_RUN}
    assert table["key"].is_unique and table["rule"].str.len().min() > 20 and table["figure"].str.len().min() > 0


@pytest.mark.parametrize("part, key", [("organs", "saved-tissue"), ("gtex-to-tcga", "saved-transfer")])
def test_a_part_that_was_not_run_leaves_its_claim_open_and_the_others_alone(collected, part, key):
    tables = read_tables(collected, TABLES)
    less = {name: table[table["part"] != part] for name, table in tables.items()}
    whole, lacking = (claims_table(found).set_index("key") for found in (tables, less))
    assert whole["why"][key] != NOT_RUN and lacking["why"][key] == NOT_RUN and lacking["verdict"][key] == UNKNOWN
    assert lacking["verdict"]["few-labels-scarf"] == whole["verdict"]["few-labels-scarf"]


def test_damaged_tables_are_no_answer_but_an_error(collected, tmp_path):
    (tmp_path/"gains.csv").write_bytes((collected/"gains.csv").read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged"): read_tables(tmp_path, TABLES)


def test_verdicts_rest_on_the_strict_protocol(collected):
    tables = read_tables(collected, TABLES)
    assert all(set(table["protocol"]) == {"strict"} for name, table in tables.items()
               if "protocol" in table and name not in ("protocol_change", WHOLE, PAPER_GAINS))


def test_the_workflow_knows_every_table_that_claims_read():
    known = {table for collection in COLLECTIONS.values() for table in collection.tables}
    every = Plan("quick", read_profile("quick") | dict(phenotypes=dict(splits=[0])))
    read = {figure: set(tables_read(figure, every)) for figure in ("table_claims", "table_recommendations")}
    compared = {"shortcuts", "shortcut_means"}   # `quick` has no part to compare with
    assert set.union(*read.values()) == set(TABLES) & known - compared
    assert all("phenotypes" not in tables_read(figure) for figure in read)


def test_only_the_study_speaks_in_readme():
    assert declared("figures/table_claims")["published"] == "study"


# answers

def differences(arm, mode, part, ends):
    "Rows of `difference` for one arm: `ends` gives, by share, the lower ends against genes and against components."
    return [dict(part=part, protocol="strict", arm=arm, mode=mode, metric=METRIC, fraction=share, reference=reference,
                 difference=low + 0.05, low=low, high=low + 0.1)
            for share, lows in ends.items() for reference, low in zip(LINEAR, lows, strict=True)
            if low is not None]


def test_share_by_share_both_linear_models_have_to_be_beaten():
    rows = differences("scarf", "unfrozen", "main", {0.05: (0.01, 0.02), 0.1: (0.01, -0.01), 0.2: (-0.01, 0.01)})
    rows += differences("vime", "linear probe", "main", {0.05: (0.01, None), 0.1: (0.0, 0.01)})   # 5 %: no comparison
    told = share_by_share(dict(difference=pd.DataFrame(rows)))
    assert "in 1 of 4 comparisons: SCARF fine-tuned at 5% of the labels" in told and "VIME" not in told


def savings(**shares):
    "Rows of `labels_saved` by arm: (against scratch, against genes), each with its lower and upper end."
    return pd.DataFrame([dict(part="main", protocol="strict", arm=arm, mode="unfrozen", metric=METRIC, target="best",
                              reference=reference, saved=ends[0], low=ends[1], high=ends[2])
                         for arm, both in shares.items()
                         for reference, ends in zip(("scratch", "logistic-genes"), both, strict=True)])


def test_labels_saved_are_told_against_scratch_and_against_genes():
    never, little = (float("nan"), float("nan"), 0.2), (0.3, 0.1, 0.5)
    rows = savings(scarf=(little, never), vime=(never, never), byol=(never, never))
    answer = how_many_labels(dict(labels_saved=rows))
    assert "Against the network from scratch: SCARF 30% (10% to 50%)" in answer
    assert "Against logistic regression on genes: nothing pretrained surely saves any" in answer
    rows = savings(scarf=(little, never), vime=(never, little), byol=(never, never))
    assert "Against logistic regression on genes: VIME 30% (10% to 50%)" in how_many_labels(dict(labels_saved=rows))


def test_other_phenotypes_are_counted_one_by_one():
    rows = pd.DataFrame([dict(part="main", outcome=outcome, arm=arm, mode="linear probe", metric=METRIC, fraction=1.0,
                              reference="logistic-genes", mean=middle, low=middle - 0.01, high=middle + 0.01)
                         for outcome, middles in dict(a=(-0.1, -0.1, 0.0), b=(0.0, -0.1, 0.0)).items()
                         for arm, middle in zip(METHODS, middles, strict=True)])
    assert "no, surely better in 0, worse in 3 of 6 comparisons" in subtypes_and_normals(dict(phenotypes=rows))
    rows.loc[rows["arm"] == "byol", ["mean", "low", "high"]] += 0.1
    assert "in part, surely better in 2, worse in 3" in subtypes_and_normals(dict(phenotypes=rows))


def test_other_data_have_an_answer_of_their_own(collected):
    tables = read_tables(collected, TABLES)
    rows = tables["gains"]
    ahead = rows["arm"].isin(METHODS) & (rows["mode"] == "unfrozen") & rows["reference"].str.startswith("logistic")
    def moved(by, part):
        changed = rows.copy()
        changed.loc[ahead & (rows["part"] == part), ["gain", "low", "high"]] += by
        changed.loc[ahead & (rows["part"] != part), ["gain", "low", "high"]] -= 1
        return elsewhere(tables | dict(gains=changed))
    part = next(name for name in made_up.PARTS if name in set(rows["part"]))
    assert "Nowhere is a pretrained network surely better" in moved(-1, part)
    assert "Surely better than the best linear model: " in moved(1, part) and "Nowhere" not in moved(1, part)
