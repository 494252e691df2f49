"""The demo's yardstick, against values worked out by hand."""

import math

import npu_rope
import pytest
import torch
from npu_rope import huggingface
from npu_rope.demo import huggingface as whole_model
from npu_rope.demo import is_accurate
from npu_rope.demo.exact import Errors, as_pairs, errors, rotate
from npu_rope.demo.measure import Row


def test_rotate_turns_pairs_of_either_style() -> None:
    angles = torch.tensor([math.pi / 2, math.pi], dtype=torch.float64)
    half = as_pairs(torch.tensor([1.0, 3.0, 2.0, 4.0]), interleaved=False)
    interleaved = as_pairs(torch.tensor([1.0, 2.0, 3.0, 4.0]), interleaved=True)

    assert torch.equal(half, interleaved)
    # (1, 2) by a quarter, (3, 4) by a half turn.
    expected = torch.tensor([-2 + 1j, -3 - 4j], dtype=torch.complex128)
    torch.testing.assert_close(rotate(half, angles), expected, rtol=0, atol=1e-15)


def test_errors_count_last_places() -> None:
    exact = torch.tensor([3 + 4j, 6 + 8j], dtype=torch.complex128)
    # bf16 has 7 bits after the leading one: the last place is 2**-6 of 3, 2**-5 of 4 and of 6, and
    # 2**-4 of 8.
    result = exact + torch.tensor([2**-6 + 0j, 2**-4 * 1j])
    found = errors(result, exact, torch.bfloat16)

    assert found.largest == 2**-4
    assert found.mean_ulp == (1 + 0 + 0 + 1) / 4
    assert found.rms == pytest.approx(math.hypot(2**-6, 2**-4) / math.hypot(5, 10))


def test_errors_do_not_explode_beside_zero() -> None:
    exact = torch.tensor([1e-30 + 1j], dtype=torch.complex128)
    found = errors(exact + 2**-15, exact, torch.bfloat16)

    # The ulp is that of eps times the pair's length: 2**-7 * 2**-7.
    assert found.mean_ulp == pytest.approx(0.5 * 2**-15 / 2**-14)


@pytest.mark.parametrize(
    ("hugging_face", "npu_rope", "accurate"),
    [
        (2e-3, 1e-3, True),
        (2e-3, 2e-3, True),
        (1e-3, 2e-3, False),
        (2e-3, math.nan, False),
        (1.0, 1.0, False),  # both wrong
    ],
)
def test_the_demo_fails_where_the_operator_is_wrong(
    hugging_face: float, npu_rope: float, accurate: bool
) -> None:
    rows = [Row("", None, Errors(0.0, rms, 0.0)) for rms in (hugging_face, npu_rope)]
    assert is_accurate(rows) is accurate


def test_the_demo_fails_where_a_model_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_model.section() == 0
    assert "the same bits" in capsys.readouterr().out

    patch = huggingface.patch
    monkeypatch.setattr(huggingface, "patch", lambda model: patch(model, keep_bits=False))
    assert whole_model.section() == 1
    assert "OTHER BITS" in capsys.readouterr().out


def test_the_demo_fails_where_norms_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_model.norms_and_rotation()
    assert "26 operators" in capsys.readouterr().out

    norm_apply = npu_rope.norm_apply
    monkeypatch.setattr(npu_rope, "norm_apply", lambda *x, **o: norm_apply(*x, **{**o, "eps": 0.1}))
    assert not whole_model.norms_and_rotation()
    assert "WRONG" in capsys.readouterr().out
