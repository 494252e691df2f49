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
    def forward(self, vis_pos_emb=None, dtype=__import__("torch").bfloat16):
        return vis_pos_emb.to(dtype)
""",
}
BEGIN = """
import importlib, sys, threading
import torch, npu_rope_autoload
npu_rope_autoload.install()  # as `import torch` does by the entry point
REGISTRY, LAYER = npu_rope_autoload.REGISTRY, npu_rope_autoload.LAYER
ANGLES = "lmdeploy.pytorch.models.qwen2_5_vl"
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


def forget() -> None:
    """As if npu_rope.lmdeploy had not been imported."""
    for name in [name for name in sys.modules if name.startswith("npu_rope.lmdeploy")]:
        del sys.modules[name]
    vars(npu_rope).pop("lmdeploy", None)


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
                forget()  # another test's
                logging.getLogger().handlers.clear()
                npu_rope_autoload.uninstall()
                exec(BEGIN + program, {"forget": forget})
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
lmdeploy.enable(without=["angles"])
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


def test_a_second_copy_of_the_hook_neither_recurses_nor_hooks_again(site: Path) -> None:
    """As importlib.reload makes one, or the same file under another name, or an older one."""
    run(
        site,
        """
import importlib.util
spec = importlib.util.spec_from_file_location("another_copy", npu_rope_autoload.__file__)
copy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copy)
copy.install()
first = npu_rope_autoload._FINDER
importlib.reload(npu_rope_autoload).install()
ours = lambda: [finder for finder in sys.meta_path if hasattr(finder, "is_npu_rope_s")]
assert ours() == [first] and copy.installed() and npu_rope_autoload.installed()
# As if none of them had looked; and one twice, as a copied meta_path makes it.
sys.meta_path[:0] = [first, copy._FINDER, npu_rope_autoload._FINDER]
assert not hasattr(layer().forward.__wrapped__, "__wrapped__"), "wrapped once"
npu_rope_autoload.uninstall()
assert ours() == []
""",
    )


def test_a_second_copy_of_the_drop_in_takes_nothing_again(site: Path) -> None:
    run(
        site,
        """
taken = layer().forward
forget()
from npu_rope import lmdeploy
lmdeploy.enable()
assert layer().forward is taken
""",
    )


def test_the_modules_that_are_watched_are_those_that_are_patched() -> None:
    from npu_rope.lmdeploy import PATCHES

    assert {patch.module for patch in PATCHES} == npu_rope_autoload.WATCHED


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
    assert "vendor_ops_registry.apply_rotary_pos_emb as it is: it is not there" in logged
    assert "DlinferApplyRotaryEmbImpl.forward as it is: it is not there" in logged


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


ERRORS = """
from torch.utils._python_dispatch import TorchDispatchMode
class Failing(TorchDispatchMode):
    def __init__(self, error):
        super().__init__()
        self.error = error
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise self.error
from npu_rope import lmdeploy
"""


def test_what_a_launch_raises_reaches_the_caller_whatever_it_is(site: Path) -> None:
    """It may be another kernel's failure: the default, called instead, would hide it."""
    logged = run(
        site,
        ERRORS
        + """
cls = layer()
registered = sys.modules[REGISTRY].vendor_ops_registry["apply_rotary_pos_emb"]
for error in (RuntimeError("an older kernel"), ValueError("x"), TypeError("x"), MemoryError(),
              NotImplementedError("x"), torch.OutOfMemoryError("no memory"), KeyboardInterrupt()):
    for call in (cls().forward, registered):
        k = q.clone()
        try:
            with Failing(error):
                call(q, k, half, half)
        except BaseException as raised:
            assert raised is error
        else:
            raise AssertionError(f"{error!r} was swallowed")
    assert ours(cls) and lmdeploy.is_active()
""",
    )
    assert not logged


ODD_CALLS = """
wide = torch.ones(3, 2, 2048)
both = torch.ones(3, 4, 8)
odd = {
    "head_dim": (wide, wide.clone(), torch.ones(3, 2048), torch.ones(3, 2048)),
    "odd head_dim": (torch.ones(3, 2, 7), torch.ones(3, 2, 7), torch.ones(3, 6), torch.ones(3, 6)),
    "overlap": (both, both, half, half),
    "no width": (q, q, half[:, :0], half[:, :0]),
    "device": (q, q.to("meta"), half, half),
    "dtype": (q, q.half(), half, half),
    "integers": (q.int(), q.int(), half, half),
    "double": (q.double(), q.double(), half, half),
    "rows": (q, q.clone(), torch.ones(4, 8), torch.ones(4, 8)),
    "one table": (q, q.clone(), half, half[:2]),
    "not a tensor": (q, None, half, half),
    "wide tables": (q, q.clone(), torch.ones(3, 16), torch.ones(3, 16)),
}
"""


def test_what_the_checks_refuse_is_left_call_by_call_and_said_once(site: Path) -> None:
    logged = run(
        site,
        ERRORS
        + ODD_CALLS
        + """
cls = layer()
for name, call in odd.items():
    before = [x.clone() for x in call if isinstance(x, torch.Tensor) and x.device.type == "cpu"]
    for _ in range(3):
        assert cls().forward(*call) == "the default", name
    after = [x for x in call if isinstance(x, torch.Tensor) and x.device.type == "cpu"]
    assert all(map(torch.equal, before, after)), "nothing was written"
    assert ours(cls) and lmdeploy.is_active(), "the next one is ours again"
try:
    cls().forward(q, q, half, half, another=1)
except TypeError as error:
    assert "unexpected keyword argument 'another'" in str(error), "the default's own error"
else:
    raise AssertionError
for tokens in (5, 6, 7):  # one kind, though each has numbers of its own
    many = torch.ones(tokens, 2, 2048)
    assert cls().forward(many, many, many[:, 0], many[:, 0]) == "the default"
count = lmdeploy.patch.counts["layer"]
assert (count.served, sum(count.left.values())) == (len(odd), 3 * len(odd) + 1 + 3), count
text = dict((x, finding) for _, x, finding in lmdeploy.status())["  layer"]
assert text.startswith(f"{len(odd)} calls served; 9 left to LMDeploy: q has head_dim #, expected")
""",
    )
    lines = logged.splitlines()
    assert len(lines) == 11, "one for each kind"
    assert "q has head_dim 2048" in lines[0]
    assert "float32[3, 2, 2048] by [4096, 2048, 1] on cpu" in lines[0]


