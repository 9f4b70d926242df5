"""The house's rules on imports, read from the source: what may stand on what, and what may never be done where."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From top to bottom; a module imports from its own layer and from those below. A name stands for the modules in it too.
LAYERS: list[tuple[str, ...]] = [
    ("train", "generate", "calc_metrics", "tools", "examples", "stylegan_di.commands", "stylegan_di.__main__"),
    ("stylegan_di.training",),
    ("stylegan_di.runs", "stylegan_di.preflight", "stylegan_di.inputs", "stylegan_di.resolve", "stylegan_di.journal"),
    ("stylegan_di.config", "stylegan_di.explore"),
    ("stylegan_di.snapshots", "stylegan_di.divergences"),
    ("stylegan_di.teachers", "stylegan_di.students", "stylegan_di.critics", "stylegan_di.spaces"),
    (
        "stylegan_di.networks",
        "stylegan_di.loss_di",
        "stylegan_di.loss_gan",
        "stylegan_di.metrics",
        "stylegan_di.data",
        "stylegan_di.sampling",
    ),
    (
        "stylegan_di.diffusion",
        "stylegan_di.interfaces",
        "stylegan_di.labels",
        "stylegan_di.options",
        "stylegan_di.specs",
        "stylegan_di.random",
        "stylegan_di.presets",
        "stylegan_di.zoo",
        "stylegan_di.hub",
        "stylegan_di.images",
    ),
    ("stylegan_di.torch_utils",),
    ("stylegan_di.dnnlib",),
]
FACADE = "stylegan_di"  # the package itself: names found on first use, so that importing it imports nothing
LOSSES = ("stylegan_di.loss_di", "stylegan_di.loss_gan")
LIBRARY = ("stylegan_di",)
BARE = ("dnnlib", "torch_utils")  # NVlabs' names too: taken here, theirs could not be imported beside this project
NOT_OURS = {"tests", "build", "runs", "datasets", "out", "node_modules"}  # folders beside the code

PICKLE_MODULES = {"pickle", "_pickle", "pickletools", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MAY_PICKLE = (
    "stylegan_di.torch_utils.persistence", "stylegan_di.torch_utils.pickle_machine",
    "stylegan_di.torch_utils.pickle_arrays", "stylegan_di.torch_utils.pickle_reader",
    "tools.dev.fuzz_pickles",  # writes pickles and walks their opcodes; that it loads none, the rules on calls hold
)  # fmt: skip
MAY_LOAD_TORCHSCRIPT = ("stylegan_di.metrics.inception_script",)  # of bytes whose hash `inception` has checked
LOADERS = ("torch", "torch.jit", "torch.serialization", "numpy")
UNPICKLING = {"load", "loads", "Unpickler", "_Unpickler"}
MAY_EXIT = ("stylegan_di.commands",)
MAY_USE_CLICK = ("stylegan_di.dnnlib.cli", "stylegan_di.commands")
MAY_IMPORT_BY_STRING = (FACADE, "stylegan_di.commands")  # exactly these: names and commands, found on first use
MAY_PRINT = ("stylegan_di.journal.sinks", "stylegan_di.training.launch", "stylegan_di.dnnlib.download")  # terms
MAY_USE_DISTRIBUTED = ("stylegan_di.torch_utils.distributed",)


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of `names` or inside one of them."""
    return any(module == name or module.startswith(name + ".") for name in names)


def layer(module: str) -> int:
    """How high a module stands; KeyError for one that is not in the table."""
    for height, names in enumerate(reversed(LAYERS)):
        if within(module, names):
            return height
    raise KeyError(module)


def ours(module: str) -> bool:
    return module.partition(".")[0] in {name.partition(".")[0] for names in LAYERS for name in names}


def source_files() -> dict[str, Path]:
    """All modules of the project by name, tests excepted: top-level scripts, and every package beside them."""
    folders = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in NOT_OURS and not p.name.startswith(".")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {module_name(path.relative_to(ROOT)): path for path in sorted(paths)}


