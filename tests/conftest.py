"""A copy of the study in a folder of its own, so that tests never touch the repository's results."""
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = """
dataset: toy
prepare: {genes: 60}
splits: {strict: [0]}
encoder: {width: 16, depth: 2}
arms:
  scratch: {}
  scarf: {method: scarf, epochs: 3, batch_size: 32}
  scarf-marginal: {method: scarf, epochs: 3, batch_size: 32, settings: {replacement: marginal}}
  vime: {method: vime, epochs: 2}
  byol: {method: byol, epochs: 2, settings: {hidden: 32, projection: 16}}
replacement_arms: [scarf-marginal]
baselines: [logistic-genes, logistic-pca]
fine_tuning: {fractions: [0.3, 1.0], repeats: 2, epochs: 3, patience: 2}
architectures: {arms: [scratch, scarf], depths: [1, 2], widths: [8], fractions: [0.3]}
pretraining_sizes: {arms: [scratch, scarf], sizes: [40, 0], fractions: [0.3]}
corruption: {rates: [0.0, 0.5], replacements: [uniform, marginal]}
grid: {depths: [1, 2], widths: [8], dropouts: [0.0, 0.2]}
"""

KEEPING = """
dataset: toy
keep: true
prepare: {genes: 40}
encoder: {width: 8, depth: 1}
arms: {scratch: {}, scarf: {method: scarf, epochs: 2, batch_size: 32}}
baselines: [logistic-genes]
fine_tuning: {fractions: [0.3, 1.0], repeats: 2, epochs: 2}
parts:
  longer: {against: main, fine_tuning: {epochs: 3}}
"""

# what runs take is reckoned with the rates that the project comes with: measuring takes a minute
os.environ["SSL_EXPR_RATES"] = str(REPOSITORY/"nbs"/"benchmarks"/"rates.json")

# what one process compiles, another may be reading: every worker keeps its own
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="ssl-expr-tests-")
atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], True)

SHARED_DATA = Path(os.environ.get("SSL_EXPR_TEST_DATA", REPOSITORY.parent/"shared"/"data"))


def pytest_configure(config: pytest.Config):
    where = "../shared/data or SSL_EXPR_TEST_DATA"
    config.addinivalue_line("markers", f"real_data: reads the original public files, from {where}")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    "Files that run whole studies go first: started last, one of them would keep a single core busy at the end."
    whole = {"study_copy", "finished", "keeping"}
    long = {item.path for item in items if whole & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter):
    "One line that says whether the tests on the original files ran."
    def count(*kinds):
        return sum("real_data" in report.keywords for kind in kinds for report in terminalreporter.getreports(kind))
    ran, skipped = count("passed", "failed"), count("skipped")
    terminalreporter.write_line(f"tests on the original public files: {ran} ran, {skipped} skipped")


class StudyCopy:
    "A copy of the notebooks and the workflow, with a tiny profile on made-up data."
    def __init__(self, folder: Path):
        self.folder = folder
        left_out = shutil.ignore_patterns("__pycache__", "coadread.h5ad")
        for name in ("nbs", "ssl_expr", "clusters"): shutil.copytree(REPOSITORY/name, folder/name, ignore=left_out)
        shutil.copy(REPOSITORY/"Snakefile", folder)
        self.write_profile("tiny", TINY)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": programs}

    def write_profile(self, name: str, text: str): (self.folder/"nbs"/"profiles"/f"{name}.yaml").write_text(text)

    def command(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "ssl_expr.cli", *words], cwd=self.folder, env=self.environment,
                              capture_output=True, text=True)

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "ssl_expr.cli", *words], cwd=self.folder, env=self.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def files(self, *patterns: str) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes()
                for pattern in patterns for path in sorted(self.folder.glob(pattern))}

    def clone(self, folder: Path) -> "StudyCopy":
        "A copy of this study as it stands."
        other = StudyCopy.__new__(StudyCopy)
        shutil.copytree(self.folder, folder)
        other.folder, other.environment = folder, self.environment
        return other

    @staticmethod
    def kill(process: subprocess.Popen): os.killpg(process.pid, signal.SIGKILL); process.wait()


@pytest.fixture
def study_copy(tmp_path: Path) -> StudyCopy: return StudyCopy(tmp_path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A data cache for this session only, so that tests neither use nor touch the user's."
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SSL_EXPR_CACHE", str(folder))
        patch.delenv("SSL_EXPR_MIRROR", raising=False)
        yield folder


@pytest.fixture
def real_data(cache: Path) -> Path:
    "The folder of original files; where there is none the test is skipped, or fails if it is required."
    if not SHARED_DATA.is_dir():
        if os.environ.get("SSL_EXPR_REQUIRE_DATA"):
            pytest.fail(f"the original files are required and not at {SHARED_DATA}")
        pytest.skip("no original files: put them into ../shared/data or name their folder in SSL_EXPR_TEST_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyCopy:
    "The tiny study, run once from start to end; tests that change it make a copy."
    copy = StudyCopy(tmp_path_factory.mktemp("finished"))
    answer = copy.command("run", "--profile", "tiny")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return copy


@pytest.fixture(scope="session")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> StudyCopy:
    "A study in two parts that keeps its results, run once from start to end; tests that change it make a copy."
    copy = StudyCopy(tmp_path_factory.mktemp("keeping"))
    copy.write_profile("keeping", KEEPING)
    answer = copy.command("run", "--profile", "keeping")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return copy
