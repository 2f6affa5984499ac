"""The training of the demo's autoencoder, and what the card is written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from demo.webui.autoencoder import Autoencoder, Widths
from demo.webui.checkpoints import autoencoder as autoencoder_of
from demo.webui.checkpoints import available, make_unet, state_dict, text_encoder
from train import card, code, data, learn


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Pictures [3, 3, 64, 64] of coloured squares; crops and widths to fit."""
    monkeypatch.setattr(code, "WIDTHS", Widths(encoder=8, decoder=(8, 8, 8), blocks=1))
    monkeypatch.setattr(code, "CROP", 32)
    monkeypatch.setattr(code, "SIZE", 64)
    pictures = torch.full((3, 3, 64, 64), 255, dtype=torch.uint8)
    pictures[0, 0, 16:48, 8:40] = 20
    pictures[1, 1, 24:48, 24:48] = 90
    pictures[2, :, 8:56, 16:40] = 60
    return pictures


def test_a_short_training_learns_and_stays(small: torch.Tensor, tmp_path: Path) -> None:
    untrained, wanted = Autoencoder(code.WIDTHS), code.as_input(small)
    before = code.psnr(untrained.decode(code.latents(untrained, small)), wanted).mean()
    made, _ = code.train_code(small, small, 0.05, tmp_path)
    after = code.psnr(made.decode(code.latents(made, small)), wanted).mean()
    assert after > before + 3
    half = torch.load(tmp_path / "encoder.pt", weights_only=True)
    for name, tensor in made.state_dict().items():
        if not name.startswith("decoder."):  # what latents mean is settled before the decoder's own time
            assert torch.equal(tensor, half[name].half().float()), name
    coded = code.latents(made, small)
    assert coded.mean((0, 2, 3)).abs().max() < 0.02
    assert (coded.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_error_sees_blurred_edges() -> None:
    sharp, soft = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    sharp[..., 4:] = 1
    soft[..., 3:] = 0.5
    soft[..., 5:] = 1
    flat = sharp + (soft - sharp).abs().mean()
    assert code.error(sharp, sharp) == 0
    assert code.error(soft, sharp) > 2 * code.error(flat, sharp)


def test_pictures_are_on_white_and_of_one_size(tmp_path: Path) -> None:
    drawn = Image.new("RGBA", (data.SIZE, data.SIZE))
    drawn.paste((200, 10, 20, 255), (64, 64, 192, 192))
    drawn.save(tmp_path / "a.png")
    found = data.picture(tmp_path / "a.png")
    assert found.shape == (3, data.SIZE, data.SIZE)
    assert found[:, 0, 0].tolist() == [255, 255, 255]
    assert found[:, 128, 128].tolist() == [200, 10, 20]
    drawn.resize((64, 64)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="64x64"):
        data.picture(tmp_path / "b.png")


def test_what_is_written_is_what_the_host_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "STEPS", 1)
    monkeypatch.setattr(card, "WELL_KNOWN", tuple(data.VOCABULARY)[:1])
    model, made = learn.Model().eval().requires_grad_(False), Autoencoder(code.WIDTHS)
    words = torch.randint(0, 256, (2, 3, data.SIZE, data.SIZE), dtype=torch.uint8)
    progress = learn.Progress(2, 1.0, [1.0, 0.5])
    card.write(model, made, words, progress, tmp_path, "cpu", 16, 1.0)
    found = available(tmp_path)[learn.LAYOUT.name]
    unet, text, autoencoder = make_unet(found), text_encoder(found), autoencoder_of(found)
    unet.load_state_dict(state_dict(found, unet))
    assert text is not None and autoencoder is not None
    x, t = torch.randn(1, 4, 32, 32), torch.tensor([500])
    context = text.encode("red apple")[None]
    assert torch.equal(unet(x, t, context=context), model.unet(x, t, context=context))
    assert torch.allclose(autoencoder.decode(x), made.decode(x), atol=1e-2)
    assert found.trained["prediction"] == "eps" and found.trained["size"] == data.SIZE


def test_noise_of_the_training_varies_in_mean_and_size() -> None:
    torch.manual_seed(1)
    noise = learn._noise(400, torch.Size((4, 32, 32)), torch.device("cpu"))
    means, sizes = noise.mean((2, 3)), noise.std((2, 3)).mean(1)
    assert abs(float(means.std()) - (learn.OFFSET**2 + 1 / 32**2) ** 0.5) < 0.01
    assert abs(float(sizes.std()) - learn.SPREAD) < 0.01
    assert abs(float(noise.mean())) < 0.01 and abs(float(sizes.mean()) - 1) < 0.01
