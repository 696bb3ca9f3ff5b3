"""What no part of the project may do: run code out of data, tell secrets, open ports to the world."""

import ast
import contextlib
import json
import os
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nearid_ray.data import light
from nearid_ray.data.sources import open_rows
from nearid_ray.data.store import Dataset, locate, read_parquet, read_rows
from nearid_ray.errors import UsageError
from nearid_ray.job import running
from nearid_ray.tracking import TrackingSettings, open_client, without_password

ROOT = Path(__file__).parents[1]
CODE = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "jobs").glob("*.py"), *(ROOT / "schemas").glob("*.py")])
BLOCKS = "platform/nearid_ray/data/pipeline.py"
"""Unpickles what the same run's own workers handed on in memory; nothing of it is read from a file."""


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def calls(path: Path):
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str):
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def wrong_calls(path: Path) -> list[str]:
    """Calls that can run code out of what they read."""
    found, name = [], path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for function, call in calls(path):
        last = function.rsplit(".", 1)[-1]
        if (
            (
                function.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
                and last in ("load", "loads", "Unpickler", "open")
                and name != BLOCKS
            )
            or last in ("read_pickle", "to_pickle")
            or function == "torch.hub.load"
        ):
            found.append(function)
        if function in ("eval", "exec", "os.system") or keyword(call, "shell") == "True":
            found.append(function)
        if function == "torch.load" and keyword(call, "weights_only") != "True":
            found.append("torch.load without weights_only")
        safe = "SafeLoader" in ast.unparse(call) or "_Loader" in ast.unparse(call)
        if function in ("yaml.unsafe_load", "yaml.full_load") or (function == "yaml.load" and not safe):
            found.append("yaml.load")
        if keyword(call, "allow_pickle") == "True":
            found.append("allow_pickle")
        if last in ("from_pretrained", "from_single_file") and keyword(call, "use_safetensors") == "False":
            found.append("weights that are no safetensors")
        if keyword(call, "trust_remote_code") == "True" and not _asked_for(path, call):
            found.append("trust_remote_code")
    return found + [
        f"names out of {node.module}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "marshal")
    ]


def opened_by_default(path: Path) -> list[str]:
    """Parameters and fields trust_remote_code whose default is not False."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            given = [(node.target.id, node.value)]
        elif isinstance(node, ast.FunctionDef):
            plain = node.args.posonlyargs + node.args.args
            given = [
                (arg.arg, value) for arg, value in zip(reversed(plain), reversed(node.args.defaults), strict=False)
            ]
            given += [(a.arg, v) for a, v in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if v]
        else:
            continue
        found += [name for name, value in given if "trust_remote_code" in name and ast.unparse(value) != "False"]
    return found


def _asked_for(path: Path, call: ast.Call) -> bool:
    """Whether the call stands in a branch that a setting opens."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and any(
            isinstance(inner, ast.Call) and inner.lineno == call.lineno for inner in ast.walk(node)
        ):
            return "own_code" in ast.unparse(node.test) or "trust_remote_code" in ast.unparse(node.test)
    return False


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pickle.Unpickler(f)",
        "from pickle import loads",
        "pd.read_pickle(f)",
        "torch.hub.load(x, y)",
        "yaml.unsafe_load(f)",
        "yaml.load(f, yaml.Loader)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_search_finds_what_runs_code_out_of_files(line, tmp_path):
    (tmp_path / "a.py").write_text(line)
    assert wrong_calls(tmp_path / "a.py")


def test_nothing_in_the_project_runs_code_out_of_files():
    assert len(CODE) > 200
    assert {str(path): found for path in CODE if (found := wrong_calls(path))} == {}


def test_no_code_that_comes_with_a_model_is_run_unless_asked_for(tmp_path):
    (tmp_path / "a.py").write_text("def f(*, mask_trust_remote_code=True): ...\ntrust_remote_code: bool = True")
    assert len(opened_by_default(tmp_path / "a.py")) == 2
    assert {str(path): found for path in CODE if (found := opened_by_default(path))} == {}


@pytest.fixture
def planted(tmp_path):
    """A Parquet file with a column of Ray's pickled objects, and the file that appears when one of them is loaded."""
    import ray.data._internal.object_extensions.arrow as extension

    done = tmp_path / "done"
    kind = extension.ArrowPythonObjectType()
    with contextlib.suppress(pa.ArrowKeyError):  # Ray has done it
        pa.register_extension_type(kind)
    column = pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Planted(done))], pa.large_binary()))
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"table": "tuples", "content_digest": "x"}))
    path = folder / "data" / "000-000000.parquet"
    pq.write_table(pa.table({"identity_id": column, "error": [""]}), path)
    return folder, path, done


