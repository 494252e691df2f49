"""The import hook and the patches, on stand-ins of LMDeploy's and dlinfer's modules.

Small enough that every way in which they may differ, or come in another order, can be written down.
tests/test_lmdeploy.py has the real ones.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import npu_rope
import npu_rope_autoload
import pytest

SWITCH = {"NPU_ROPE_LMDEPLOY": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
FILES = {
    "dlinfer/__init__.py": "",
    "dlinfer/graph.py": "class config: enable_graph_mode = False",
    "dlinfer/vendor/__init__.py": "vendor_name, vendor_ops_registry = 'ascend', {}",
    "dlinfer/vendor/ascend/__init__.py": "",
    "dlinfer/vendor/ascend/torch_npu_ops.py": """
from dlinfer.vendor import vendor_ops_registry
import dlinfer.graph
def apply_rotary_pos_emb(query, key, cos, sin):
    return "the default"
vendor_ops_registry["apply_rotary_pos_emb"] = apply_rotary_pos_emb
""",
    **dict.fromkeys(
        (
            "lmdeploy/__init__.py",
            "lmdeploy/pytorch/__init__.py",
            "lmdeploy/pytorch/backends/__init__.py",
            "lmdeploy/pytorch/backends/dlinfer/__init__.py",
            "lmdeploy/pytorch/models/__init__.py",
        ),
        "",
    ),
    "lmdeploy/pytorch/backends/dlinfer/apply_rotary_emb.py": """
import dlinfer.vendor.ascend.torch_npu_ops
class DlinferApplyRotaryEmbImpl:
    def forward(self, query, key, cos, sin, inplace=True):
        return "the default"
""",
    "lmdeploy/pytorch/models/qwen2_5_vl.py": """
class Qwen2_5_VLForConditionalGeneration:
    def forward(self, vis_pos_emb=None):
        return vis_pos_emb.to(__import__("torch").bfloat16)
""",
}
BEGIN = """
import importlib, sys, threading
import torch, npu_rope_autoload
npu_rope_autoload.install()  # as `import torch` does by the entry point
REGISTRY, LAYER, ANGLES = (getattr(npu_rope_autoload, n) for n in ("REGISTRY", "LAYER", "ANGLES"))
q, half = torch.ones(3, 2, 8), torch.ones(3, 8)
def layer():
    return importlib.import_module(LAYER).DlinferApplyRotaryEmbImpl
def ours(cls):
    return cls().forward(q.clone(), q.clone(), half, half) != "the default"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(site: Path, program: str, **env: str) -> str:
    """Runs it in a child, forked from here to save importing torch; what it logs as a warning."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with os.fdopen(writer, "w") as sys.stderr:
            try:
                os.environ.update({**SWITCH, **env})
                sys.path.insert(0, str(site))
                if sys.modules.pop("npu_rope.lmdeploy", None):  # another test's
                    del npu_rope.lmdeploy
                logging.getLogger().handlers.clear()
                npu_rope_autoload.uninstall()
                exec(BEGIN + program, {})
                status = 0
            except BaseException:
                traceback.print_exc()
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as stderr:
        logged = stderr.read()
    assert os.waitpid(child, 0)[1] == 0, logged
    return logged


def python(program: str, **env: str) -> None:
    """Runs it in a new interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, env={**os.environ, **SWITCH, **env}, check=True)


