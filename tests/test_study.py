"""Profiles, plans and the checks that stop a study that was not meant."""
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ssl_expr import cli, collect, study
from ssl_expr.cli import check_methods, main
from ssl_expr.keep import kept_path
from ssl_expr.progress import so_far
from ssl_expr.reproduce import compare
from ssl_expr.run import check_parameters, declared, digest, parameters, read_result, repository
from ssl_expr.study import (
    DEFAULTS,
    Plan,
    PlannedRun,
    code_behind,
    collections,
    figures,
    parts_in,
    profiles,
    read_profile,
    runs_behind,
    simple_models,
    tables_read,
)

EXPERIMENTS = sorted(path.stem for path in (repository()/"nbs"/"experiments").glob("*.ipynb"))


@pytest.fixture
def in_study(study_copy, monkeypatch):
    monkeypatch.chdir(study_copy.folder)
    repository.cache_clear(); code_behind.cache_clear()
    yield study_copy
    repository.cache_clear(); code_behind.cache_clear()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_keeps_its_parameters_cell(experiment):
    assert "folder" in declared(f"experiments/{experiment}")


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_can_be_planned(profile):
    runs = Plan(profile, read_profile(profile)).runs
    assert all(target.startswith(f"results/{profile}/") for target in runs)
    assert all(need in runs for run in runs.values() for need in run.needs)


def test_a_run_never_needs_one_that_is_planned_after_it():
    seen = set()
    for target, run in Plan("quick", read_profile("quick")).runs.items():
        assert set(run.needs) <= seen
        seen.add(target)


def test_scratch_and_pretrained_arms_are_fine_tuned_alike():
    planned = Plan("quick", read_profile("quick")).of("label_curve")
    runs = [run for run in planned if (run.protocol, run.split) == ("strict", 0)]
    own = ("encoder", "folder")
    recipes = [{name: value for name, value in run.parameters.items() if name not in own} for run in runs]
    assert len(recipes) > 3 and all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize("text, said", [
    ("datset: toy", "no key 'datset'"),
    ("dataset: 3", "must be a str"),
    ("arms: [scarf]", "must be a dict"),
    ("dataset: [", "not valid YAML"),
])
def test_a_faulty_profile_is_refused_in_one_sentence(in_study, capsys, text, said):
    in_study.write_profile("faulty", text)
    assert main(["run", "--profile", "faulty"]) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


@pytest.mark.parametrize("command", [
    ["run", "--profile", "nope"],
    ["status", "--profile", "nope"],
    ["figures", "--profile", "nope"],
    ["notebook", "experiments/nope", "out.ipynb"],
    ["notebook", "experiments/grid", "out.ipynb", "{"],
])
def test_an_unknown_name_is_refused_in_one_sentence(command, capsys):
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("given, error", [
    (dict(epochs=2.0), TypeError),
    (dict(epochs=True), TypeError),
    (dict(epochs="2"), TypeError),
    (dict(Epochs=2), ValueError),
    (dict(rate=1, epochs=3), None),
])
def test_parameters_are_checked_for_name_and_type(given, error):
    if error is None: return check_parameters("pretrain", given, dict(epochs=1, rate=0.5))
    with pytest.raises(error): check_parameters("pretrain", given, dict(epochs=1, rate=0.5))


def test_a_name_injected_by_papermill_must_be_declared():
    with pytest.raises(ValueError, match="epoch"):
        parameters("experiments/pretrain", {"In": ["# Parameters\nepoch = 3\n"], "epoch": 3})


def test_a_changed_module_concerns_the_notebooks_that_reach_it():
    assert "ssl_expr/pretrain.py" in code_behind("experiments/pretrain")
    assert "ssl_expr/pretrain.py" not in code_behind("experiments/baselines")
    assert "ssl_expr/splits.py" in code_behind("experiments/pretrain")  # reached through prepare


def test_every_figure_but_the_method_schematic_reads_a_collected_table():
    assert [figure for figure in figures() if not tables_read(figure)] in ([], ["fig2_methods"])


@pytest.mark.parametrize("change, said", [
    (dict(architectures=dict(arms=["vyme"])), "'vyme'"),
    (dict(arms={"scarf": None}), "arm scarf must be"),
    (dict(splits={"strickt": [0]}), "'strickt'"),
    (dict(splits={"strict": 0}), "must be a list"),
    (dict(fine_tuning=dict(fractions=[2.0])), "2.0"),
    (dict(fine_tuning=dict(fractions=["a"])), "'a'"),
    (dict(fine_tuning=dict(epoch=2)), "no parameter 'epoch'"),
    (dict(corruption=dict(rates=[0.3, 0.5])), "corruption needs rate 0"),
    (dict(arms={"scratch": {}, "mixing": dict(method="mixing", donors={"tumour": ["normal"]})},
          architectures=dict(arms=["scratch", "mixing"])), "architectures names arm 'mixing', which has donors"),
    (dict(phenotypes=dict(outcomes=[dict(name="x", label="y", where=dict(a="b"))])), "where: {annotation: [values]}"),
    (dict(pretraining_sizes=dict(arms=["scratch"], sizes=[0])), "pretraining_sizes needs pretrained arms"),
    (dict(arms={"scarf": dict(method="scarf", epoch=2)}), "no parameter 'epoch'"),
])
def test_a_profile_that_would_fail_later_is_refused_when_planned(change, said):
    with pytest.raises(ValueError, match=re.escape(said)): Plan("x", DEFAULTS | change)


