"""The loop by hand behind the table of everything tried."""

import pytest
import torch

from research import tried


@pytest.fixture(scope="module")
def studio():
    with torch.no_grad():
        yield tried.Studio(1)


def test_by_hand_is_the_unet(studio):
    with torch.no_grad():
        x, t = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0, 500.0])
        out, features = studio.by_hand(x, t, {0, 2, None})
        feature = features[2]
        assert torch.equal(features[None], out)
        assert torch.equal(out, studio.unet(x, t, context=studio._context))
        again, shallower = studio.by_hand(x, t, {0}, 2, feature)
        assert torch.equal(out, again) and torch.equal(shallower[0], features[0])
        assert not torch.equal(out, studio.by_hand(x, t, (), 2, feature + 1)[0])


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M Karras"])
def test_all_full_is_the_plain_picture(studio, sampler):
    with torch.no_grad():
        plain = studio.run(sampler, 4, 5.0)
        assert torch.equal(studio.run(sampler, 4, 5.0, tried.Way(frozenset(range(4)), 0, tried.copy)), plain)
        for branch in (0, None):
            assert not torch.equal(studio.run(sampler, 4, 5.0, tried.Way(frozenset({0, 1}), branch)), plain)


@pytest.mark.slow
def test_what_calibrate_gains_is_measured_on_other_prompts(capsys):
    from research import calibration

    calibration.main(
        [
            "--samplers",
            "Euler",
            "--steps",
            "14",
            "--speed-ups",
            "1.6",
            "--pairs",
            "2",
            "--pictures",
            "2",
            "--tries",
            "6",
        ]
    )
    torch.set_grad_enabled(True)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 14")]
    assert row.startswith("| 14 | Euler | 1.6x | ") and row.count(" at ") == 3 and row.count("x |") == 4


def test_a_straight_line_is_followed():
    line = [(2.0 - k, torch.full((1, 2, 3, 3), 5.0 - 2 * k)) for k in range(4)]
    for name, estimate in tried.ESTIMATORS.items():
        exact = torch.full((1, 2, 3, 3), 5.0 - 2 * 3.5)
        assert torch.allclose(estimate(line, -1.5), exact) == (
            name
            in (
                "first order",
                "line through 3",
                "trust, a row",
                "trust, a channel",
                "trust, 0 to 1",
                "trust, all rows together",
                "trust, smooth and rest",
            )
        )