def test_what_the_default_serves_too(site: Path) -> None:
    """Tensors that can't be written where they lie: rotated to new ones."""
    run(
        site,
        """
cls = layer()
with torch.inference_mode():
    frozen = q.clone()
got = cls().forward(frozen, frozen.clone(), half, half)
assert got != "the default" and got[0] is not frozen and torch.equal(frozen, q)
angles = half.clone().requires_grad_()
got = cls().forward(q, q.clone(), angles, angles)
assert got != "the default" and got[0] is not q and got[0].requires_grad
got[0].sum().backward()
assert angles.grad is not None
""",
    )


@pytest.mark.parametrize("line", ["vis_pos_emb.bfloat16()", "self.dtype_of(vis_pos_emb)"])
def test_angles_of_another_source_are_left_and_said(site: Path, line: str) -> None:
    name = "lmdeploy/pytorch/models/qwen2_5_vl.py"
    (site / name).write_text(
        FILES[name].replace("vis_pos_emb.to(dtype)", line)
        + "    def dtype_of(self, x):\n        return x.to(__import__('torch').bfloat16)\n"
    )
    logged = run(
        site,
        """
layer()
model = importlib.import_module(ANGLES).Qwen2_5_VLForConditionalGeneration
assert model().forward(vis_pos_emb=half).dtype == torch.bfloat16
assert not hasattr(model.forward, "__wrapped__")
""",
    )
    (said,) = logged.splitlines()
    assert "Qwen2_5_VLForConditionalGeneration.forward as it is: its source has" in said


def test_angles_are_plain_tensors_that_everything_can_be_done_with(site: Path) -> None:
    run(
        site,
        """
import copy
layer()
model = importlib.import_module(ANGLES).Qwen2_5_VLForConditionalGeneration
angles = model().forward(vis_pos_emb=half)
assert type(angles) is torch.Tensor and angles is half
assert copy.deepcopy(angles).bfloat16().dtype == torch.bfloat16
assert model().forward(vis_pos_emb=half.double()).dtype == torch.bfloat16
""",
    )


def test_an_unknown_switch_is_an_error(site: Path) -> None:
    logged = run(
        site,
        """
layer()
from npu_rope import lmdeploy
try:
    lmdeploy.enable(without=["layers"])
except ValueError as error:
    assert "without names ['layers'], expected some of ['layer', 'registry'," in str(error)
else:
    raise AssertionError
""",
        NPU_ROPE_LMDEPLOY_WITHOUT="mla, angel",
    )
    assert "NPU_ROPE_LMDEPLOY_WITHOUT names ['angel'], expected some of" in logged


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
        NPU_ROPE_LMDEPLOY_WITHOUT="angles",
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


def test_doctor_where_the_compiled_part_is_missing() -> None:
    """A line that says so, not an exception."""
    python("""
import sys
sys.modules["npu_rope._C"] = None
sys.argv[:], sys.orig_argv[:] = ["-m"], ["python", "-m", "npu_rope"]
from npu_rope import doctor
(line,) = [line for line in doctor.report() if line[1] == "LMDeploy"]
assert line[0] == "no" and line[2].startswith("its rotary layer stays its own, since npu_rope does")
""")


def test_after_disable_captured_graphs_are_spoken_of(site: Path) -> None:
    run(
        site,
        """
import logging
said = []
npu_rope_autoload.logger.setLevel(logging.INFO)
npu_rope_autoload.logger.info = lambda text, *_: said.append(text)
cls = layer()
from npu_rope import lmdeploy
assert ours(cls)
lmdeploy.disable()
assert "NPU graphs that were captured before still replay its kernel" in said[-1]
(line,) = [line for line in lmdeploy.status() if line[1] == "  this process"]
assert line[0] == "--" and "not active any more; NPU graphs that were captured" in line[2]
""",
    )


def test_round_each_gives_the_bits_of_a_chain_of_torch_operators(site: Path) -> None:
    for env in ({}, {"NPU_ROPE_LMDEPLOY_ROUND_EACH": "1"}):
        run(
            site,
            """
import os
cls = layer()
from npu_rope import lmdeploy
torch.manual_seed(0)
q, k = torch.randn(50, 4, 64).bfloat16(), torch.randn(50, 2, 64).bfloat16()
cos, sin = torch.randn(2, 50, 1, 64).bfloat16()
def chain(x):
    x1, x2 = x.chunk(2, -1)
    return x * cos + torch.cat((-x2, x1), -1) * sin
def same():
    rotated = cls().forward(q.clone(), k.clone(), cos[:, 0], sin[:, 0])
    return all(map(torch.equal, rotated, (chain(q), chain(k))))
by_environment = "NPU_ROPE_LMDEPLOY_ROUND_EACH" in os.environ
assert same() == by_environment
lmdeploy.enable(round_each=True)
assert same()
lmdeploy.enable()
assert same(), "left as it was"
lmdeploy.enable(round_each=False)
assert not same()
""",
            **env,
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