def test_the_planted_file_does_run_code_where_nothing_stops_it(planted):
    _, path, done = planted
    pq.read_table(path)["identity_id"].to_pylist()
    assert done.exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda folder, path: Dataset(folder).read(),
        lambda folder, path: Dataset(folder).count_errors(),
        lambda folder, path: read_parquet(locate(path)),
        lambda folder, path: read_rows(locate(path), [0]),
        lambda folder, path: list(light.iterate(Dataset(folder), ["identity_id"])),
        lambda folder, path: open_rows(str(folder / "data")),
    ],
    ids=["dataset", "errors", "file", "rows", "light", "table"],
)
def test_pickled_objects_in_a_dataset_are_refused_and_not_loaded(planted, read):
    folder, path, done = planted
    with pytest.raises(UsageError, match="identity_id holds pickled Python objects"):
        read(folder, path)
    assert not done.exists()


def test_a_checkpoint_with_a_pickle_in_it_is_not_loaded(tmp_path):
    from nearid_ray.training.state import load_state

    torch.save({"step": 1, "bad": Planted(tmp_path / "done")}, tmp_path / "state.pt")
    with pytest.raises(UsageError, match="not a checkpoint"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "done").exists()


def test_weights_with_a_pickle_in_them_are_not_loaded(tmp_path):
    from transformers import SiglipVisionConfig

    from nearid_ray.models.backbone import load_backbone

    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.save({"bad": Planted(tmp_path / "done")}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="a pickle with more than tensors in it"):
        load_backbone(str(folder))
    assert not (tmp_path / "done").exists()


def test_no_secret_of_the_environment_or_an_address_is_left_by_a_job(tmp_path, monkeypatch):
    """The job writes settings, cards, a summary, logs and an MLflow run."""
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKsecretOne",
        "AWS_SECRET_ACCESS_KEY": "secretTwo",
        "HF_TOKEN": "hf_secretThree",
        "MLFLOW_TRACKING_PASSWORD": "secretFour",
        "RAY_AUTH_TOKEN": "secretFive",
    }
    output = locate(tmp_path / "out")
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = {"seed": 1, "source": "https://me:secretSix@host/photos"}
    with running("ingest", output, settings, tracking=TrackingSettings(), needs_ray=False) as job:
        job.summary["rows"] = 1
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "summary.json"} <= {path.name for path in left}
    assert [
        path.name for path in left if re.search(rb"[sS]ecret(One|Two|Three|Four|Five|Six)", path.read_bytes())
    ] == []


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://me:secretOne@127.0.0.1:9", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"),
        ("postgresql+nosuch://me:secret@One@127.0.0.1:9/x", "MLflow cannot open"),
    ],
)
def test_a_refused_tracking_address_is_told_without_its_password(uri, told, tmp_path):
    with pytest.raises(UsageError, match=told) as refused:
        open_client(uri)
    assert "One" not in str(refused.value) and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql://me:p@ss@host/mlflow", "postgresql://***@host/mlflow"),
        ("postgresql://me:secret@host/mlflow", "postgresql://***@host/mlflow"),
        ("http://token@server:5000", "http://***@server:5000"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_passwords_in_addresses_are_not_told(given, told):
    assert without_password(given) == told


def test_nothing_listens_beyond_this_machine_unless_asked():
    for path in [*CODE, ROOT / "cluster.yaml", ROOT / "Makefile", *(ROOT / "jobs").glob("*.yaml")]:
        assert "0.0.0.0" not in path.read_text(), path
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in " ".join(cluster["worker_start_ray_commands"])
    assert cluster.get("auth", {}).get("ssh_private_key") is None
    manifest = yaml.safe_load((ROOT / "platform/deploy/raycluster.yaml").read_text())
    assert manifest["spec"]["authOptions"]["mode"] == "token"
    assert manifest["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_no_file_holds_what_looks_like_a_key():
    secret = re.compile(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30}|-----BEGIN [A-Z ]*PRIVATE KEY|ghp_[A-Za-z0-9]{30}")
    text = [*CODE, *ROOT.glob("*.*"), *(ROOT / "docs").glob("*.md"), *(ROOT / "platform/deploy").glob("*")]
    assert [str(path) for path in text if path.is_file() and secret.search(path.read_text(errors="ignore"))] == []


def test_every_pinned_package_of_a_cluster_has_hashes_and_the_tested_version():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    lock = (ROOT / "platform/deploy/requirements.lock").read_text().replace("\\\n", " ")
    locked = {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split()
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in hashes), line
            name, version = requirement.split("==")
            locked[name] = version
    assert {name: pins.get(name) for name in locked} == locked
    tools = {"torch", "ruff", "mypy", "mypy_extensions", "pytest", "execnet", "iniconfig", "pluggy", "librt"}
    left_out = {name for name in pins if name not in locked and not name.startswith(("types-", "pytest", "ast_"))}
    assert left_out <= tools
    setup = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"])
    assert "--require-hashes -r platform/deploy/requirements.lock" in setup
