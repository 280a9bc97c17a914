"""Healthy runs that look unhealthy from outside: losses that measure no progress, players that take turns, steps back.

A policy's loss is an estimate around 0, a loss of episodes grows with them, tasks in turn have losses of their own, and
a search withdraws the update that it tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import healthy
from tests.bed.loops.networks import TEXT
from tests.bed.loops.shared import batches, mlp, points


class Pole:
    """A pole that falls to the side to which it leans, unless it is pushed; an episode ends when it has fallen."""

    LIMIT = 24

    def __init__(self) -> None:
        self.angle, self.speed = float(torch.randn(()) * 0.05), 0.0

    def push(self, right: int) -> bool:
        """Whether it still stands."""
        self.speed += 0.05 * self.angle + (0.03 if right else -0.03)
        self.angle += self.speed
        return abs(self.angle) < 0.3

    @property
    def state(self) -> Tensor:
        return torch.tensor([4 * self.angle, 10 * self.speed])


def episode(policy: nn.Module) -> tuple[Tensor, Tensor]:
    """The states of one episode and the actions that were drawn in them."""
    pole, states, actions = Pole(), [], []
    with torch.no_grad():
        for _ in range(Pole.LIMIT):
            states.append(pole.state)
            actions.append(torch.distributions.Categorical(logits=policy(states[-1])).sample())
            if not pole.push(int(actions[-1])):
                break
    return torch.stack(states), torch.stack(actions)


@healthy
def policy_gradient_whose_loss_sums_over_episodes_that_grow():
    policy = mlp(2, 16, 2, act=nn.Tanh)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    yield policy
    while True:
        states, actions = episode(policy)
        returns = torch.arange(len(states), 0, -1.0)
        chosen = policy(states).log_softmax(1).gather(1, actions.unsqueeze(1)).squeeze(1)
        optimizer.zero_grad()
        (-(chosen * returns).sum()).backward()
        optimizer.step()
        yield


@healthy
def clipped_surrogate_of_a_policy():
    """PPO on a bandit with a context: several epochs on what an old policy chose, with advantages of mean 0."""
    policy, best = mlp(8, 32, 4, act=nn.Tanh), torch.randn(8, 4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    yield policy
    while True:
        x = torch.randn(128, 8)
        with torch.no_grad():
            old = torch.distributions.Categorical(logits=policy(x))
            action = old.sample()
            before = old.log_prob(action)
            reward = (x @ best).gather(1, action.unsqueeze(1)).squeeze(1)
            advantage = (reward - reward.mean()) / (reward.std() + 1e-8)
        for _ in range(4):
            for rows in torch.randperm(128).split(32):
                now = torch.distributions.Categorical(logits=policy(x[rows]))
                ratio = (now.log_prob(action[rows]) - before[rows]).exp()
                terms = torch.min(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])
                optimizer.zero_grad()
                (-terms.mean()).backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimizer.step()
                yield


@healthy
def q_learning_with_a_target_network():
    """The targets grow as the values do, from 0 on, and so does the loss for a while."""
    online, target = mlp(2, 32, 2), mlp(2, 32, 2)
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    yield {"online": online, "target": target}
    memory: list[tuple[Tensor, int, float, Tensor, float]] = []
    pole, count = Pole(), 0
    while True:
        state = pole.state
        action = int(torch.randint(2, ())) if torch.rand(()) < 0.3 else int(online(state).argmax())
        stands = pole.push(action)
        memory.append((state, action, 1.0, pole.state, 0.0 if stands else 1.0))
        pole = pole if stands else Pole()
        if len(memory) < 32:
            continue
        chosen = [memory[int(i)] for i in torch.randint(len(memory), (32,))]
        states, later = torch.stack([each[0] for each in chosen]), torch.stack([each[3] for each in chosen])
        actions, rewards, ends = (torch.tensor([each[i] for each in chosen]) for i in (1, 2, 4))
        with torch.no_grad():
            wanted = rewards + 0.95 * (1 - ends) * target(later).max(1).values
        loss = F.smooth_l1_loss(online(states).gather(1, actions.unsqueeze(1)).squeeze(1), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += 1
        if count % 10 == 0:
            target.load_state_dict(online.state_dict())
        yield


def tasks_in_turn(turns: str, rate: float) -> Iterator[Any]:
    """Tasks on one body, a step for each: classes, and the pixels themselves, with losses of different sizes."""
    body, classes, pixels = mlp(64, 48, 48), nn.Linear(48, 10), nn.Linear(48, 64)
    model = nn.ModuleDict({"body": body, "classes": classes, "pixels": pixels})
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    yield model
    for step, (x, y) in enumerate(batches()):
        hidden = body(x).relu()
        loss = F.cross_entropy(classes(hidden), y) if turns[step % len(turns)] == "c" else F.mse_loss(pixels(hidden), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


@healthy
def two_tasks_in_turn():
    return tasks_in_turn("cp", 3e-3)


@healthy
def two_tasks_of_which_one_is_rare():
    return tasks_in_turn("cpppppppp", 3e-3)


@healthy
def one_head_for_tasks_in_turn():
    """The same computation for two kinds of data; the last feature says which kind it is."""
    model = mlp(9, 64, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    yield model
    for step, (x, y) in enumerate(points()):
        second = step % 2
        optimizer.zero_grad()
        F.mse_loss(model(torch.cat([x, torch.full((len(x), 1), float(second))], 1)), y + 4 * second).backward()
        optimizer.step()
        yield


@healthy
def waves_that_stand_for_a_time():
    """Of a time between 0 and 1, as for diffusion: the long waves hardly vary."""
    model = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    frequencies = 10000.0 ** (-torch.arange(32) / 32)
    yield model
    while True:
        t = torch.rand(64, 1)
        waves = torch.cat([(t * frequencies).sin(), (t * frequencies).cos()], 1)
        optimizer.zero_grad()
        F.mse_loss(model(waves), (6 * t).sin()).backward()
        optimizer.step()
        yield


@healthy
def next_character_from_one_hot_rows():
    """Equal characters are followed by different ones: that is what a language is."""
    vocabulary = sorted(set(TEXT))
    ids = torch.tensor([vocabulary.index(each) for each in TEXT])
    model = nn.Linear(len(vocabulary), len(vocabulary), bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    yield model
    while True:
        starts = torch.randint(len(ids) - 1, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(F.one_hot(ids[starts], len(vocabulary)).float()), ids[starts + 1]).backward()
        optimizer.step()
        yield


@healthy
def descent_by_hand_with_clipping():
    model = mlp(8, 16, 1)
    yield model
    for x, y in points():
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        yield


@healthy
def backtracking_that_withdraws_large_steps():
    """Tries a rate ten times as large now and then, and takes the step back if the loss is larger."""
    model = mlp(8, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = next(points(128))
    yield model
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 20.0 if step % 7 == 3 else 0.05
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if not F.mse_loss(model(x), y) < loss:
                for parameter, before in zip(model.parameters(), kept, strict=True):
                    parameter.copy_(before)
        yield


@healthy
def small_weights_that_grow_with_adam():
    """Embeddings that begin small: the first updates are large next to them, and soon they are not."""
    embed, head = nn.Embedding(100, 32), nn.Linear(32, 10)
    nn.init.normal_(embed.weight, std=0.01)
    model = nn.ModuleDict({"embed": embed, "head": head})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    meaning = torch.randint(10, (100,))
    yield model
    while True:
        ids = torch.randint(100, (64, 3))
        optimizer.zero_grad()
        F.cross_entropy(head(embed(ids).mean(1)), meaning[ids[:, 0]]).backward()
        optimizer.step()
        yield


@healthy
def distances_of_which_those_to_itself_are_masked():
    """The root has no derivative at 0, the NaN meets a ReLU that stops it, and every gradient is finite."""
    model = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in points():
        rows = model(x)
        squares = torch.relu((rows[:, None] - rows[None]).square().sum(2))
        distances = squares.sqrt() * (1 - torch.eye(len(x)))
        optimizer.zero_grad()
        F.mse_loss(distances, (y - y.T).abs()).backward()
        optimizer.step()
        yield


@healthy
def fp16_with_a_scale_that_is_too_large_at_first():
    """The first steps are left out, and gradients are clipped after they were unscaled."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=20)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        yield


@healthy
def a_teacher_that_hides_in_a_list():
    """So that it is neither trained nor saved."""

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.teacher = mlp(64, 32, 10, act=nn.Tanh), [mlp(64, 64, 10).requires_grad_(False)]

        def forward(self, x: Tensor) -> Tensor:
            return F.kl_div(self.net(x).log_softmax(1), self.teacher[0](x).softmax(1), reduction="batchmean")

    model = Student()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    yield model
    for x, _ in batches():
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
        yield


@healthy
def players_that_take_several_steps():
    """The discriminator's gradient is left over from the generator's step, and cleared before its own."""
    generator, discriminator = mlp(8, 32, 2), mlp(2, 32, 1, act=lambda: nn.LeakyReLU(0.2))
    of_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    of_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    yield {"generator": generator, "discriminator": discriminator}
    while True:
        for _ in range(2):
            real = torch.randn(32, 2) * 0.5 + 1
            of_d.zero_grad()
            made = generator(torch.randn(32, 8)).detach()
            (F.softplus(-discriminator(real)) + F.softplus(discriminator(made))).mean().backward()
            of_d.step()
        of_g.zero_grad()
        F.softplus(-discriminator(generator(torch.randn(32, 8)))).mean().backward()
        of_g.step()
        yield
