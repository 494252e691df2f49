"""An older pair of LMDeploy and dlinfer-ascend: the same drop-in, where their own code still loads.

Pairs of which LMDeploy's layer does not import beside today's torch and transformers are read by
dlinfer's operator and LMDeploy's class alone, loaded as files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

import npu_rope
import pytest
import torch
from ascend import build_layer, default, drop_in, heads, launches, packed, tables

TOKENS = 5
PAIR = importlib.metadata.version("lmdeploy"), importlib.metadata.version("dlinfer-ascend")


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    return build_layer()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_one_launch_of_ours(layer: torch.nn.Module, head_dim: int, inplace: bool) -> None:
    assert drop_in.is_active()
    q, k, _ = (heads(x, head_dim) for x in packed(TOKENS, *(head_dim * n for n in (4, 2, 2))))
    cos, sin = tables(TOKENS, head_dim)
    expected = npu_rope.reference.apply(q, k, cos, sin)
    names = launches(lambda: layer(q, k, cos, sin, inplace=inplace))
    assert names == ["npu_rope.apply.default"]
    assert all(map(torch.equal, layer(q, k, cos, sin, inplace=inplace), expected))


def test_the_registry_serves_who_calls_it_directly() -> None:
    from dlinfer import ops

    q, k = torch.randn(1, TOKENS, 4, 64), torch.randn(1, TOKENS, 2, 64)
    cos, sin = (x.view(1, TOKENS, 1, 64) for x in tables(TOKENS, 64, torch.float32))
    more = len(inspect.signature(ops.apply_rotary_pos_emb).parameters) - 4
    if not more:
        q, k, cos, sin = q[0], k[0], cos.view(TOKENS, 64), sin.view(TOKENS, 64)
    expected = npu_rope.reference.apply(q, k, cos, sin)
    args = q, k, cos, sin, *[None] * more
    assert all(map(torch.equal, ops.apply_rotary_pos_emb(*args), expected))
    names = launches(lambda: ops.apply_rotary_pos_emb(*args))
    assert names == ["npu_rope.apply.default"]


def test_disabled_is_the_default(layer: torch.nn.Module) -> None:
    """Where the pair's default fails, as its arguments differ, so does LMDeploy's layer again."""
    q, k, _ = (heads(x, 64) for x in packed(TOKENS, 4 * 64, 2 * 64, 2 * 64))
    call = (q, k, *tables(TOKENS, 64))
    with default():
        if PAIR in {("0.7.2", "0.1.8"), ("0.7.3", "0.1.7")}:
            with pytest.raises(TypeError, match="argument"):
                layer(*call)
        else:
            assert len(launches(lambda: layer(*call))) == 12
    assert len(launches(lambda: layer(*call))) == 1


@pytest.mark.parametrize("patch", drop_in.PATCHES, ids=str)
def test_what_was_tried_with_this_version_is_taken(patch: drop_in.patch.Patch) -> None:
    first, last = patch.tried or PAIR[:1] * 2
    tried = version(first) <= version(PAIR[0]) <= version(last)
    try:
        importlib.import_module(patch.module)
    except (ImportError, AttributeError) as error:  # of LMDeploy's, beside today's transformers
        assert patch.tried is not None
        pytest.skip(f"{patch.module} does not import here: {error}")
    drop_in.enable()
    assert dict(drop_in.patch.places()).get(patch) == ("taken" if tried else None)


def version(text: str) -> list[int]:
    return [int(part) for part in text.split(".")[:3]]
