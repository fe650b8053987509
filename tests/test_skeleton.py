"""One source of names, versions and requirements; a README that can be followed to the letter."""
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
import yaml
from conftest import SHARED_DATA

from ssl_expr.cli import parser
from ssl_expr.study import Plan, figures, read_profile

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY/"README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(REPOSITORY/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def lines(settings):
    keys = [key for key in settings if key.endswith("requirements")]
    return {line for key in keys for line in settings[key].strip().split("\n")}


def blocks(language): return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_environment_yml_names_the_packages_of_settings_ini(settings):
    environment = yaml.safe_load((REPOSITORY/"environment.yml").read_text(encoding="utf-8"))
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(pip) - {"-e ."} == lines(settings)
    assert f"python>={settings['min_python']}" in environment["dependencies"]


def test_the_installed_package_says_what_settings_ini_says(settings):
    installed = metadata("ssl-expr")
    assert installed["Version"] == settings["version"] and installed["Summary"] == settings["description"]
    assert installed["Requires-Python"] == f">={settings['min_python']}"
    plain = {re.split(r"[<>=]", requirement)[0] for requirement in requires("ssl-expr") if "extra" not in requirement}
    assert plain == {re.split(r"[<>=]", line)[0] for line in settings["requirements"].strip().split("\n")}


def test_the_citation_names_the_version(settings):
    assert yaml.safe_load((REPOSITORY/"CITATION.cff").read_text(encoding="utf-8"))["version"] == settings["version"]


def test_the_data_and_models_of_the_package_are_installed_with_it(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path,
                    "build_py", "--build-lib", tmp_path/"built"], cwd=REPOSITORY, check=True, capture_output=True)
    for folder in ("datasets", "models"):
        for path in (REPOSITORY/"ssl_expr"/folder).rglob("[!.]*.*"):
            installed = tmp_path/"built"/path.relative_to(REPOSITORY)
            assert installed.read_bytes() == path.read_bytes(), f"setup.py leaves out {path.name}"


def test_readme_maps_every_figure_notebook():
    assert set(re.findall(r"\]\(nbs/figures/(\w+)\.ipynb\)", README)) == set(figures())


def test_every_file_that_readme_links_to_exists():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README): assert (REPOSITORY/target).exists(), target


def test_readme_python_runs_as_written(tmp_path):
    (tmp_path/"readme.py").write_text("\n".join(blocks("python")))
    answer = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_readme_profile_is_a_valid_one_and_draws_the_figures_that_readme_names(monkeypatch, tmp_path):
    (text,) = blocks("yaml")
    (tmp_path/"nbs"/"profiles").mkdir(parents=True)
    (tmp_path/"nbs"/"profiles"/"mine.yaml").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr("ssl_expr.study.repository", lambda: tmp_path)
        profile = read_profile("mine")
    plan = Plan("mine", profile)  # its parameters are those of the experiments' notebooks, or refused
    assert {run.experiment for run in plan.runs.values()} >= {"prepare", "pretrain", "label_curve", "baselines"}
    named = re.findall(r"^- `(\w+)\.png`", README, flags=re.M)
    assert len(named) == 4 and set(named) <= set(figures(plan))


def test_readme_commands_run_as_written(finished, tmp_path):
    "Those that CI runs itself (make) and the installation are left to it; the others run here, at toy size."
    study, ran = finished.clone(tmp_path/"copy"), []
    make_inputs = ("from ssl_expr.data import load; from ssl_expr.estimator import SSLEncoder; a = load('toy')\n"
                   "SSLEncoder(epochs=1, width=8, depth=1).fit(a).save('my_encoder')\n"
                   "a.to_df().assign(subtype=a.obs['label'].astype(str)).to_csv('samples.csv')\n"
                   "a.to_df().T.to_csv('counts.tsv', sep='\\t')\n"
                   "a.obs[['patient', 'label']].set_axis(['patient', 'diagnosis'], axis=1).to_csv('clinic.csv')")
    study.write_profile("mine", *blocks("yaml"))
    study.environment = study.environment | {"SSL_EXPR_CACHE": str(tmp_path/"cache")}
    subprocess.run([sys.executable, "-c", make_inputs], cwd=study.folder, check=True)
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line)
        if words[0] in ("make", "python3") or words[0].startswith(".venv"): continue
        if words[1] == "figures": continue  # test_figures_are_redrawn_without_results_... runs it
        if words[1] == "reproduce": continue  # test_study.py and test_workflow.py do, on runs of their own
        if words[1] == "fetch":             # not from the network; test_fetch.py says what happens there
            if not SHARED_DATA.is_dir(): continue
            words = [*words[:3], "--from", str(SHARED_DATA)]
        if "--on" in words or "mine" in words: words.append("--dry-run")  # no cluster here; mine takes minutes
        words = ["tiny" if word in ("quick", "study") else word for word in words]
        start = [sys.executable, "-m", *(["ssl_expr.cli"] if words[0] == "ssl-expr" else [words[0]])]
        answer = subprocess.run(start + words[1:], cwd=study.folder, env=study.environment,
                                capture_output=True, text=True)
        assert answer.returncode == 0, f"{line}\n{answer.stdout}{answer.stderr}"
        ran.append(words[0])
    assert ran.count("papermill") == 4 and ran.count("ssl-expr") >= 7


def test_readme_installation_without_make_is_what_make_does():
    makefile = (REPOSITORY/"Makefile").read_text(encoding="utf-8")
    for step in ("-m venv .venv", "--editable '.[dev]'", "ssl-expr run --profile quick"): assert step in makefile, step
    assert ".venv/bin/pip install --editable '.[dev]'" in README


def test_every_command_of_the_command_line_is_in_readme_or_used_by_the_workflow():
    commands = set(parser()._subparsers._group_actions[0].choices)
    documented = set(re.findall(r"ssl-expr (\w+)", README + (REPOSITORY/"Snakefile").read_text()))
    assert commands <= documented | {"notebook", "collect"}


def test_committed_notebooks_are_small_and_templates_carry_no_outputs():
    for path in (REPOSITORY/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        assert path.stat().st_size < 400_000, path.name
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if path.parent.name == "experiments": assert not any(cell.get("outputs") for cell in cells), path.name
