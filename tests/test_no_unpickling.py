"""Nothing is unpickled: not by a line of the source, and not by a file that asks for it on any way into the product."""

from __future__ import annotations

import ast
import importlib.util
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploycompress
from deploycompress.errors import ConfigError, DeployCompressError, EnvironmentMissing, StageFailed

SOURCE = Path(deploycompress.__file__).parent
SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"

# What runs what a file or a text says. ``compile(..., "exec")`` of our own runner's bytes is the one there is.
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "pandas",
    "yaml",
    "jsonpickle",
}
FUNCTIONS = {"eval", "exec", "execfile", "compile", "__import__"}
LOADERS = {"torch.jit.load", "torch.export.load", "torch.package.PackageImporter", "torch.hub.load"}
SYSTEM = {"os.system", "os.popen"}


def wrong(source: str) -> list[str]:
    """What in a module would unpickle, or run a text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in FUNCTIONS | LOADERS | SYSTEM or given.get("shell") == "True":
            found.append(f"{node.lineno}: calls {called}")
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"{node.lineno}: {called} without allow_pickle=False")
        if given.get("weights_only", "True") != "True" or given.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno}: {called} allows pickles")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{node.lineno}: {called} trusts code from elsewhere")
        if called == "YAML" and given.get("typ") not in ("'safe'", None):
            found.append(f"{node.lineno}: YAML of type {given['typ']}")
    return found


# The name of an error is all that is taken from pickle, and torch raises it.
ALLOWED = {"model/weights.py": ["imports pickle"]}


def test_the_source_unpickles_nothing_and_runs_no_text() -> None:
    found = {}
    for path in [*SOURCE.rglob("*.py"), *SCRIPTS.rglob("*.py")]:
        name = path.relative_to(SOURCE if path.is_relative_to(SOURCE) else SCRIPTS).as_posix()
        lines = [line.partition(": ")[2] for line in wrong(path.read_text(encoding="utf-8"))]
        if lines != ALLOWED.get(name, []):
            found[name] = lines
    assert not found
    weights = (SOURCE / "model" / "weights.py").read_text()
    assert re.findall(r"pickle\.\w+", weights) == ["pickle.UnpicklingError"]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import yaml", "eval(x)", "exec(x)", "torch.load(f)", "import marshal",
        "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)", "np.load(f)", "np.load(f, allow_pickle=True)",
        "torch.jit.load(f)", "torch.export.load(f)", "load(f, allow_pickle=True)", "x.from_pretrained(f, trust_remote_code=True)",
        "os.system(c)", "subprocess.run(c, shell=True)", "YAML(typ='unsafe')", "import shelve", "__import__(name)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert wrong(line)
    assert not wrong(
        "torch.load(f, weights_only=True); np.load(f, allow_pickle=False); json.loads(t); net.eval()"
    )


# ---------------------------------------------------------------- files that ask for it


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


@pytest.fixture
def went_off(tmp_path: Path) -> Path:
    return tmp_path / "WENT-OFF"


@pytest.fixture(autouse=True)
def nothing_ran(went_off: Path) -> Iterator[None]:
    yield
    assert not went_off.exists(), "the file's code was run"


def torch_file(path: Path, bomb: Bomb) -> None:
    torch.save({"weight": torch.zeros(1), "bomb": bomb}, path)


def old_torch_file(path: Path, bomb: Bomb) -> None:
    torch.save({"bomb": bomb}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def exported_program(path: Path, bomb: Bomb) -> None:
    """A .pt2 whose weights are a pickle: torch.export.load falls back to unpickling."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
        archive.writestr("archive/data/weights/model.pt", pickle.dumps(bomb))
        archive.writestr("archive/version", "3")


def array_file(path: Path, bomb: Bomb) -> None:
    np.save(path, np.array([bomb], dtype=object), allow_pickle=True)


def array_archive(path: Path, bomb: Bomb) -> None:
    arrays: dict[str, Any] = {
        name: np.array([bomb], dtype=object) for name in ("x_train", "y_train", "x_test", "y_test")
    }
    np.savez(path, **arrays)


FORMS: dict[str, Callable[[Path, Bomb], None]] = {
    "w.pt": torch_file,
    "old.pt": old_torch_file,
    "w.pth": torch_file,
    "plain.pth": plain_pickle,
    "w.th": torch_file,
    "plain.safetensors": plain_pickle,
    "w.pt2": exported_program,
    "plain.pt2": plain_pickle,
    "a.npz": array_archive,
    "a.npy": array_file,
    "plain.npz": plain_pickle,
    "plain.npy": plain_pickle,
    "model.onnx": plain_pickle,
    "model.engine": plain_pickle,
}


@pytest.mark.parametrize("name", FORMS)
def test_the_files_do_go_off(tmp_path: Path, name: str, went_off: Path) -> None:
    FORMS[name](tmp_path / name, Bomb(went_off))
    place = tmp_path / name
    if name.startswith(("plain", "model")):
        pickle.loads(place.read_bytes())
    elif name.endswith(("npy", "npz")):
        loaded = np.load(place, allow_pickle=True)
        loaded["x_train"] if name.endswith("npz") else loaded
    elif name.endswith("pt2"):
        pickle.loads(zipfile.ZipFile(place).read("archive/data.pkl"))
    else:
        torch.load(place, weights_only=False)
    assert went_off.is_dir()
    went_off.rmdir()


