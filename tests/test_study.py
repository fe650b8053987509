"""Profiles, plans and the checks that stop a study that was not meant."""
import pytest

from ssl_expr.cli import main
from ssl_expr.run import check_parameters, declared, parameters, repository
from ssl_expr.study import DEFAULTS, Plan, code_behind, figures, profiles, read_profile, tables_read

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
    runs = Plan("quick", read_profile("quick")).of("label_curve")
    recipes = [{name: value for name, value in run.parameters.items() if name not in ("encoder", "folder")} for run in runs
               if (run.protocol, run.split) == ("strict", 0)]
    assert len(recipes) > 3 and all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize("text, said", [
    ("datset: toy", "no key 'datset'"), ("dataset: 3", "must be a str"), ("arms: [scarf]", "must be a dict"), ("dataset: [", "not valid YAML"),
])
def test_a_faulty_profile_is_refused_in_one_sentence(in_study, capsys, text, said):
    in_study.write_profile("faulty", text)
    assert main(["run", "--profile", "faulty"]) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


@pytest.mark.parametrize("command", [["run", "--profile", "nope"], ["status", "--profile", "nope"], ["figures", "--profile", "nope"],
                                     ["notebook", "experiments/nope", "out.ipynb"], ["notebook", "experiments/grid", "out.ipynb", "{"]])
def test_an_unknown_name_is_refused_in_one_sentence(command, capsys):
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("given, error", [(dict(epochs=2.0), TypeError), (dict(epochs=True), TypeError), (dict(epochs="2"), TypeError),
                                          (dict(Epochs=2), ValueError), (dict(rate=1, epochs=3), None)])
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


def test_an_arm_of_another_question_must_exist():
    with pytest.raises((KeyError, ValueError), match="vyme"):
        Plan("x", DEFAULTS | dict(architectures=dict(arms=["vyme"])))