def module_name(path: Path) -> str:
    """The folders dnnlib and torch_utils are parts of the package, in which links to them lie."""
    parts = path.with_suffix("").parts
    if parts[0] in BARE:
        parts = (FACADE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str, tree: ast.AST, known: set[str], is_package: bool = False) -> set[str]:
    """The modules that a module imports, wherever in it; of `from a import b` a.b if that is a module, else a."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in known else base)
    return found


def dotted(node: ast.AST) -> str:
    """'torch.load' of the expression torch.load, '' of other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def complaints(module: str, source: str, known: set[str], is_package: bool = False) -> Iterator[str]:
    """Every rule that a module breaks."""
    tree = ast.parse(source)
    names = imported(module, tree, known, is_package)
    yield from import_complaints(module, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from call_complaints(module, node)
        elif isinstance(node, ast.Attribute) and dotted(node) == "torch.distributed":
            if not within(module, MAY_USE_DISTRIBUTED):
                yield "uses torch.distributed"
        elif isinstance(node, ast.ImportFrom) and node.module in LOADERS and any(a.name == "load" for a in node.names):
            yield f"imports load from {node.module}"  # by which name the rules on calls know it
        elif isinstance(node, ast.Name) and node.id == "SystemExit" and within(module, LIBRARY):
            yield "exits"


def import_complaints(module: str, names: set[str]) -> Iterator[str]:
    for name in sorted(names):
        if ours(name) and module != FACADE:
            if name == FACADE:
                if within(module, LIBRARY):
                    yield "imports the package itself"
            elif layer(name) > layer(module):
                yield f"imports upwards: {name}"
            elif within(module, ("stylegan_di.networks",)) and not within(
                name, ("stylegan_di.networks", "stylegan_di.diffusion", "stylegan_di.torch_utils")
            ):
                yield f"a network imports {name}"
            elif within(module, LOSSES) and within(name, ("stylegan_di.networks",)):
                yield f"a loss imports {name}"
        top = name.partition(".")[0]
        if top in BARE:
            yield f"imports {name} by its bare name"
        if top in PICKLE_MODULES and not within(module, MAY_PICKLE):
            yield f"imports {name}"
        if top == "click" and within(module, LIBRARY) and not within(module, MAY_USE_CLICK):
            yield "imports click"
        if name.startswith("torch.distributed") and not within(module, MAY_USE_DISTRIBUTED):
            yield "uses torch.distributed"


def call_complaints(module: str, call: ast.Call) -> Iterator[str]:
    function = dotted(call.func)
    constants = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in call.keywords}
    if function == "torch.load" and constants.get("weights_only") is not True:
        yield "calls torch.load without weights_only=True"
    if constants.get("allow_pickle", False) is not False or (function in ("np.load", "numpy.load") and call.args[2:]):
        yield "calls with allow_pickle"
    if function.startswith("torch.jit.") and not within(module, MAY_LOAD_TORCHSCRIPT):
        yield f"calls {function}"
    if function.rpartition(".")[0] in PICKLE_MODULES and function.rpartition(".")[2] in UNPICKLING:
        yield f"calls {function}"
    if within(module, LIBRARY):
        if function == "print" and not within(module, MAY_PRINT):
            yield "prints"
        if function in ("sys.exit", "os._exit", "exit", "quit") and not within(module, MAY_EXIT):
            yield "exits"
        by_string = function in ("importlib.import_module", "import_module", "__import__")
        if by_string and module not in MAY_IMPORT_BY_STRING:
            yield "imports by a string"


def test_every_module_stands_in_the_table() -> None:
    for module in source_files():
        if module != FACADE:
            layer(module)