def test_an_unknown_method_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="'scraf'"):
        check_methods(Plan("x", DEFAULTS | dict(arms={"scarf": dict(method="scraf")})))


@pytest.mark.parametrize("key", ["baselines", "later_baselines", "readouts"])
def test_an_unknown_simple_model_is_refused_before_anything_runs(key):
    with pytest.raises(ValueError, match=f"In profile x, {key}: unknown baseline 'logistik'"):
        check_methods(Plan("x", DEFAULTS | {key: ["logistik"]}))
    check_methods(Plan("x", DEFAULTS | dict(readouts=["logistic+genes"])))


def test_encoder_settings_of_the_profile_reach_every_question():
    sizes = dict(arms=["scratch", "scarf"], sizes=[0], fractions=[0.5])
    shapes = dict(arms=["scarf"], depths=[2], widths=[8], fractions=[0.5])
    profile = DEFAULTS | dict(encoder=dict(width=16, depth=2, dropout=0.5),
                              arms={"scratch": {}, "scarf": dict(method="scarf")},
                              architectures=shapes, pretraining_sizes=sizes, corruption=dict(rates=[0.0, 0.3]))
    for run in Plan("x", profile).of("label_curve", "pretrain", "pretraining_sizes", "corruption"):
        assert (run.parameters["width"], run.parameters["depth"], run.parameters["dropout"]) == (16, 2, 0.5), run
    assert Plan("x", profile).of("architectures")[0].parameters["dropout"] == 0.5


def test_every_run_under_the_paper_protocol_keeps_one_nested_order_of_labels():
    runs = Plan("paper", read_profile("paper")).runs.values()
    asked = [run for run in runs if run.experiment not in ("prepare", "pretrain", "geometry")]
    assert len(asked) > 10 and all(run.parameters["vary_subset"] is False for run in asked)


def test_with_two_seeds_every_arm_and_baseline_has_the_same_repeats():
    profile = DEFAULTS | dict(seeds=[0, 1], baselines=["logistic-genes"],
                              arms={"scratch": {}, "scarf": dict(method="scarf")})
    plan = Plan("x", profile)
    for experiment in ("label_curve", "baselines"):
        assert {run.seed for run in plan.of(experiment)} == {0, 1}
    assert len(plan.of("pretrain")) == 2 and len(plan.of("label_curve")) == 4


def test_repeats_of_different_seeds_are_told_apart(tmp_path):
    runs = [PlannedRun("label_curve", f"results/x/seed{seed}.parquet", {}, ("prepared",), "scarf", "strict", 0, seed)
            for seed in (0, 1)]
    (tmp_path/"results/x").mkdir(parents=True)
    for run in runs:
        pd.DataFrame(dict(repeat=[0, 1], sample=[0, 1], patient=["a", "b"])).to_parquet(tmp_path/run.target)
    plan = SimpleNamespace(source=lambda run: tmp_path/run.target)
    predictions = collect.predictions_of(plan, runs)
    assert predictions["repeat"].nunique() == 4 and set(predictions["arm"]) == {"scarf"}


def test_the_epoch_kept_is_the_median_over_runs_and_not_over_their_samples():
    def run(epochs, n_samples=1, split=0, repeat=0, protocol="strict", arm="scarf", mode="unfrozen", fraction=0.1):
        return pd.DataFrame(dict(protocol=protocol, arm=arm, mode=mode, fraction=fraction, split=split, repeat=repeat,
                                 sample=range(n_samples), epochs=epochs))
    predictions = pd.concat([
        run(10, n_samples=5), run(20, repeat=1), run(60, split=1),                     # median 20, of all samples 10
        run(40, fraction=1.0), run(50, fraction=1.0, repeat=1), run(90, protocol="paper"), run(3, mode="frozen"),
        run(7, arm="scratch"), run(0, arm="logistic-genes", mode="baseline")], ignore_index=True)
    table = collect.epochs_kept(predictions, 100)
    assert {tuple(row) for row in table.to_numpy()} == {
        ("strict", "scarf", "unfrozen", 0.1, 20, 100), ("strict", "scarf", "unfrozen", 1.0, 45, 100),
        ("paper", "scarf", "unfrozen", 0.1, 90, 100), ("strict", "scarf", "frozen", 0.1, 3, 100),
        ("strict", "scratch", "unfrozen", 0.1, 7, 100)}
    assert [*table] == ["protocol", "arm", "mode", "fraction", "epoch", "most"]


