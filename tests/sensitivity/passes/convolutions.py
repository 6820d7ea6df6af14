"""Convolutions of every stride, padding, dilation and number of groups, with an example's shape."""

from torch import nn

CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3), (4, 9)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 12)),
    (nn.Conv1d(4, 6, 4, padding="same"), (4, 9)),
    (nn.Conv1d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), (4, 9)),
    (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 9)),
    (nn.Conv2d(3, 4, 3), (3, 6, 7)),
    (nn.Conv2d(3, 4, 1, bias=False), (3, 6, 7)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), groups=2), (4, 8, 9)),
    (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (4, 6, 6)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=1, stride=2), (4, 6, 6)),
    (nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (3, 8, 8)),
    (nn.Conv2d(3, 4, 3, padding="valid", dilation=2), (3, 8, 8)),
    (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (3, 6, 6)),
    (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular", stride=2), (3, 6, 6)),
    (nn.Conv2d(3, 4, 3, padding="same", padding_mode="replicate"), (3, 6, 6)),
    (nn.Conv2d(3, 4, (2, 4), padding="same", padding_mode="reflect"), (3, 6, 6)),
    (nn.Conv3d(2, 4, 2, groups=2, stride=(1, 2, 1), padding=1), (2, 4, 5, 4)),
    (nn.Conv3d(2, 3, (1, 2, 3), padding=1, padding_mode="circular"), (2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3), (4, 7)),
    (nn.ConvTranspose1d(4, 6, 3, 3, padding=1, output_padding=2, groups=2), (4, 7)),
    (nn.ConvTranspose1d(4, 2, 3, 2, dilation=3, padding=2), (4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 4, 5)),
    (nn.ConvTranspose2d(4, 4, (2, 3), stride=(2, 1), groups=4, bias=False), (4, 4, 5)),
    (nn.ConvTranspose2d(6, 4, 3, stride=3, output_padding=(2, 1), groups=2), (6, 3, 3)),
    (nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2), (2, 3, 3, 2)),
]
