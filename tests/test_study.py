"""Profiles, plans and the checks that stop a study that was not meant."""
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from ssl_expr import collect
from ssl_expr.cli import check_methods, main
from ssl_expr.run import check_parameters, declared, digest, parameters, read_result, repository
from ssl_expr.study import DEFAULTS, Plan, PlannedRun, code_behind, figures, profiles, read_profile, tables_read

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
    (dict(arms={"scarf": dict(method="scarf", epoch=2)}), "no parameter 'epoch'"),
])
def test_a_profile_that_would_fail_later_is_refused_when_planned(change, said):
    with pytest.raises(ValueError, match=re.escape(said)): Plan("x", DEFAULTS | change)


def test_an_unknown_method_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="'scraf'"):
        check_methods(Plan("x", DEFAULTS | dict(arms={"scarf": dict(method="scraf")})))


def test_encoder_settings_of_the_profile_reach_every_question():
    sizes = dict(arms=["scarf"], sizes=[0], fractions=[0.5])
    shapes = dict(arms=["scarf"], depths=[2], widths=[8], fractions=[0.5])
    profile = DEFAULTS | dict(encoder=dict(width=16, depth=2, dropout=0.5), arms={"scarf": dict(method="scarf")},
                              architectures=shapes, pretraining_sizes=sizes, corruption=dict(rates=[0.0]))
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


def test_repeats_of_different_seeds_are_told_apart(study_copy, monkeypatch):
    monkeypatch.setattr(collect, "repository", lambda: study_copy.folder)
    monkeypatch.setattr(collect, "read_result", lambda target: {})
    monkeypatch.setattr(collect, "load_prepared", lambda path: SimpleNamespace(patients=["a", "b"]))
    runs = [PlannedRun("label_curve", f"seed{seed}.parquet", {}, ("prepared",), "scarf", "strict", 0, seed)
            for seed in (0, 1)]
    for run in runs: pd.DataFrame(dict(repeat=[0, 1], sample=[0, 1])).to_parquet(study_copy.folder/run.target)
    predictions = collect.predictions_of(runs)
    assert predictions["repeat"].nunique() == 4 and predictions["patient"].tolist() == ["a", "b"]*2


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
