"""The discriminator: does an image look like a real high-resolution one?

Tan, Zhu, Liò, *Arbitrary Scale Super-Resolution for Brain MRI Images*, AIAI 2020, after Ledig et al., *SRGAN*, CVPR 2017,
with a global average in the place of SRGAN's flattened features, so that it judges patches of any size.
"""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((64, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1), (512, 512, 2))


class Discriminator(nn.Module):
    """5,214,273 parameters; every convolution has a bias, also those before a batch norm: so the authors' count has it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in _STAGES:
            layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)  # (N, 1, H, W) → (N, 512, ⌈H/16⌉, ⌈W/16⌉)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(512, 1024, 1), nn.LeakyReLU(0.2), nn.Conv2d(1024, 1, 1), nn.Flatten(0)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) of any size, black 0 and white 1 → logits (N,), float32, high for real.

        Logits, not probabilities: the sigmoid is in the loss (`losses`, by binary_cross_entropy_with_logits).
        In training, batch norm needs two images or more than 16 pixels on an axis: torch's ValueError otherwise.
        """
        logits: Tensor = self.classifier(self.features(image)).float()
        return logits