def test_the_three_places_are_taken_and_put_back(site: Path) -> None:
    logged = run(
        site,
        """
cls = layer()
from npu_rope import lmdeploy
registry = sys.modules[REGISTRY].vendor_ops_registry
model = importlib.import_module(ANGLES).Qwen2_5_VLForConditionalGeneration
places = lambda: (vars(cls)["forward"], registry["apply_rotary_pos_emb"], vars(model)["forward"])
taken = places()
originals = [place.__wrapped__ for place in taken]
instance = cls()
assert ours(cls) and lmdeploy.is_active()
assert model().forward(vis_pos_emb=half).dtype == torch.float32
lmdeploy.disable()
assert all(a is b for a, b in zip(places(), originals)) and not lmdeploy.is_active()
assert instance.forward(q, q, half, half) == "the default" and not npu_rope_autoload.installed()
assert model().forward(vis_pos_emb=half).dtype == torch.bfloat16
lmdeploy.disable()
lmdeploy.enable()
lmdeploy.enable()
assert [place.__wrapped__ for place in places()] == originals and npu_rope_autoload.installed()
lmdeploy.enable(angles=False)
assert model().forward(vis_pos_emb=half).dtype == torch.bfloat16
""",
    )
    assert not logged


def test_modules_that_were_loaded_before(site: Path) -> None:
    run(
        site,
        """
npu_rope_autoload.uninstall()
cls = layer()
assert not ours(cls)
from npu_rope import lmdeploy
lmdeploy.enable()
assert ours(cls)
""",
    )


def test_a_module_is_its_own_loader_s(site: Path) -> None:
    run(
        site,
        """
import inspect
module = sys.modules[layer().__module__]
assert module.__loader__ is module.__spec__.loader
assert type(module.__loader__) is type(inspect.__loader__)
assert "class DlinferApplyRotaryEmbImpl" in inspect.getsource(module)
first = layer()
importlib.reload(module)
assert layer() is not first and ours(layer()), "a reloaded module is patched again"
assert layer().forward.__wrapped__ is not first.forward.__wrapped__
""",
    )


def test_installing_twice_and_from_many_threads_is_once(site: Path) -> None:
    run(
        site,
        """
for _ in range(3):
    npu_rope_autoload.install()
assert sum(type(f).__module__ == "npu_rope_autoload" for f in sys.meta_path) == 1
from npu_rope import lmdeploy
start = threading.Barrier(16)
def go(i):
    start.wait()
    (layer if i % 2 else lmdeploy.enable)()
threads = [threading.Thread(target=go, args=(i,)) for i in range(16)]
for t in threads: t.start()
for t in threads: t.join()
assert ours(layer()) and layer().forward.__wrapped__.__closure__ is None, "wrapped once"
""",
    )


@pytest.mark.parametrize("vendor", ["maca", "camb"])
def test_other_vendors_are_left_alone(site: Path, vendor: str) -> None:
    text = FILES["dlinfer/vendor/__init__.py"].replace("ascend", vendor)
    (site / "dlinfer/vendor/__init__.py").write_text(text)
    run(site, "assert not ours(layer()) and not hasattr(layer().forward, '__wrapped__')")


def test_graph_mode_is_left_alone(site: Path) -> None:
    run(
        site,
        """
cls = layer()
sys.modules["dlinfer.graph"].config.enable_graph_mode = True
assert not ours(cls)
registered = sys.modules[REGISTRY].vendor_ops_registry["apply_rotary_pos_emb"]
assert registered(q, q, half, half) == "the default"
sys.modules["dlinfer.graph"].config.enable_graph_mode = False
assert ours(cls) and registered(q, q, half, half) != "the default"
""",
    )


def test_a_dlinfer_without_the_names_is_left_alone_and_says_why(site: Path) -> None:
    ops = "from dlinfer.vendor import vendor_ops_registry\n"
    (site / "dlinfer/vendor/ascend/torch_npu_ops.py").write_text(ops)
    name = "lmdeploy/pytorch/backends/dlinfer/apply_rotary_emb.py"
    (site / name).write_text(FILES[name].replace("class Dlinfer", "class Other"))
    logged = run(site, "assert importlib.import_module(LAYER).OtherApplyRotaryEmbImpl")
    assert "knows no vendor_ops_registry.apply_rotary_pos_emb in this version of dlinfer" in logged
    assert "knows no DlinferApplyRotaryEmbImpl.forward in this version of lmdeploy" in logged


