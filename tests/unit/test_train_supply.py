"""What a base model brings along: no pickle is read, and its own code runs only where the owner names the model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from agent_support import TERMS, setup, survey_task
from tiny_models import make_tiny_model
from typer.testing import CliRunner

from fedpipe_agent.checks import open_request
from fedpipe_agent.cli import app
from fedpipe_agent.train.base import load_tokenizer, locate
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.fingerprint import check_fingerprint, fingerprint, weight_bytes
from fedpipe_agent.train.shape import read_config, read_shape, skeleton
from fedpipe_agent.trainer_process import trainer_environment

LABELS = ("class0", "class1")
CODE = """
from pathlib import Path

Path({mark!r}).touch()
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "bert")


@pytest.fixture
def with_code(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model whose configuration names code in its folder, and the file that this code would make."""
    folder, mark = tmp_path / "model", tmp_path / "it-ran"
    shutil.copytree(tiny, folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark


def test_a_models_own_code_is_not_run_and_the_model_is_refused(with_code: tuple[Path, Path]) -> None:
    folder, mark = with_code
    with pytest.raises(ModelError, match="cannot be used"):
        read_config(folder, "sequence-classification", LABELS)
    with pytest.raises(ModelError):
        read_shape(folder, "sequence-classification", LABELS)
    load_tokenizer(folder)
    assert not mark.exists()


def test_it_runs_where_the_owner_names_the_model(with_code: tuple[Path, Path]) -> None:
    folder, mark = with_code
    config = read_config(folder, "sequence-classification", LABELS, trusted=True)
    model = skeleton(config, "sequence-classification", trusted=True)
    assert type(model).__name__ == "OwnModel"
    assert mark.exists()


@pytest.mark.parametrize("named", [True, False])
def test_the_owner_names_models_as_jobs_do_not_as_folders(*, named: bool) -> None:
    names = frozenset({TERMS.model if named else "/srv/model"})
    lent = setup(models={TERMS.model: "/srv/model"}, hub_models=names, trusted_models=names)
    request = open_request(lent, survey_task())
    assert (request.download, request.trust_remote_code) == (named, named)
    assert request.model == "/srv/model"


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickle_is_never_read(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    torch.save(_Bomb(), folder / "pytorch_model.bin")
    (folder / name).touch()
    for read in (weight_bytes, fingerprint):
        with pytest.raises(ModelError, match=r"is a pickle .*never read\. Convert it"):
            read(folder)


def test_a_model_that_may_not_be_downloaded_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants  # noqa: PLC0415 -- as in the module under test

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"name it in \[training\] hub_models"):
        locate("fedpipe-tests/no-such-model")


def test_another_base_than_the_jobs_is_refused_with_both_hashes(tiny: Path) -> None:
    found = fingerprint(tiny)
    check_fingerprint(tiny, None)
    check_fingerprint(tiny, found)
    with pytest.raises(ModelError, match=f"here is {found}, the job names {'0' * 64}"):
        check_fingerprint(tiny, "0" * 64)


def test_the_command_prints_what_a_job_may_name(tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'name = "a"\n[models]\n"example/tiny" = {json.dumps(str(tiny))}\n')
    for arguments in ([str(tiny)], ["example/tiny", "--config", str(config)]):
        result = CliRunner().invoke(app, ["fingerprint", *arguments])
        assert result.output.strip() == fingerprint(tiny)
    unknown = CliRunner().invoke(app, ["fingerprint", "example/tiny"])
    assert isinstance(unknown.exception, ModelError)


def test_the_trainer_is_told_to_report_nothing_to_anybody() -> None:
    made = trainer_environment(1, 1 << 40, {"HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0", "PATH": "/bin"})
    assert made["HF_HUB_DISABLE_TELEMETRY"] == made["DO_NOT_TRACK"] == made["DISABLE_TELEMETRY"] == "1"
    assert made["PATH"] == "/bin"