def test_no_module_breaks_a_rule() -> None:
    files = source_files()
    found = [
        f"{module}: {complaint}"
        for module, path in files.items()
        for complaint in complaints(module, path.read_text(encoding="utf-8"), set(files), path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_imports_run_in_no_circle() -> None:
    files = source_files()
    graph = {
        module: imported(module, ast.parse(path.read_text(encoding="utf-8")), set(files), path.name == "__init__.py")
        & files.keys()
        for module, path in files.items()
        if module != FACADE
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_unknown_modules_are_noticed() -> None:
    for module in ("new_script", "new_package.part", "stylegan_di.new_part", "stylegan_di.networks2"):
        with pytest.raises(KeyError):
            layer(module)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("stylegan_di.dnnlib.util", "import stylegan_di.torch_utils.x", "imports upwards: stylegan_di.torch_utils.x"),
        ("stylegan_di.config", "from dnnlib.util import UserError", "imports dnnlib.util by its bare name"),
        ("stylegan_di.data", "from stylegan_di.training import ema", "imports upwards: stylegan_di.training.ema"),
        ("stylegan_di.metrics", "from stylegan_di.snapshots import checkpoint",
         "imports upwards: stylegan_di.snapshots.checkpoint"),
        ("stylegan_di.snapshots.checkpoint", "def f():\n    import train", "imports upwards: train"),
        ("stylegan_di.students", "from .training.ema import x", "imports upwards: stylegan_di.training.ema"),
        ("stylegan_di.loss_di", "from stylegan_di.networks.edm import x", "a loss imports stylegan_di.networks.edm"),
        ("stylegan_di.networks.edm", "import stylegan_di.zoo", "a network imports stylegan_di.zoo"),
        ("stylegan_di.networks.edm", "from ..data import dataset", "a network imports stylegan_di.data.dataset"),
        ("stylegan_di.networks.edm", "from stylegan_di import loss_di", "a network imports stylegan_di.loss_di"),
        ("stylegan_di.networks.edm", "from stylegan_di.dnnlib.util import UserError",
         "a network imports stylegan_di.dnnlib.util"),
        ("stylegan_di.metrics.frechet", "import stylegan_di", "imports the package itself"),
        ("stylegan_di.metrics.frechet", "from click import echo", "imports click"),
        ("stylegan_di.metrics.frechet", "print(1)", "prints"),
        ("stylegan_di.config", "import sys\nsys.exit(2)", "exits"),
        ("stylegan_di.config", "raise SystemExit", "exits"),
        ("stylegan_di.config", "import importlib\nimportlib.import_module('train')", "imports by a string"),
        ("stylegan_di.snapshots.checkpoint", "import pickle", "imports pickle"),
        ("tools.convert", "from pickletools import genops", "imports pickletools"),
        ("tools.convert", "torch.load(f, weights_only=False)", "calls torch.load without weights_only=True"),
        ("tools.convert", "torch.load(f)", "calls torch.load without weights_only=True"),
        ("tools.convert", "np.load(f, allow_pickle=yes)", "calls with allow_pickle"),
        ("tools.convert", "np.load(f, None, True)", "calls with allow_pickle"),
        ("tools.convert", "from torch import load", "imports load from torch"),
        ("tools.convert", "from torch.jit import load as read", "imports load from torch.jit"),
        ("stylegan_di.metrics.inception", "torch.jit.load(f)", "calls torch.jit.load"),
        ("stylegan_di.torch_utils.persistence", "pickle.load(f)", "calls pickle.load"),
        ("stylegan_di.torch_utils.persistence", "pickle.Unpickler(f).load()", "calls pickle.Unpickler"),
        ("stylegan_di.training.ema", "torch.distributed.barrier()", "uses torch.distributed"),
        ("stylegan_di.training.ema", "import torch.distributed as dist", "uses torch.distributed"),
    ],
)  # fmt: skip
def test_broken_rules_are_noticed(module: str, source: str, complaint: str) -> None:
    names = ("training.ema", "snapshots.checkpoint", "data.dataset", "loss_di")
    known = {f"stylegan_di.{name}" for name in names}
    assert list(complaints(module, source, known)) == [complaint]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train", "import click\nfrom stylegan_di import training\nprint(1)"),
        ("stylegan_di.journal.sinks", "print('kimg 1')"),
        ("stylegan_di.networks.edm", "from stylegan_di.torch_utils.persistence import PersistentModule"),
        ("stylegan_di.metrics.frechet", "from stylegan_di.data import dataset\nnp.load(f, allow_pickle=False)"),
        ("stylegan_di.torch_utils.persistence", "import pickle"),
        ("stylegan_di.snapshots.checkpoint", "torch.load(f, weights_only=True)"),
    ],
)  # fmt: skip
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert not list(complaints(module, source, {"stylegan_di.training", "stylegan_di.training.ema"}))


IMPORT_ALL = """
import importlib, os, signal, sys
import click, filelock, multiprocessing.synchronize
import numpy.testing, PIL.Image, psutil, requests, safetensors.torch, scipy.linalg, torch, torch.utils.cpp_extension

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise AssertionError(f"{event} {arguments} at import")

sys.addaudithook(watch)
for module in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix"):  # Windows has none
    sys.modules[module] = None
for name in ("SIGHUP", "SIGKILL", "SIGSTOP"):
    delattr(signal, name)
for name in ("O_NOFOLLOW", "O_NONBLOCK", "geteuid", "fork", "killpg"):
    delattr(os, name)
for module in sys.argv[1:]:
    importlib.import_module(module)
assert not torch.cuda.is_initialized(), "CUDA was touched at import"
"""


def test_importing_anything_compiles_downloads_and_touches_nothing_and_works_without_unix() -> None:
    modules = list(source_files())
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, *modules]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