def weights(path: Path) -> None:
    from deploycompress.model.source import load_weights

    load_weights(torch.nn.Linear(1, 1), path)


def data(path: Path) -> None:
    from deploycompress.registry import DATASETS

    source = DATASETS.load("arrays")
    folder = path.parent / "arrays"
    folder.mkdir(exist_ok=True)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        (folder / f"{name}.npy").write_bytes(path.read_bytes())
    root = path if path.suffix == ".npz" else folder
    source(source.Config(source="arrays", root=root)).splits()


def mnist(path: Path) -> None:
    from deploycompress.registry import DATASETS

    source = DATASETS.load("mnist")
    source(source.Config(source="mnist", root=path)).splits()


def artefact(path: Path) -> None:
    from deploycompress.commands.given import open_given

    open_given(path, "given")


def checkpoint_file(path: Path) -> None:
    """The weights, and then the description, of a checkpoint that is sound otherwise."""
    from deploycompress.config.schema import InputSpec, ModelConfig
    from deploycompress.model import checkpoint
    from deploycompress.model.source import SourceModel

    config = {
        "build": "deploycompress.examples.cnn:build",
        "args": {"width": 2, "image_size": 4},
        "weights": None,
    }
    inputs = {"image": InputSpec(shape=("batch", 1, 4, 4))}
    model = SourceModel(ModelConfig.model_validate(config | {"inputs": inputs}), 0)
    for name in (checkpoint.WEIGHTS, checkpoint.ARCHITECTURE):
        folder = path.parent / f"with {name}"
        checkpoint.save(model.build(), folder, model)
        (folder / name).write_bytes(path.read_bytes())
        with pytest.raises(StageFailed):
            checkpoint.load(folder, model)
    raise StageFailed("both were refused")


def run_directory(path: Path) -> None:
    folder = path.parent / "run" / "01-train" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    config = "name: x\nmodel: {build: 'deploycompress.examples.cnn:build', inputs: {image: {shape: [batch, 1, 28, 28]}}}\n"
    (path.parent / "run" / "config.yaml").write_text(config)
    for name in ("model.safetensors", "architecture.json"):
        (folder / name).write_bytes(path.read_bytes())
    deploycompress.load_pruned(folder)


def stored(path: Path) -> None:
    from deploycompress.engine.store import FileStore

    store, reasons = FileStore(path.parent / "store"), []
    folder = store.step({"key": path.name})
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(path.read_bytes())
    assert store.find({"key": path.name}, reasons.append) is None
    raise StageFailed(reasons[0])


def resumed(path: Path) -> None:
    """The state of a training that was cut."""
    from deploycompress.recovery.checkpoints import Checkpoints

    folder = path.parent / "progress" / "0000000001"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state.json", "state.safetensors"):
        (folder / name).write_bytes(path.read_bytes())
    assert Checkpoints(path.parent / "progress").latest() is None
    raise StageFailed("no checkpoint of ours")


def device_answer(path: Path) -> None:
    from deploycompress.devices.answers import _read

    _read(path, "board")


def recorded_outputs(path: Path) -> None:
    from deploycompress.model.recorded import apart_from_record

    class Given:
        def call(self, module: torch.nn.Module, feed: Any) -> Any:
            return {"y": torch.zeros(1)}

    try:
        apart_from_record(torch.nn.Identity(), Given(), [{}], path)  # type: ignore[arg-type]
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
    ) as error:  # of numpy: our own file, which the engine checks first
        raise StageFailed(str(error)) from error


def finished(path: Path) -> None:
    from deploycompress.commands.finished_run import finished_run

    (path.parent / "report.json").write_bytes(path.read_bytes())
    finished_run(path.parent)


WAYS: tuple[Callable[[Path], None], ...] = (
    weights, data, mnist, artefact, checkpoint_file, run_directory, stored, device_answer, recorded_outputs, finished,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", FORMS)
def test_no_way_in_runs_a_files_code(
    tmp_path: Path, name: str, way: Callable[[Path], None], went_off: Path
) -> None:
    place = tmp_path / name
    FORMS[name](place, Bomb(went_off))
    with pytest.raises(DeployCompressError) as refused:
        way(place)
    assert (
        isinstance(refused.value, (ConfigError, StageFailed, EnvironmentMissing))
        and str(refused.value).strip()
    )


def test_weights_that_a_librarys_own_loader_would_unpickle(tmp_path: Path, went_off: Path) -> None:
    """``timm``'s ``checkpoint_path`` and torch.hub, which asks for ``weights_only=False``."""
    from deploycompress.model import factory

    torch_file(tmp_path / "w.pth", Bomb(went_off))
    with pytest.raises(pickle.UnpicklingError):
        factory._without_pickles(torch.load, tmp_path / "w.pth", weights_only=False)
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: its own loader was not tried")
    made = factory.open_factory("timm:resnet10t", {"checkpoint_path": str(tmp_path / "w.pth")})
    with pytest.raises(ConfigError, match=r"timm:resnet10t failed"):
        made()


def test_a_data_set_that_torchvision_unpickles_is_refused(tmp_path: Path) -> None:
    from deploycompress.registry import DATASETS

    source = DATASETS.load("torchvision")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    with pytest.raises(ConfigError, match="LSUN reads a pickle"):
        source(source.Config(source="torchvision", dataset="LSUN", root=tmp_path)).splits()