def test_a_linear_probe_is_planned_for_every_arm_where_it_is_asked_for():
    asked = DEFAULTS | dict(arms={"scratch": {}, "scarf": {"method": "scarf"}}, fine_tuning={"fractions": [0.5]})
    assert not Plan("x", asked).of("linear_probe")
    plan = Plan("x", asked | dict(linear_probe=True, parts={"other": {"seeds": [1]}}))
    probes = {run.arm: run for run in plan.of("linear_probe")}
    assert set(probes) == {"scratch", "scarf"} and {run.part for run in probes.values()} == {"main"}
    assert probes["scarf"].parameters["encoder"] in plan.runs and probes["scratch"].parameters["encoder"] == ""
    assert all(run.parameters["fractions"] == [0.5] for run in probes.values())


def test_encoders_are_read_out_as_asked_and_together_without_any_fine_tuning():
    asked = DEFAULTS | dict(arms={"scarf": {"method": "scarf"}}, seeds=[0, 1, 2], linear_probe=True,
                            ensembles=["scarf"], readouts=["logistic", "self-training-C0.1"],
                            fine_tuning={"modes": [], "fractions": [0.5]})
    plan = Plan("x", asked)
    assert not plan.of("label_curve")
    alone, together = ([run for run in plan.of("linear_probe") if (run.arm == "scarf-ensemble") == many]
                       for many in (False, True))
    whole, *more = together
    assert [run.parameters["encoder"] for run in alone] == [whole.parameters["encoder"], *whole.parameters["beside"]]
    assert set(whole.parameters["beside"]) < set(whole.needs)
    assert [run.seed for run in together] == asked["seeds"], "the same draws of labels as the others"
    assert all(run.parameters | dict(seed=0, folder="") == whole.parameters | dict(folder="") for run in more)
    assert all(run.parameters["readouts"] == asked["readouts"] for run in plan.of("linear_probe"))


def test_an_ensemble_is_reported_with_its_arm():
    from ssl_expr.progress import _belongs
    parts = dict(main=DEFAULTS | dict(arms={"scarf": {}}, splits={"strict": [0]}))
    def belongs(arm): return _belongs(PlannedRun("linear_probe", "x", {}, arm=arm, protocol="strict", split=0), parts)
    assert belongs("scarf") and belongs("scarf-ensemble") and not belongs("vime-ensemble")


@pytest.mark.parametrize("change", [dict(ensembles=["scratch"]), dict(ensembles=["x"]), dict(linear_probe=False)])
def test_an_ensemble_of_what_is_not_pretrained_or_not_read_out_is_refused(change):
    asked = DEFAULTS | dict(arms={"scratch": {}, "scarf": {"method": "scarf"}}, linear_probe=True, ensembles=["scarf"])
    with pytest.raises(ValueError, match="ensembles names"): Plan("x", asked | change)


def test_the_verdict_spares_exactly_the_patients_that_the_search_looked_at():
    search, verdict = (read_profile(name) for name in ("search", "unmixing"))
    searched = verdict["prepare"]["searched"]
    assert searched == search["prepare"] | {"splits": search["splits"]["strict"]}
    assert not set(searched["splits"]) & set(verdict["splits"]["strict"])
    assert {name: value for name, value in verdict["prepare"].items() if name != "searched"} == search["prepare"]


def test_a_result_that_was_changed_after_its_run_is_refused(tmp_path):
    target = tmp_path/"label_curve.parquet"
    target.write_bytes(b"numbers")
    record = dict(parameters={}, sha256=digest(target), facts={}, cost={}, provenance={})
    target.with_suffix(".json").write_text(json.dumps(record))
    assert read_result(target) == record
    target.write_bytes(b"better numbers")
    with pytest.raises(ValueError, match="label_curve.parquet is damaged or was changed"): read_result(target)
    target.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match="label_curve.json is not the record of a run"): read_result(target)


TOP = DEFAULTS | dict(
    dataset="coadread", prepare=dict(label="subtype", genes=50), splits={"strict": [0, 1], "paper": [0]}, seeds=[0, 1],
    arms={"scratch": {}, "scarf": dict(method="scarf", epochs=5), "marginal": dict(method="scarf")},
    replacement_arms=["marginal"], baselines=["logistic-genes"], fine_tuning=dict(epochs=3, repeats=2),
    corruption=dict(rates=[0, 0.5]))


def with_parts(**parts): return Plan("x", TOP | dict(parts=parts))


def test_a_part_inherits_what_is_compared_and_asks_for_itself_how_often():
    plan = with_parts(few=dict(prepare=dict(genes=20)), toy=dict(dataset="toy"))
    few, toy = plan.parts["few"], plan.parts["toy"]
    assert few["prepare"] == dict(label="subtype", genes=20) and toy["prepare"] == {}
    for part in (few, toy):
        assert (part["splits"], part["seeds"], part["corruption"]) == ({"strict": [0]}, [0], {})
        assert list(part["arms"]) == ["scratch", "scarf"] and part["baselines"] == ["logistic-genes"]
    assert {run.target.split("/")[2] for run in plan.of("label_curve", part="few")} == {"few"}


