"""What a latent may have become since the evaluation before, and what is another picture or another part of it."""

import pytest
import torch

from deepcache_ext.plan.estimators import Moment
from deepcache_ext.plan.importance import Nature
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.motion import LONG, Motion, _distances
from deepcache_ext.unet.answers import Answers
from tests import unets
from tests.driver import LAYOUT, call, evaluate, session, sigma

KARRAS = [(14.6 ** (1 / 7) + k / 19 * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for k in range(20)]


def smooth(seed, size=24):
    """A picture of unit variance whose neighbouring places are alike."""
    small = torch.randn(1, 4, size // 6, size // 6, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic")
    return picture / picture.std()


def noise(seed, size=24):
    return torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed))


def euler(sigmas=KARRAS, guided=1.5):
    """The latents of a run that ends in a picture: the guided estimate is `guided` times as strong at first."""
    for level in sigmas:
        strength = 1 + (guided - 1) * level / (1 + level)
        yield strength * smooth(0) + level * noise(1)


def ancestral(sigmas=KARRAS):
    x = smooth(0) + sigmas[0] * noise(1)
    for k, level in enumerate(sigmas):
        yield x
        after = sigmas[k + 1] if k + 1 < len(sigmas) else 0.0
        up = min(after, (after**2 * (level**2 - after**2) / level**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        x = smooth(0) + down / level * (x - smooth(0)) + up * noise(100 + k)


def dpm_fast(sigmas, steps=6):
    """Steps that ask three times, on a way that goes further down than they end, and add noise at their end."""
    x = smooth(0) + sigmas[0] * noise(1)
    for k in range(steps):
        start, end = sigmas[k], sigmas[k + 1]
        down = end**2 / start
        for third in range(3):
            at = start * (down / start) ** (third / 3)
            yield smooth(0) + at / start * (x - smooth(0)), at
        x = smooth(0) + down / start * (x - smooth(0)) + (end**2 - down**2) ** 0.5 * noise(100 + k)


def lcm(sigmas=KARRAS):
    for k, level in enumerate(sigmas):
        yield smooth(0) + level * noise(100 + k)


def follows(motion, latent, moment):
    return motion.ask(latent, moment, Answers())()


def alarms(latents, motion=None, sigmas=KARRAS):
    motion = motion or Motion(fresh_noise=False)
    moments = [Moment(k, level) for k, level in enumerate(sigmas)]
    return [k for k, latent in enumerate(latents) if not follows(motion, latent, moments[k])]


@pytest.mark.parametrize("guided", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_run_is_followed(guided, scaled):
    latents = [
        x / (level**2 + 1) ** 0.5 if scaled else x for x, level in zip(euler(guided=guided), KARRAS, strict=True)
    ]
    assert alarms(latents) == []
    assert alarms([x.half() for x in latents]) == []


def test_runs_with_fresh_noise_are_followed():
    assert alarms(ancestral(), Motion(fresh_noise=True)) == []
    assert alarms(lcm(), Motion(fresh_noise=True)), "it is what all new noise adds"
    assert alarms(lcm(), Motion(fresh_noise=True, all_fresh=True)) == []


@pytest.mark.parametrize("ratio", [0.6, 0.9, 0.97])
def test_steps_that_ask_below_their_end_are_followed(ratio):
    """DPM fast and DPM adaptive with eta: what they add is the noise of a whole step, not of its last third."""
    latents, sigmas = zip(*dpm_fast([14.6 * ratio**k for k in range(7)]), strict=True)
    shares = []

    class Watched(Motion):
        def _is_within(self, turned, allowed):
            shares.append(turned / allowed)
            return super()._is_within(turned, allowed)

    assert alarms(latents, Watched(fresh_noise=True), sigmas) == []
    assert max(shares) < 0.8  # there is room for what guidance adds


CHANGES = {
    "rolled": lambda x, k: torch.roll(x, (5 * k, 7 * k), (2, 3)),
    "rolled by one": lambda x, k: torch.roll(x, k, 3),
    "mirrored": lambda x, k: x.flip(3) if k % 2 else x,
    "another picture": lambda x, k: x if k % 2 else smooth(7) + KARRAS[k] * noise(8),
    "other noise": lambda x, k: x if k % 2 else smooth(0) + KARRAS[k] * noise(8),
    "transposed": lambda x, k: x.transpose(2, 3) if k % 2 else x,
    "of the other sign": lambda x, k: -x if k % 2 else x,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_elsewhere_is_noticed(change, fresh):
    latents = [CHANGES[change](x, k) for k, x in enumerate(ancestral() if fresh else euler())]
    noticed = alarms(latents, Motion(fresh_noise=fresh))
    # Towards the end hardly any noise is left, and what a sampler adds allows for more.
    assert set(range(1, 8 if fresh else 9)) <= set(noticed)


def test_one_row_of_a_batch_is_enough():
    rows = [torch.cat([x, CHANGES["rolled"](x, k)]) for k, x in enumerate(euler())]
    assert set(range(1, 14)) <= set(alarms(rows))


@pytest.mark.parametrize("fresh", [False, True])
def test_rows_that_change_places(fresh):
    """Of one picture, at low noise (img2img), where the angle alone would allow it. Equal rows are no change."""
    sigmas = KARRAS[10:18]

    def latents(swapped):
        for k, level in enumerate(sigmas):
            rows = [
                smooth(0) + level * (noise(row) + (0.1 * noise(9 * k + row + 50) if fresh else 0)) for row in (1, 2)
            ]
            yield torch.cat([*(rows[::-1] if swapped and k % 2 else rows), rows[0] if not swapped else rows[k % 2]])

    assert alarms(latents(False), Motion(fresh_noise=fresh), sigmas) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert alarms(latents(False), Motion(fresh_noise=fresh), sigmas) == []
    assert alarms(latents(True), Motion(fresh_noise=fresh), sigmas) == [*range(1, 8)]


def test_each_shape_is_followed_by_itself():
    """A host that leaves the negative prompt out at times gives half the rows."""
    latents = [torch.cat([x, x]) if k % 2 else x for k, x in enumerate(euler())]
    assert alarms(latents) == []


def test_two_evaluations_at_one_level():
    """Heun corrects what it went to; PLMS asks twice at the start."""
    motion, x = Motion(fresh_noise=False), list(euler())
    assert follows(motion, x[0], Moment(0, KARRAS[0])) and follows(motion, x[3], Moment(1, KARRAS[3]))
    assert follows(motion, x[3] + 0.5 * (x[3] - x[2]), Moment(2, KARRAS[3]))


def test_levels_that_are_not_known_leave_more_room():
    motion = Motion()
    for k, x in enumerate(euler()):
        assert follows(motion, x, Moment(k))
    assert not follows(motion, smooth(7) + noise(8), Moment(20))


def test_a_pass_that_moves_runs_in_full():
    """Seamless textures: the latent is rolled between the steps."""
    unet, cache = unets.shared_unet(LAYOUT), session(3, total=6)
    cache.attach(unet)
    with torch.no_grad():
        for k in range(6):
            x = torch.roll(smooth(0, 8).repeat(2, 1, 1, 1) + sigma(k) * noise(1, 8), (3 * k, k), (2, 3))
            evaluate(cache, unet, k, x, call(x=x))
    report = cache.close()
    assert report.fraction == "6 of 6 full" and report.misses == {Reason.MOVED: 4}


@pytest.mark.parametrize("times", [1, 9])
def test_a_pass_that_moved_again_and_again_is_not_believed_at_its_end(times):
    """There, with hardly any noise left, a smooth picture that is rolled a little looks as if it had not been."""
    unet, cache = unets.shared_unet(LAYOUT), session(3, total=12)
    cache.attach(unet)
    with torch.no_grad():
        for k in range(12):
            level = sigma(k)
            by = 4 * min(k, times) if level > 0.8 else 0
            x = torch.roll(smooth(0, 24) + level * noise(1), by, 3).repeat(2, 1, 1, 1)
            evaluate(cache, unet, k, x, call(x=x))
    report = cache.close()
    if times > 1:
        assert report.fraction == "12 of 12 full" and report.misses == {Reason.MOVED: 8}
    else:
        assert report.cached_evaluations >= 5


def test_the_nature_of_the_sampler_is_what_counts():
    assert Nature().all_fresh is False and follows(Motion(True, True), noise(1), Moment(0, 1.0))


def test_long_rows_are_compared_in_pieces():
    one = torch.randn(3, LONG, generator=torch.Generator().manual_seed(0))
    other = torch.randn(3, LONG, generator=torch.Generator().manual_seed(1))
    whole = torch.cdist(one.double(), other.double(), compute_mode="donot_use_mm_for_euclid_dist")
    for numbers in (LONG, LONG - 1):  # which cannot be divided
        assert torch.allclose(_distances(one[:, :numbers], other[:, :numbers]).double(), whole, rtol=1e-3)
