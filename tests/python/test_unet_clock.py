"""Passes and evaluations as plain diffusers shows them, and what a scheduler tells about noise."""

import diffusers
import pytest
import torch

from deepcache_ext.python.unet_clock import Beat, Clock, Place, adds_noise, noise_level
from tests import diffusers_pipelines as pipelines

PASS, EVALUATION, CALL = Beat.PASS, Beat.EVALUATION, Beat.CALL


def drifting(count, seed=0, keep=0.9):
    """x of one picture, evaluation after evaluation; with `keep` = 0 each has noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(1, 4, 8, 8, generator=generator)]
    while len(xs) < count:
        xs.append(keep * xs[-1] + (1 - keep**2) ** 0.5 * torch.randn(1, 4, 8, 8, generator=generator))
    return xs


def beats(timesteps, xs=None, scheduler=None, clock=None):
    clock = clock or Clock()
    xs = xs or drifting(len(timesteps))
    return [clock.look(x, t, scheduler) for x, t in zip(xs, timesteps, strict=True)]


def test_elements_of_a_list():
    clock, ts = Clock(), torch.tensor([9, 7, 7, 5])  # as Heun has it
    assert beats(ts, clock=clock) == [PASS, EVALUATION, EVALUATION, EVALUATION]
    assert clock.remaining == 1
    assert beats(ts, clock=clock)[0] is PASS  # from its beginning again
    assert beats(torch.tensor([4, 3]), clock=clock) == [PASS, EVALUATION]  # another list, though it goes on falling
    assert beats([ts[1], ts[1], ts[2].expand(3), ts[2:3]]) == [PASS, CALL, EVALUATION, CALL]
    assert beats([ts[2], ts[1]]) == [PASS, PASS]  # TextToVideoZero rewinds
    rising = torch.tensor([1, 3, 5])  # inversion
    assert beats(rising) == [PASS, EVALUATION, EVALUATION]


def test_an_evaluation_that_is_left_out():
    """By who stands above the UNet's calls. A loop over a part of the list leaves none out."""
    ts = torch.arange(20, 0, -1)
    for indices, out in {(0, 1, 2, 4, 5): 3, (0, 1, 1, 2, 3): None, (0, 2, 4, 6): None, (0, 2, 4, 5): 3}.items():
        clock, left_out = Clock(), []
        for index in indices:
            clock.look(torch.zeros(1), ts[index])
            left_out.append(clock.left_out)
        assert left_out == [k == out for k in range(len(indices))]


def test_a_scheduler_that_steps_on_without_a_call():
    scheduler, clock = pipelines.scheduler("EulerDiscreteScheduler"), Clock()
    scheduler.set_timesteps(8)
    x, left_out = torch.randn(1, 4, 8, 8), []
    for k, t in enumerate(scheduler.timesteps):
        if k % 2 == 0:  # as evenly as a loop over every second timestep
            clock.look(x, t, scheduler)
            left_out.append(clock.left_out)
        x = scheduler.step(x, t, x).prev_sample
    assert left_out == [False, False, True, True]  # at first its step is not known


def test_a_list_that_is_written_to_is_another_one():
    ts = torch.tensor([9, 7])
    clock = Clock()
    assert clock.look(torch.zeros(1), ts[0]) is PASS
    ts.sub_(1)
    assert clock.look(torch.zeros(1), ts[1]) is PASS


def test_a_list_that_is_gone_gives_its_memory_to_no_other():
    clock = Clock()
    for seed in range(20):
        ts = torch.arange(1000, 0, -1) - seed
        assert clock.look(torch.zeros(1), ts[seed]) is PASS
        del ts


@pytest.mark.parametrize(
    "given",
    [
        5,
        5.0,
        torch.tensor(5),
        torch.tensor([5]),
        torch.tensor([5, 5]),
        torch.tensor(5).expand(2),
    ],
    ids=repr,
)
def test_what_is_no_element_of_a_list(given):
    assert Place.of(given) is None
    assert beats([6, given, 4.5, 4, 5]) == [PASS, EVALUATION, EVALUATION, EVALUATION, PASS]


def test_numbers_that_repeat():
    x, other = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    xs = [x, x.clone(), other, other.clone(), x[:, :2]]
    assert beats([5] * 5, xs) == [PASS, CALL, PASS, CALL, PASS]
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(3)
    clock = Clock()
    scheduler._step_index = 0
    assert clock.look(x, 5.0, scheduler) is PASS
    scheduler._step_index = 1
    assert clock.look(x, 4.0, scheduler) is EVALUATION
    assert clock.look(other, 4.0, scheduler) is CALL  # the scheduler has not stepped: a tile, or a blurred latent
    scheduler._step_index = 2
    assert clock.look(x, 4.0, scheduler) is EVALUATION
    scheduler.set_timesteps(3)
    assert clock.look(x, 3.0, scheduler) is PASS


AS_VALUES = pytest.mark.parametrize("as_value", [float, lambda t: torch.full((2,), t)], ids=["numbers", "tensors"])