@pytest.mark.parametrize("arms, want", [
    (["scarf"], {"scarf": dict(method="scarf", epochs=5)}),
    (["marginal"], {"marginal": dict(method="scarf")}),
    ({"scarf": dict(epochs=9)}, {"scratch": {}, "scarf": dict(method="scarf", epochs=9)}),
    ({"scratch": None}, {"scarf": dict(method="scarf", epochs=5)}),
])
def test_a_part_names_arms_or_changes_their_settings(arms, want):
    assert with_parts(few=dict(arms=arms)).parts["few"]["arms"] == want


def test_parts_share_the_runs_that_are_the_same_and_no_others():
    plan = with_parts(longer=dict(against="main", fine_tuning=dict(epochs=4)), few=dict(prepare=dict(genes=20)))
    main, longer = ({run.target for run in plan.of("prepare", "pretrain", "baselines", part=part)}
                    for part in ("main", "longer"))
    assert longer and longer < main and len(plan.of("prepare")) == 4
    curves = plan.of("label_curve", part="longer")
    assert all(run.target not in {each.target for each in plan.of("label_curve", part="main")} for run in curves)
    assert {need for run in curves for need in run.needs} <= main
    assert not {run.target for run in plan.of("prepare", part="few")} & main


def test_a_later_baseline_has_runs_of_its_own_and_leaves_the_others_alone():
    asked = TOP | dict(pretraining_sizes=dict(arms=["scratch", "scarf"], sizes=[20, 0]))   # and corruption
    first, later = (Plan("x", asked | given) for given in ({}, dict(later_baselines=["logistic-pca"])))
    added = [run for target, run in later.runs.items() if target not in first.runs]
    assert all(later.runs[target] == run for target, run in first.runs.items())
    assert len(added) == len(first.of("baselines"))
    assert {run.experiment for run in added} == {"baselines"}
    assert all(run.parameters["baselines"] == ["logistic-pca"] for run in added)


@pytest.mark.parametrize("given, want", [
    ({}, ["logistic-genes", "logistic-pca"]),
    (dict(baselines=["trees"]), ["trees"]),
    (dict(baselines=["trees"], later_baselines=["logistic-pca"]), ["trees", "logistic-pca"]),
])
def test_a_part_that_names_its_baselines_names_the_later_ones_too(given, want):
    plan = Plan("x", TOP | dict(later_baselines=["logistic-pca"], parts=dict(few=given)))
    assert simple_models(plan.parts["few"]) == want


@pytest.mark.parametrize("given, said", [
    (dict(later_baselines=["logistic-genes"]), "baselines and later_baselines name logistic-genes twice: name it once"),
    (dict(baselines=["trees", "trees"]), "baselines and later_baselines name trees twice"),
    (dict(readouts=["logistic", "logistic"]), "readouts name logistic twice"),
])
def test_a_model_that_is_named_twice_is_refused_before_anything_runs(given, said):
    with pytest.raises(ValueError, match=f"part few, {said}"): with_parts(few=given)


@pytest.mark.parametrize("given, said", [
    (dict(arms={"scarf": dict(widht=5)}), "part few, arm scarf: experiments/pretrain has no parameter 'widht'"),
    (dict(prepare=dict(annotation="a.csv")), "part few: experiments/prepare has no parameter 'annotation'"),
])
def test_a_misspelt_setting_is_refused_where_it_stands(given, said):
    with pytest.raises(ValueError, match=f"In profile x, {said}"): with_parts(few=given)


def test_a_default_that_is_spelt_out_does_not_make_another_run():
    plan = with_parts(same=dict(prepare=dict(min_class_size=15)))
    assert not [target for target in plan.runs if "/same/" in target]


def test_a_part_may_ask_a_question_that_the_profile_does_not():
    plan = with_parts(sizes=dict(pretraining_sizes=dict(arms=["scratch", "scarf"], sizes=[20, 0])))
    assert [run.part for run in plan.of("pretraining_sizes")] == ["sizes", "sizes"]
    assert parts_in("pretraining_sizes", plan) == ["sizes"] and "architectures" not in collections(plan)


def test_other_phenotypes_are_asked_of_the_first_encoders_under_the_first_protocol_only():
    asked = dict(splits=[1], outcomes=[dict(name="side", label="side")], survival=True)
    plan = Plan("x", TOP | dict(phenotypes=asked | dict(arms=["scarf"])))
    run, = plan.of("phenotypes")
    encoder = "results/x/coadread/strict/split1/scarf/seed0/encoder.safetensors"
    assert run.parameters["encoders"] == {"scarf": encoder} and run.parameters["survival"] is True
    assert run.needs == (run.parameters["prepared"], encoder) and run.kept == ("phenotypes.parquet", "survival.parquet")
    every, = Plan("x", TOP | dict(phenotypes=asked)).of("phenotypes")
    assert list(every.parameters["encoders"]) == ["scarf", "marginal"]
    for arm, said in (("scratch", "no encoder"), ("scraf", "'scraf'")):
        with pytest.raises(ValueError, match=said): Plan("x", TOP | dict(phenotypes=asked | dict(arms=[arm])))


