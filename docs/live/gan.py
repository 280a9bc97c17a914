"""A generator against a discriminator: two losses and two optimizers in one iteration.

`chainrule run` ends a step at each optimizer's step. To see both sides in one page, the script records an iteration.
"""

import sys

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import chainrule

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2))
discriminator = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1))
update_generator = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.999))
update_discriminator = torch.optim.Adam(discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))

with chainrule.record() as recording:
    angle = 6.28 * torch.rand(4, 1)
    real = torch.cat([angle.cos(), angle.sin()], dim=1)
    fake = generator(torch.randn(4, 1))

    update_discriminator.zero_grad()
    judged = discriminator(torch.cat([real, fake.detach()]))
    truth = torch.cat([torch.ones(4, 1), torch.zeros(4, 1)])
    loss_of_discriminator = binary_cross_entropy_with_logits(judged, truth)
    loss_of_discriminator.backward()
    update_discriminator.step()

    for weight in discriminator.parameters():
        weight.requires_grad_(False)  # the generator's loss must not train it
    update_generator.zero_grad()
    loss_of_generator = softplus(-discriminator(fake)).mean()
    loss_of_generator.backward()
    update_generator.step()

recording.save(sys.argv[1])