@AS_VALUES
def test_values_that_fall_over_other_pictures(as_value):
    """Another picture after one that was broken off, and a test at random timesteps; with one scheduler or none."""
    falling = [as_value(t) for t in (900, 700, 300)]
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    for known in (None, scheduler):
        assert beats(falling, drifting(3), known) == [PASS, EVALUATION, EVALUATION]
        assert beats(falling, drifting(3, keep=0), known) == [PASS, PASS, PASS]
        rows = [torch.cat(pair) for pair in zip(drifting(3), drifting(3, seed=1, keep=0), strict=True)]
        assert beats(falling, rows, known) == [PASS, PASS, PASS]  # one row of two goes on
    image = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(9))
    assert beats(falling, [torch.cat([x, image], 1) for x in drifting(3, keep=0)]) == [PASS, PASS, PASS]
    assert beats(falling, [torch.cat([x, image], 1) for x in drifting(3)]) == [PASS, EVALUATION, EVALUATION]


def test_values_that_fall_as_the_scheduler_steps():
    """However far x moves: few steps change it much, fresh noise too."""
    scheduler, clock = diffusers.EulerDiscreteScheduler(), Clock()
    scheduler.set_timesteps(3)
    found = []
    for k, x in enumerate(drifting(3, keep=0)):
        scheduler._step_index = k
        found.append(clock.look(x, 900.0 - k, scheduler))
    assert found == [PASS, EVALUATION, EVALUATION]
    scheduler._step_index = 0  # begun anew
    assert clock.look(drifting(1, seed=1)[0], 1.0, scheduler) is PASS


def test_rows_with_timesteps_of_their_own():
    assert beats([torch.tensor([5, 6]), torch.tensor([4, 5])]) == [PASS, PASS]


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "LCMScheduler",
    ],
)
def test_noise_levels(name):
    """By the training schedule, for every element of a scheduler's list."""
    scheduler, clock = pipelines.scheduler(name), Clock()
    scheduler.set_timesteps(8)
    alphas = diffusers.DDIMScheduler(**pipelines.TRAINED).alphas_cumprod.double()
    for t in scheduler.timesteps[1:]:
        clock.look(torch.zeros(1), t)
        alpha = alphas[round(float(t))]
        found = noise_level(scheduler, clock.index_in(scheduler.timesteps))
        assert found == pytest.approx(float(((1 - alpha) / alpha).sqrt()), rel=2e-2)


@pytest.mark.parametrize("name", ["IPNDMScheduler", "DDIMScheduler"])
def test_evaluations_to_come(name):
    """By the scheduler's own list, which may be a part of a longer one: IPNDM cuts its last timestep off."""
    scheduler, clock = getattr(diffusers, name)(), Clock()
    scheduler.set_timesteps(8)
    given = scheduler.timesteps[3:]  # as img2img has it
    for place, t in enumerate(given):
        clock.look(torch.zeros(1), t, scheduler)
        assert clock.remaining == len(given) - place
    assert noise_level(scheduler, len(scheduler.timesteps)) is None
    assert noise_level(scheduler, -1) is None


def test_unknown_noise_levels():
    scheduler, clock = pipelines.scheduler(), Clock()
    scheduler.set_timesteps(4)
    clock.look(torch.zeros(1), torch.arange(4)[2])
    assert clock.index_in(scheduler.timesteps) is None  # of another list
    assert clock.index_in(None) is None
    assert noise_level(scheduler, None) is None
    assert noise_level(None, None) is None


def test_noise_levels_in_another_measure():
    """SD.Next's VDM Solver: shares of noise from 0 to 1, and its own function in place of alpha_bar's table."""
    share = torch.tensor([0.9999, 0.99, 0.8, 0.3])
    scheduler = type("VDMScheduler", (), {"timesteps": share, "sigmas": share, "alphas_cumprod": len})()
    assert [noise_level(scheduler, k) for k in range(4)] == [None] * 4


@pytest.mark.parametrize(
    ("scheduler", "adds"),
    [
        (None, True),
        (diffusers.DDIMScheduler(), False),
        (diffusers.EulerDiscreteScheduler(), False),
        (diffusers.EulerAncestralDiscreteScheduler(), True),
        (diffusers.KDPM2AncestralDiscreteScheduler(), True),
        (diffusers.LCMScheduler(), True),
        (diffusers.DDPMScheduler(), True),
        (diffusers.PNDMScheduler(), False),
        (diffusers.DPMSolverMultistepScheduler(), False),
        (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), True),
        (diffusers.TCDScheduler(), True),
        (diffusers.UniPCMultistepScheduler(), False),
        (type("UFOGenScheduler", (), {})(), True),
        (type("TDDScheduler", (), {})(), True),
        (type("VDMScheduler", (), {})(), True),
        (type("LangevinDynamicsScheduler", (), {})(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedulers_that_add_noise(scheduler, adds):
    assert adds_noise(scheduler) is adds