@pytest.mark.parametrize("parts, said", [
    (dict(main={}), "may not be called main"),
    (dict(coadread={}), "may not be called main or like the profile's data"),
    ({"a/b": {}}, "letters, digits"),
    (dict(few=dict(against="fwe")), "got 'fwe'"),
    (dict(few=dict(against="few")), "got 'few'"),
    (dict(few=dict(parts={})), "no key 'parts'"),
    (dict(few=dict(keep=True)), "no key 'keep'"),
    (dict(few=dict(seeds=3)), "seeds must be a list"),
    (dict(few=dict(arms=["scraf"])), "'scraf'"),
    (dict(few=dict(arms={"scraf": {}}, corruption=dict(rate=0))), "no parameter 'rate'"),
    (dict(few=[]), "must be a set of keys"),
])
def test_a_faulty_part_is_refused_when_planned(parts, said):
    with pytest.raises((ValueError, TypeError), match=re.escape(said)): with_parts(**parts)


def test_settings_are_the_papers_where_the_task_is_and_what_was_used_where_it_is_ours():
    arms = dict(scratch={}, scarf=dict(method="scarf", epochs=7), wide=dict(method="mixing", width=512),
                unmixing=dict(method="unmixing", settings=dict(agreement=0.5)))
    table = collect.settings(Plan("x", TOP | dict(arms=arms, encoder=dict(depth=3))), [])["settings"]
    found = {(row.arm, row.setting): (row.paper, row.code, row.used) for row in table.itertuples()}
    assert found["scarf", "epochs"] == (1000, 1000, 7) and found["scarf", "symmetric"] == (False, True, False)
    assert found["scarf", "schedule"] == ("constant", "constant", "constant")
    assert found["wide", "schedule"] == ("", "", "one-cycle") and found["wide", "largest_share"] == ("", "", 0.45)
    assert found["wide", "width"][2] == 512 and found["unmixing", "width"][2] == 256    # that of the experiment
    assert found["unmixing", "depth"][2] == 3 and found["unmixing", "agreement"] == ("", "", 0.5)


def test_a_comparison_rests_on_the_runs_of_both_parts():
    plan = with_parts(few=dict(prepare=dict(genes=20)), leaky=dict(against="few", prepare=dict(genes=30)))
    assert parts_in("shortcuts", plan) == ["leaky"]
    assert {run.target.split("/")[2] for run in runs_behind("shortcuts", plan)} == {"few", "leaky"}
    assert "shortcuts" not in collections(with_parts(few=dict(prepare=dict(genes=20))))


def test_a_figure_is_drawn_only_by_profiles_that_make_its_tables():
    drawn = figures(Plan("x", TOP))
    assert "figS5_corruption" in drawn and "tableS4_grid" not in drawn
    quick = figures(Plan("quick", read_profile("quick")))
    assert len(quick) >= 14 and {"fig4_architecture", "tableS4_grid", "table_protocols"} <= set(quick)


def test_a_record_with_a_value_that_the_plan_no_longer_states_is_not_as_planned():
    run = Plan("x", TOP).of("pretrain")[0]
    made = declared("experiments/pretrain") | run.parameters
    assert run.made_so(dict(parameters=made)) and run.made_so(dict(parameters=run.parameters))
    assert not run.made_so(dict(parameters=made | dict(epochs=6)))
    assert not run.made_so(dict(parameters=made | dict(batch_size=7)))
    assert run.made_so(dict(parameters={name: value for name, value in made.items() if name != "donors"}))
    assert not run.made_so(dict(parameters=made | dict(donors={"tumour": ["normal"]})))


def test_a_kept_run_counts_only_while_all_it_rests_on_is_as_planned(tmp_path, monkeypatch):
    for module in (study, cli): monkeypatch.setattr(module, "repository", lambda: tmp_path)
    monkeypatch.setattr(cli, "SMALLER", ())
    plan = Plan("x", TOP | dict(keep=True))
    run = next(run for run in plan.of("label_curve") if run.arm == "scarf")
    for each in plan.with_needs([run]):
        target = tmp_path/each.target
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in (target.name, *each.kept): target.with_name(name).write_text(name)
        record = dict(parameters=each.parameters, sha256=digest(target), facts={}, cost={}, provenance={})
        target.with_suffix(".json").write_text(json.dumps(record))
    assert len(cli.keep_finished(plan)) == 3 and plan.kept(run) and plan.at_hand(run)
    assert run not in plan.to_make() and plan.source(run) == tmp_path/kept_path(run.target)
    shutil.rmtree(tmp_path/"results")
    assert Plan("x", TOP | dict(keep=True)).kept(run) and not plan.at_hand(run)
    other = Plan("x", TOP | dict(keep=True, prepare=dict(label="subtype", genes=51)))
    assert not other.kept(run) and other.source(run) == tmp_path/run.target
    assert set(cli.spoilt(other).values()) == {"kept of another plan"}
    assert not Plan("x", TOP).kept(run), "a profile that keeps nothing reads nothing kept"
    (tmp_path/kept_path(run.target)).write_text("better numbers")
    assert not plan.kept(run) and cli.spoilt(plan) == {kept_path(run.target): "damaged"}
    assert [each.experiment for each in plan.with_needs([run])] == ["prepare", "pretrain", "label_curve"]
    assert all(each in plan.to_make() for each in plan.with_needs([run]))