def test_a_broken_install_says_so_once(site: Path) -> None:
    package = site / "npu_rope"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    logged = run(
        site,
        """
for name in [name for name in sys.modules if name.split(".")[0] == "npu_rope"]:
    del sys.modules[name]
assert not ours(layer())
importlib.import_module(ANGLES)
""",
    )
    assert logged.count("npu_rope leaves LMDeploy as it is") == 1
    assert "undefined symbol: _ZN3c10" in logged


def test_an_error_in_a_watched_module_is_its_importer_s(site: Path) -> None:
    (site / "dlinfer/vendor/ascend/torch_npu_ops.py").write_text("raise OSError('no libhccl.so')")
    run(
        site,
        """
try:
    layer()
except OSError as error:
    assert "no libhccl.so" in str(error)
else:
    raise AssertionError
""",
    )


def test_a_place_that_another_has_patched_since(site: Path) -> None:
    logged = run(
        site,
        """
cls = layer()
below = vars(cls)["forward"]
cls.forward = lambda self, *a: ("theirs", below(self, *a))
from npu_rope import lmdeploy
lmdeploy.disable()
assert cls().forward(q, q, half, half) == ("theirs", "the default")
""",
    )
    assert "was replaced again" in logged


def test_the_switch(site: Path) -> None:
    for off in ("0", "off", "False"):
        run(
            site,
            "assert not ours(layer()) and 'npu_rope.lmdeploy' not in sys.modules",
            NPU_ROPE_LMDEPLOY=off,
        )
    run(
        site,
        """
layer()
model = importlib.import_module(ANGLES).Qwen2_5_VLForConditionalGeneration
assert model().forward(vis_pos_emb=half).dtype == torch.bfloat16
""",
        NPU_ROPE_LMDEPLOY_ANGLES="0",
    )


def test_the_hook_imports_nothing_and_asks_no_finder_about_other_modules() -> None:
    python("""
import sys
before = {*sys.modules}
import npu_rope_autoload
npu_rope_autoload.install()
loaded = {name.split(".")[0] for name in {*sys.modules} - before}
assert loaded <= {*sys.stdlib_module_names, "npu_rope_autoload"}, loaded

class Asked:
    def find_spec(self, *_):
        raise AssertionError("the hook looks for a module that is none of its own")

others, sys.meta_path[:] = sys.meta_path[:], [npu_rope_autoload._FINDER, Asked()]
found = npu_rope_autoload._FINDER.find_spec("json.decoder")
sys.meta_path[:] = others
assert found is None
""")


def test_it_is_the_entry_point_that_import_torch_runs() -> None:
    python(
        """
import sys, torch
assert "npu_rope_autoload" in [type(finder).__module__ for finder in sys.meta_path]
assert "npu_rope" not in sys.modules
""",
        TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )


def test_status_says_what_is_off_and_what_to_do(site: Path) -> None:
    program = """
npu_rope_autoload.uninstall()
if npu_rope_autoload.os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "1":
    npu_rope_autoload.install()
from npu_rope import lmdeploy
print(*map(" ".join, lmdeploy.status()), file=sys.stderr, sep="\\n")
"""
    off = run(site, program)
    assert "--   hook TORCH_DEVICE_BACKEND_AUTOLOAD=0" in off and "lmdeploy and dlinfer" in off
    (site / "lmdeploy-0.18.0.dist-info").mkdir()
    (site / "lmdeploy-0.18.0.dist-info/METADATA").write_text("Name: lmdeploy\nVersion: 0.18.0\n")
    off = run(site, program)
    assert "no   hook TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it off: unset it, or call" in off
    assert "ok   self-check a call as LMDeploy's vision layers make it equals" in off
    assert "ok   hook import hook inst" in run(site, program, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert "--   hook turned off by NPU_" in run(site, program, NPU_ROPE_LMDEPLOY="0")
