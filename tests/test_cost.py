"""What a study takes is known before it starts: it follows the work, the machine, and what has finished."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import ssl_expr.pretrain  # noqa: F401 registers the objectives
from ssl_expr import cost, rates
from ssl_expr.cost import PUBLIC, STEPS, Cost, Shape, bill, expected, kinds_of, reckoned, runs_at_once, wall_seconds
from ssl_expr.objective import objectives
from ssl_expr.prepare import prepare
from ssl_expr.rates import (
    ELSEWHERE,
    FORM,
    fit_rates,
    here,
    kind_of,
    known_rates,
    measure,
    rates_shipped,
    stored,
    training,
)
from ssl_expr.run import declared, processor
from ssl_expr.study import DEFAULTS, TARGETS, Plan, PlannedRun, profiles, read_profile

SHAPE = Shape(samples=600, genes=2000, classes=3, pretrain=400, train=280, validation=70, test=90, measured=20_000)
ARMS = {"scratch": {}, "scarf": dict(method="scarf", epochs=3)}


@pytest.fixture(autouse=True)
def own_shapes(monkeypatch, tmp_path): monkeypatch.setattr(cost, "shapes_file", lambda: tmp_path/"shapes.json")


@pytest.fixture
def shipped(): return stored(rates_shipped())


def took(experiment, shape=SHAPE, **values):
    run = PlannedRun(experiment, "", declared(f"experiments/{experiment}") | values)
    return reckoned(run, shape, stored(rates_shipped()))


def test_every_experiment_can_be_reckoned(): assert set(STEPS) == set(TARGETS)


@pytest.mark.parametrize("less, more", [
    (dict(epochs=10), dict(epochs=20)), (dict(epochs=10, width=64), dict(epochs=10, width=512)),
    (dict(epochs=10, depth=2), dict(epochs=10, depth=8))])
@pytest.mark.parametrize("method", sorted(objectives()))
def test_more_epochs_width_or_depth_take_longer(method, less, more):
    assert took("pretrain", method=method, **less).cpu_seconds < took("pretrain", method=method, **more).cpu_seconds


@pytest.mark.parametrize("experiment", sorted(TARGETS))
@pytest.mark.parametrize("part", ["genes", "samples"])
def test_more_genes_or_samples_never_cost_less_and_take_more_memory(experiment, part):
    larger = SHAPE._replace(genes=8000, measured=80_000) if part == "genes" else SHAPE._replace(
        samples=6000, pretrain=4000, train=2800, validation=700, test=900)
    small, large = took(experiment), took(experiment, larger)
    assert large.memory_mb > small.memory_mb and large.disk_mb >= small.disk_mb
    assert large.cpu_seconds > small.cpu_seconds or (experiment, part) == ("geometry", "genes")


def test_more_shares_and_repeats_of_labels_take_longer_and_a_frozen_encoder_less():
    few, more, again = (took("label_curve", fractions=fractions, repeats=repeats).cpu_seconds
                        for fractions, repeats in (([0.1], 1), ([0.1, 1.0], 1), ([0.1, 1.0], 3)))
    assert few < more < again
    frozen, whole = (took("label_curve", modes=[mode]).cpu_seconds for mode in ("frozen", "unfrozen"))
    assert frozen < whole/3


def test_a_quick_rate_is_expected_to_stop_sooner_but_not_before_its_patience():
    slow, quick, patient = (took("label_curve", **given).cpu_seconds for given in (
        dict(learning_rate=1e-4), dict(learning_rate=1e-3), dict(learning_rate=1e-3, patience=100)))
    assert quick < 0.8*slow and patient == slow


@pytest.mark.parametrize("profile", profiles())
def test_every_run_of_every_profile_has_a_positive_finite_cost(profile, monkeypatch, shipped):
    monkeypatch.setattr(Plan, "to_make", lambda plan: list(plan.runs.values()))   # as if nothing were kept
    monkeypatch.setattr(Plan, "made", lambda plan, run: None)
    monkeypatch.setattr(cost, "read_record", lambda target: None)
    plan = Plan(profile, read_profile(profile))
    costs = expected(plan, shipped)
    assert set(costs) == set(plan.runs)
    for target, each in costs.items(): assert all(math.isfinite(number) and number > 0 for number in each), target


def test_what_is_kept_costs_nothing_more(shipped):
    assert expected(Plan("study", read_profile("study")), shipped) == {}


@pytest.mark.parametrize("values", [
    dict(), dict(protocol="paper", disjoint_pretraining=True, labelled_share=0.5), dict(genes=50, labelled_only=True),
    dict(test_share=0.25, validation_share=0.1, split=3), dict(learn_on={"label": ["class-0", "class-1"]})])
def test_the_size_of_the_data_is_that_which_prepare_makes(values):
    plan = Plan("example", DEFAULTS | dict(prepare=values))
    planned = plan.of("prepare")[0]
    shape = cost._of_loaded(declared("experiments/prepare") | planned.parameters | values)
    data = prepare("toy", **values)
    made = [len(rows) for rows in (data.split.pretrain, data.split.train, data.split.validation, data.split.test)]
    assert shape[:3] == (*data.X.shape, len(data.classes)) and list(shape[3:7]) == made


@pytest.mark.parametrize("dataset", sorted(PUBLIC))
def test_a_public_data_set_need_not_be_at_hand(dataset, monkeypatch, shipped):
    monkeypatch.setattr(cost, "_of_loaded", lambda values: pytest.fail("the data were loaded"))
    plan = Plan("example", DEFAULTS | dict(dataset=dataset, arms=ARMS))
    assert min(each.cpu_seconds for each in expected(plan, shipped).values()) > 0


def test_the_data_are_loaded_once(monkeypatch, shipped):
    plan, loaded, load = Plan("example", DEFAULTS | dict(arms=ARMS)), [], cost._of_loaded
    monkeypatch.setattr(cost, "_of_loaded", lambda values: loaded.append(1) or load(values))
    assert expected(plan, shipped) == expected(plan, shipped) and len(loaded) == 1
    cost.shapes_file().write_text("{damaged")
    assert expected(plan, shipped) and len(loaded) == 2


def finished_first(monkeypatch, plan, machine):
    "As if every run of the first split had taken a thousand seconds and a thousand megabytes."
    record = dict(cost=dict(cpu_seconds=1000.0, peak_memory_mb=1000), provenance=dict(hardware=dict(processor=machine)))
    monkeypatch.setattr(cost, "finished", lambda plan, run: record if run.split == 0 else None)
    monkeypatch.setattr(cost, "shape_of", lambda plan, run: SHAPE)
    return [run for run in plan.runs.values() if run.split == 1]


def test_finished_runs_win_over_rates(monkeypatch, shipped):
    plan = Plan("example", DEFAULTS | dict(arms=ARMS, splits={"strict": [0, 1]}))
    later = finished_first(monkeypatch, plan, processor())
    costs = expected(plan, shipped)
    assert later and all(costs[run.target][:2] == (1000.0, 1000) for run in later)


def test_seconds_of_another_kind_of_processor_do_not_count_but_its_memory_does(monkeypatch, shipped):
    plan = Plan("example", DEFAULTS | dict(arms=ARMS, splits={"strict": [0, 1]}))
    later = finished_first(monkeypatch, plan, "another")
    costs = expected(plan, shipped)
    assert all(costs[run.target].cpu_seconds < 500 and costs[run.target].memory_mb == 1000 for run in later)


def test_only_runs_of_the_same_arm_and_protocol_are_alike(monkeypatch, shipped):
    arms = ARMS | {"byol": dict(method="byol", epochs=3)}
    plan = Plan("example", DEFAULTS | dict(arms=arms, splits={"strict": [0], "paper": [1]}))
    later = finished_first(monkeypatch, plan, processor())
    costs = expected(plan, shipped)
    assert later and all(costs[run.target].cpu_seconds < 500 for run in later)


def test_a_later_baseline_is_not_expected_to_take_as_long_as_those_before_it(monkeypatch, shipped):
    plan = Plan("example", DEFAULTS | dict(baselines=["logistic-genes"], later_baselines=["logistic-pca"]))
    first, later = plan.of("baselines")
    finished_first(monkeypatch, plan, processor())
    every = cost.finished
    monkeypatch.setattr(cost, "finished", lambda plan, run: every(plan, run) if run == first else None)
    assert expected(plan, shipped)[later.target].cpu_seconds < 500


@pytest.fixture
def own_rates(monkeypatch, tmp_path, shipped):
    "A rates file of this machine, in a folder of its own."
    path = tmp_path/"rates.json"
    path.write_text(json.dumps(shipped | dict(here=here(), base_mb=123)))
    monkeypatch.delenv(ELSEWHERE, raising=False)
    monkeypatch.setattr(rates, "rates_file", lambda: path)
    return path


def test_rates_of_this_machine_are_used(own_rates): assert known_rates()["base_mb"] == 123


@pytest.mark.parametrize("spoil", [
    lambda found: "{", lambda found: "[]", lambda found: json.dumps({"here": found["here"]}),
    lambda found: json.dumps(found | dict(here=found["here"] | dict(processor="another"))),
    lambda found: json.dumps(found | dict(here=found["here"] | dict(code="changed"))),
    lambda found: json.dumps(found | dict(here=found["here"] | dict(versions={"torch": "1.0"})))])
def test_rates_that_are_damaged_or_of_another_machine_or_code_are_not_used(own_rates, spoil, shipped):
    own_rates.write_text(spoil(json.loads(own_rates.read_text())))
    assert stored(own_rates, here()) is None
    assert known_rates() == shipped


def test_only_what_is_missing_is_measured_and_what_is_there_stays(own_rates, monkeypatch):
    asked, kinds = [], json.loads(own_rates.read_text())["kinds"]
    new = kind_of("scarf", settings=dict(temperature=0.5))
    def answer(wanted):
        asked.append(wanted)
        return dict(kinds={kind: kinds[kind_of("scarf")] for kind in wanted["kinds"]})
    monkeypatch.setattr(rates, "_ask", answer)
    measure([kind_of("scarf"), kind_of("byol")])
    assert asked == []
    measure([kind_of("scarf"), new])
    assert asked == [dict(kinds=[new], all=False)]
    assert set(stored(own_rates, here())["kinds"]) == {*kinds, new}


def test_all_is_measured_anew_on_another_machine(own_rates, monkeypatch, shipped):
    own_rates.write_text(json.dumps(shipped | dict(here=dict(processor="another"))))
    asked = []
    monkeypatch.setattr(rates, "_ask", lambda wanted: asked.append(wanted) or shipped | dict(here=here(), base_mb=7))
    assert measure([kind_of("scarf")])["base_mb"] == 7
    assert asked == [dict(kinds=[kind_of("scarf")], all=True)] and known_rates()["base_mb"] == 7


def test_rates_of_a_cluster_s_node_can_be_named_and_then_nothing_is_measured(own_rates, monkeypatch, tmp_path, shipped):
    node = tmp_path/"node.json"
    node.write_text(json.dumps(shipped | dict(here=dict(processor="node", form=FORM), base_mb=77)))
    monkeypatch.setenv(ELSEWHERE, str(node))
    monkeypatch.setattr(rates, "_ask", lambda wanted: pytest.fail("it measured"))
    assert known_rates()["base_mb"] == measure([kind_of("scarf", settings=dict(temperature=0.5))])["base_mb"] == 77
    node.write_text("{}")
    with pytest.raises(ValueError, match="holds no rates"): known_rates()


def test_kinds_of_pretraining_are_told_apart_by_what_changes_a_step():
    arms = {"scratch": {}, "short": dict(method="scarf", epochs=3), "long": dict(method="scarf", epochs=9),
            "marginal": dict(method="scarf", settings=dict(replacement="marginal")),
            "code": dict(method="byol", variant="code")}
    plan = Plan("example", DEFAULTS | dict(arms=arms, architectures=dict(arms=["scratch", "short"])))
    assert set(kinds_of(plan.runs.values())) == {
        kind_of("scarf"), kind_of("scarf", settings=dict(replacement="marginal")), kind_of("byol", "code")}


def test_a_kind_that_was_not_measured_costs_as_much_as_its_method():
    known, other = (took("pretrain", method="scarf", epochs=5, settings=settings)
                    for settings in ({}, dict(temperature=0.5)))
    assert known == other


@pytest.mark.parametrize("method, epochs, batch_size", [("unmixing", 80, 64), ("mixing", 80, 64), ("byol", 50, 32)])
def test_a_method_that_was_not_measured_is_reckoned_with_its_own_epochs(shipped, method, epochs, batch_size):
    few = shipped | dict(kinds={kind_of("vime"): shipped["kinds"][kind_of("vime")]})
    def cost(**given):
        return reckoned(PlannedRun("pretrain", "", dict(method=method, **given)), SHAPE, few)
    assert cost() == cost(epochs=epochs, batch_size=batch_size) != cost(epochs=epochs + 1, batch_size=batch_size)


def test_an_arm_with_donors_reads_the_data_once_more():
    usual, donors = took("pretrain", epochs=2), took("pretrain", epochs=2, donors={"tumour": ["normal"]})
    assert donors.cpu_seconds > usual.cpu_seconds and donors.memory_mb > usual.memory_mb


def test_rates_are_recovered_from_times_and_never_negative():
    works = [training(genes, width, 2, steps, 32*steps, 1) for genes in (500, 9000) for width in (32, 512)
             for steps in (1, 4)]
    true = dict(step=1e-3, weight=3e-9)
    fitted = fit_rates([(work, sum(true[name]*work[name] for name in true)) for work in works])
    assert min(fitted.values()) >= 0
    wanted = training(30_000, 256, 4, 100, 3200, 1)
    assert rates.seconds(fitted, wanted) == pytest.approx(sum(true[name]*wanted[name] for name in true), rel=0.1)
    falling = fit_rates([(dict(one=1.0, more=float(n)), 1/n) for n in (1, 2, 4)])
    assert min(falling.values()) >= 0


def test_the_clock_stops_no_sooner_than_the_longest_chain():
    plan = Plan("example", DEFAULTS | dict(arms=ARMS))
    costs = dict.fromkeys(plan.runs, Cost(10.0, 100.0, 1.0))
    assert wall_seconds(plan, costs, 1) == 10*len(costs)
    assert wall_seconds(plan, costs, 1000) == 30   # prepare, pretrain, label curve


@pytest.mark.parametrize("cores, memory, want", [(8, 16_000, 5), (2, 16_000, 2), (8, 100, 1)])
def test_memory_limits_how_many_runs_go_at_once(cores, memory, want):
    assert runs_at_once({"small": Cost(1, 10, 1), "large": Cost(1, 3000, 1)}, cores, memory) == want


def test_the_bill_counts_each_run_once_and_is_narrow(monkeypatch, shipped):
    plan = Plan("example", DEFAULTS | dict(arms=ARMS, baselines=["logistic-genes"]))
    monkeypatch.setattr(cost, "shape_of", lambda plan, run: SHAPE)
    costs, done = expected(plan, shipped), [plan.of("prepare")[0].target]
    del costs[done[0]]
    lines = bill(plan, done, costs, shipped, cores=2).splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line[:18].strip(): line[18:].split() for line in lines[1:] if line.count("  ") > 3}
    assert rows["prepare"] == ["1", "·", "·", "·", "·"] and rows["in all"][:2] == ["1", str(len(plan.runs) - 1)]
    assert float(rows["in all"][2]) == pytest.approx(sum(each.cpu_seconds for each in costs.values())/3600, abs=0.01)
    assert float(rows["in all"][3].replace(",", "")) == round(max(each.memory_mb for each in costs.values()))


def test_the_bill_names_a_gpu_only_where_one_was_measured(monkeypatch, shipped):
    plan = Plan("example", DEFAULTS | dict(arms=ARMS))
    monkeypatch.setattr(cost, "shape_of", lambda plan, run: SHAPE)
    costs = expected(plan, shipped)
    assert "there is none here" in bill(plan, [], costs, shipped, 2)
    there = shipped | dict(gpu=dict(name="some GPU", kinds={kind_of("scarf"): shipped["kinds"][kind_of("scarf")]}))
    assert "on some GPU `pretrain` would take" in bill(plan, [], costs, there, 2)
    there["gpu"]["kinds"] = {}
    assert "was not measured" in bill(plan, [], costs, there, 2)


def test_costs_are_known_without_torch(study_copy):
    study_copy.write_profile("small", "dataset: toy\narms: {scratch: {}, scarf: {method: scarf}}")
    script = ("import sys; from ssl_expr.cost import expected; from ssl_expr.study import Plan, read_profile\n"
              "costs = expected(Plan('small', read_profile('small')))\n"
              "assert len(costs) == 5 and 'torch' not in sys.modules, (costs, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], cwd=study_copy.folder, env=study_copy.environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_small_network_is_timed_and_its_numbers_are_counted():
    sizes = [(100, 16, 2, 16, 2), (300, 16, 2, 16, 1), (100, 64, 3, 16, 1)]
    timed = rates.time_pretraining(kind_of("vime"), sizes=sizes)
    assert timed["epochs"] == 500 and all(rate > 0 for rate in timed["seconds"].values())
    assert rates.seconds(timed["seconds"], training(100, 16, 2, 100, 1600, 10)) > 0
    assert np.isfinite(list(timed["numbers"].values())).all()