def test_a_repeated_run_is_judged_by_the_interval_of_the_kept_one(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    def predict(share, seed):
        random = np.random.default_rng(seed)
        called = np.where(random.random(60) < share, truth, (truth + 1) % 3)
        patient = np.arange(60).astype(str)
        return pd.DataFrame(dict(mode="frozen", fraction=0.5, repeat=0, sample=range(60), patient=patient, truth=truth,
                                 n_labels=9, called=called, log_loss=0.5, confidence=0.9, auroc=0.8))
    run = PlannedRun("label_curve", "", {}, arm="scarf", protocol="strict")
    for name, share, seed in (("kept", 0.7, 1), ("same", 0.7, 1), ("near", 0.7, 2), ("far", 0.2, 3)):
        predict(share, seed).to_parquet(tmp_path/f"{name}.parquet")
    answers = {name: compare(run, tmp_path/"kept.parquet", tmp_path/f"{name}.parquet")
               for name in ("same", "near", "far")}
    assert answers["same"] == (True, "bit-identical")
    assert answers["near"][0] and answers["near"][1].startswith("within") and "at 50%" in answers["near"][1]
    assert not answers["far"][0] and answers["far"][1].startswith("outside")


def test_a_shortcut_tested_on_other_samples_is_not_called_paired():
    def part(first):
        return pd.DataFrame(dict(protocol="strict", split=0, arm="scarf", mode="frozen", fraction=0.5, repeat=0,
                                 sample=range(first, first + 5), patient=[f"p{i}" for i in range(first, first + 5)]))
    assert collect.in_common(part(0), part(0))[2] is True
    assert collect.in_common(part(0), part(1))[2] is False
    with pytest.raises(ValueError, match="in common"): collect.in_common(part(0), part(0).assign(split=1))


def accuracies(protocol, first, rates, split=0, n=200):
    "Predictions of two classes by arm; `rates`: the share that each arm calls rightly."
    frames = []
    for arm, right in rates.items():
        truth = np.arange(n) % 2
        called = np.where(np.arange(n) < right*n, truth, 1 - truth)
        frames += [pd.DataFrame(dict(
            protocol=protocol, split=split, arm=arm, mode="unfrozen", fraction=fraction, repeat=0, n_labels=20,
            sample=range(first, first + n), patient=[f"p{i}" for i in range(first, first + n)], truth=truth,
            called=called, log_loss=0.5, confidence=0.9, auroc=0.8)) for fraction in (0.1, 1.0)]
    return pd.concat(frames, ignore_index=True)


def test_the_whole_protocol_s_change_is_that_of_two_independent_estimates():
    paper = accuracies("paper", 500, dict(scratch=0.7, scarf=0.9))
    strict = accuracies("strict", 0, dict(scratch=0.8, scarf=0.8))
    aside = accuracies("strict", 900, dict(scratch=0.1, scarf=0.1), split=1)   # a split that `paper` did not run
    tables = collect.protocol_changes(pd.concat([paper, strict, aside], ignore_index=True))
    change = tables["protocol_change"].query("metric == 'accuracy' and fraction == 1").set_index("arm")
    expected = {"scratch": -0.1, "scarf": 0.1, "scarf − scratch": 0.2}
    assert {arm: round(value, 6) for arm, value in change["difference"].items()} == expected
    assert not change["paired"].any() and set(change["against"]) == {"strict protocol"}
    alone = [2*1.96*np.sqrt(right*(1 - right)/200) for right in (0.7, 0.8)]
    width = change.loc["scratch", "high"] - change.loc["scratch", "low"]
    assert abs(width/np.hypot(*alone) - 1) < 0.1
    assert set(tables["protocol_change_means"]["upto"]) == {0.1, 0.3, 1.0}


def test_one_protocol_alone_leaves_an_empty_table_of_changes():
    tables = collect.protocol_changes(accuracies("strict", 0, dict(scratch=0.8)))
    assert all(table.empty and {"arm", "difference", "verdict"} <= set(table) for table in tables.values())


# -------------------------------------------------------------------- against the best simple model, labels needed

def collected(monkeypatch, name, modes, baselines=(), aside=()):
    "Tables of a collection, of one part whose arms have the given modes."
    rates = {arm: 0.6 + 0.04*i for i, arm in enumerate([*modes, *baselines])}
    every = accuracies("strict", 0, rates).assign(epochs=0)
    called = [every[every["arm"] == arm].assign(mode=mode) for arm in modes for mode in modes[arm]]
    simple = every[every["arm"].isin(baselines)].assign(mode="baseline")
    monkeypatch.setattr(collect, "predictions_of", lambda plan, runs: pd.concat([*called, simple], ignore_index=True))
    arms = {arm: {} if arm == "scratch" else dict(method="scarf") for arm in modes}
    own = dict(arms=arms, baselines=[*baselines[:1]], later_baselines=[*baselines[1:]],
               replacement_arms=[*aside], fine_tuning={})
    run = PlannedRun("linear_probe", "a", {}, ("prepared",), protocol="strict")
    plan = SimpleNamespace(parts=dict(main=own), runs=dict(prepared=run),
                           record=lambda run: dict(facts=dict(rows=dict(pretrain=900))))
    return collect.COLLECTORS[name](plan, [run])


READ = {"unmixing": ["linear probe", "self-training"], "scarf": ["linear probe"]}


@pytest.mark.parametrize("baselines", [["logistic-genes", "trees"], ["trees"], []])
def test_a_part_without_the_network_from_scratch_has_every_table_of_curves(monkeypatch, tmp_path, baselines):
    tables = collected(monkeypatch, "curves", READ, baselines)
    assert set(tables) == set(study.COLLECTIONS["curves"].tables)
    for name, table in tables.items():
        table.to_csv(tmp_path/f"{name}.csv", index=False)
        assert {"arm", "mode"} <= set(pd.read_csv(tmp_path/f"{name}.csv")), "a figure could not read it"
    assert set(tables["label_curve"]["arm"]) == {*READ, *baselines} and len(tables["gains"])
    assert tables["replacement"].empty and tables["kept_epochs"].empty
    assert set(tables["difference"]["reference"]) == {*baselines}
    assert set(tables["labels_saved"]["reference"]) == {*baselines} & {"logistic-genes"}


def test_the_network_from_scratch_still_stands_beside_replacements(monkeypatch):
    modes = {arm: ["unfrozen"] for arm in ("scratch", "scarf", "scarf-marginal")}
    tables = collected(monkeypatch, "curves", modes, aside=["scarf-marginal"])
    assert set(tables["replacement"]["arm"]) == {*modes} and "scarf-marginal" in set(tables["gains"]["arm"])
    assert set(tables["label_curve"]["arm"]) == {"scratch", "scarf"}


def test_every_arm_and_mode_is_set_beside_the_best_simple_model(monkeypatch):
    tables = collected(monkeypatch, "best", READ, ["logistic-genes", "trees"])
    over, needed = (tables[name] for name in study.COLLECTIONS["best"].tables)
    assert list(over) == [*collected(monkeypatch, "curves", READ, ["trees"])["difference"], "best"]
    assert set(over["best"]) == {"trees"}, "the highest rate"
    at = over.query("metric == 'balanced_accuracy' and fraction == 1").set_index(["arm", "mode"])["difference"]
    assert at.round(6).to_dict() == {("unmixing", "linear probe"): -0.12, ("unmixing", "self-training"): -0.12,
                                     ("scarf", "linear probe"): -0.08}
    assert len(needed) == 6*len(collect.LEVELS) and needed["arm"].nunique() == 5   # with the best itself
    itself = needed[needed["arm"] == "best simple model"]
    assert itself["factor"].isna().all() and not itself["factor_at_least"].any()
    assert set(needed["at_most"]) | set(needed["factor_at_most"]) <= {True, False}
    row = needed.query("arm == 'scarf' and level == 0.7").iloc[0]
    assert np.isnan(row["labels"]) and row["factor_at_most"] and row["factor"] == 1   # 0.64 never, 0.72 at once


def test_a_part_without_simple_models_has_no_best_of_them(monkeypatch):
    tables, full = (collected(monkeypatch, "best", READ, simple) for simple in ([], ["trees"]))
    for name, table in tables.items(): assert table.empty and list(table) == list(full[name]), name


def test_a_search_sets_everything_tried_beside_the_arm_that_it_varies_at_few_labels(monkeypatch):
    rates = {"unmixing": {0.1: 0.8, 1.0: 0.5}, "wider": {0.1: 0.84, 1.0: 0.5}, "logistic-genes": {0.1: 0.6, 1.0: 0.9}}
    every = pd.concat([accuracies("strict", 0, {arm: by[fraction] for arm, by in rates.items()}).query(
        "fraction == 1").assign(fraction=fraction, epochs=0) for fraction in (0.1, 1.0)], ignore_index=True)
    every["mode"] = np.where(every["arm"] == "logistic-genes", "baseline", "linear probe")
    monkeypatch.setattr(collect, "predictions_of", lambda plan, runs: every)
    pretrained = [PlannedRun("pretrain", f"{arm}{n}", {}, arm=arm) for arm in ("unmixing", "wider") for n in (1, 2)]
    minutes = dict(unmixing1=1, unmixing2=2, wider1=4, wider2=4)
    plan = SimpleNamespace(profile=dict(search="unmixing"), of=lambda *names, part: pretrained,
                           record=lambda run: dict(cost=dict(cpu_seconds=60*minutes[run.target])))
    table = collect.search(plan, pretrained)["search"].set_index("arm")
    assert table["mean"].round(2).to_dict() == {arm: by[0.1] for arm, by in rates.items()}, "few labels only"
    assert table["difference"].round(6).dropna().to_dict() == {"wider": 0.04}, "under the same read-out only"
    assert table.loc["wider", "low"] <= 0.04 <= table.loc["wider", "high"]
    assert table["minutes"].dropna().to_dict() == {"unmixing": 1.5, "wider": 4}
    other = every[every["arm"] == "unmixing"].assign(mode="other")
    other["called"] = 1 - other["called"]
    every = pd.concat([every, other], ignore_index=True)
    table = collect.search(plan, pretrained)["search"].query("arm == 'unmixing'").set_index("mode")
    assert table["difference"].isna().to_dict() == {"linear probe": True, "other": False}, "beside its best read-out"
    assert table.loc["other", "difference"] < 0


def test_a_profile_draws_the_figures_that_it_names_and_no_others():
    some = dict(linear_probe=True, labels_needed=True, baselines=["logistic-genes"])
    assert len(figures(Plan("x", TOP | some))) > 3
    assert figures(Plan("x", TOP | some | dict(figures=["fig_labels_needed"]))) == ["fig_labels_needed"]
    with pytest.raises(ValueError, match="there is no figure 'fig_label'"): Plan("x", TOP | dict(figures=["fig_label"]))


def test_only_a_search_makes_the_table_of_what_was_tried():
    made = {asked: Plan("x", TOP | dict(search=asked, linear_probe=True)) for asked in ("scarf", "")}
    assert [("search" in collections(plan), "table_search" in figures(plan)) for plan in made.values()] == [
        (True, True), (False, False)]


def test_labels_needed_are_counted_only_where_a_profile_asks_for_them():
    drawn = {asked: Plan("x", TOP | dict(labels_needed=asked, baselines=["logistic-genes"])) for asked in (True, False)}
    assert [("best" in collections(plan), "fig_labels_needed" in figures(plan)) for plan in drawn.values()] == [
        (True, True), (False, False)]
    for profile in ("quick", "study"): assert "best" not in collections(Plan(profile, read_profile(profile)))
    with pytest.raises(ValueError, match="no key 'labels_needed'"): with_parts(few=dict(labels_needed=True))


# ------------------------------------------------------------------------------------- an unfinished study

@pytest.mark.parametrize("missing, splits, unfinished", [
    (lambda run: False, {"strict": [0, 1, 2], "paper": [0]}, []),
    (lambda run: run.part == "main" and run.split == 1 and run.experiment == "linear_probe",
     {"strict": [0, 2], "paper": [0]}, ["strict split 1"]),
    (lambda run: run.experiment == "geometry", {"strict": [0, 1, 2], "paper": [0]}, ["geometry"]),
    (lambda run: run.experiment == "phenotypes" and run.split, {"strict": [0, 1, 2], "paper": [0]},
     ["phenotypes on split 1", "phenotypes on split 2"]),
    (lambda run: run.part == "split-by-sample" and run.split == 1, {"strict": [0, 1, 2], "paper": [0]},
     ["strict split 1 of split-by-sample"]),
    (lambda run: run.arm == "scarf-marginal", {"strict": [0, 1, 2], "paper": [0]}, ["arm scarf-marginal"]),
    (lambda run: run.protocol == "paper", {"strict": [0, 1, 2]}, ["paper split 0"]),
])
def test_what_is_reported_of_an_unfinished_study_is_complete_and_was_planned(missing, splits, unfinished):
    plan = Plan("study", read_profile("study"))
    plan.kept = lambda run: not missing(run)
    found = so_far(plan)
    assert set(found.runs) <= set(plan.runs) and not any(map(missing, found.runs.values()))
    assert found.parts["main"]["splits"] == splits and found.unfinished == unfinished
    for own in found.parts.values():
        other = found.parts.get(own["against"], own)
        assert all(set(numbers) <= set(other["splits"][protocol]) for protocol, numbers in own["splits"].items())
    for name in collections(found): assert {run.target for run in runs_behind(name, found)} <= set(found.runs)


def test_an_unfinished_study_without_a_first_split_is_refused():
    plan = Plan("study", read_profile("study"))
    plan.kept = lambda run: run.protocol == "paper"
    with pytest.raises(ValueError, match="No split of profile study is finished"): so_far(plan)
