"""The callbacks in the real libraries' own loops, on runs of a few steps."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import chainrule
from chainrule import runs

pytestmark = pytest.mark.trains


class Regression(nn.Module):
    """A model as transformers' Trainer takes it: labels in, loss out."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x, labels):
        guess = self.out(torch.tanh(self.hidden(x)))
        return {"loss": nn.functional.mse_loss(guess, labels), "logits": guess}


def rows(count=64):
    torch.manual_seed(0)
    x = torch.randn(count, 4)
    return [{"x": each, "labels": each[:1] * 2} for each in x]


def trainer(folder, callback, **arguments):
    from transformers import Trainer, TrainingArguments

    arguments = {
        "max_steps": 12, "per_device_train_batch_size": 8, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", "dataloader_pin_memory": False, **arguments,
    }  # fmt: skip
    return Trainer(
        Regression(),
        TrainingArguments(str(folder / "out"), **arguments),
        train_dataset=rows(),
        callbacks=[callback],
    )


def test_transformers(tmp_path):
    callback = chainrule.callbacks.TransformersCallback(every=4, to=tmp_path / "run.db")
    done = trainer(tmp_path, callback).train()
    with runs.open(tmp_path / "run.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 4, 8, 12]
        assert run.status == "ended"
        assert callback.watch.step_number == done.global_step == 12
        assert {each.name for each in run.tensors("parameter gradient")} == {
            "hidden.weight", "hidden.bias", "out.weight", "out.bias"
        }  # fmt: skip
        assert [facts.clipped is not None for facts in run.steps()] == [True] * 4  # the Trainer clips to 1 by default
        assert all(facts.rates[0] > 0 for facts in run.steps())


def test_transformers_accumulates_and_resumes(tmp_path):
    options = {"every": 1, "to": tmp_path / "run.db"}
    first = trainer(
        tmp_path, chainrule.callbacks.TransformersCallback(**options), gradient_accumulation_steps=2,
        max_steps=4, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    first.train()
    again = trainer(
        tmp_path, chainrule.callbacks.TransformersCallback(**options), gradient_accumulation_steps=2, max_steps=6
    )
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    with runs.open(tmp_path / "run.db") as run:
        assert run.runs == (1,)
        assert [facts.step for facts in run.steps()] == [1, 2, 3, 4, 5, 6]
        assert {facts.passes for facts in run.steps()} == {2}


def lightning_module(manual=False, optimizers=1, fails_at=None):
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
            self.automatic_optimization = not manual

        def training_step(self, batch, index):
            assert index != fails_at
            loss = (self.head(torch.tanh(self.body(batch))) - batch[:, :1]).square().mean()
            if manual:
                optimizers_ = self.optimizers()
                for each in optimizers_:
                    each.zero_grad()
                self.manual_backward(loss)
                for each in optimizers_:
                    each.step()
            return loss

        def validation_step(self, batch, index):
            return self.head(self.body(batch)).mean()

        def configure_optimizers(self):
            if optimizers == 1:
                return torch.optim.Adam(self.parameters(), lr=1e-2)
            return [torch.optim.SGD(self.body.parameters(), lr=1e-2), torch.optim.Adam(self.head.parameters(), lr=1e-3)]

    return Module()


def fit(module, folder, callback, **options):
    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(80, 4), batch_size=8)
    Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **{"max_epochs": 1, **options},
    ).fit(module, loader)  # fmt: skip
    return module


lightnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@lightnings
def test_lightning(tmp_path):
    callback = chainrule.callbacks.LightningCallback(every=5, to=tmp_path / "run.db")
    fit(lightning_module(), tmp_path, callback, gradient_clip_val=0.01)
    with runs.open(tmp_path / "run.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 5, 10]
        assert len(run.tensors("update")) == len(run.tensors("parameter gradient")) == 4
        assert len(run.series("update", "body.weight").steps) == 3
        before, after = run.steps()[0].clipped
        assert before > 0.01
        assert after == pytest.approx(0.01, rel=1e-3)


@lightnings
def test_lightning_with_two_optimizers_by_hand(tmp_path):
    callback = chainrule.callbacks.LightningCallback(every=2, to=tmp_path / "run.db")
    fit(lightning_module(manual=True, optimizers=2), tmp_path, callback)
    with runs.open(tmp_path / "run.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4, 6, 8, 10]
        assert run.steps()[0].rates == (1e-2, 1e-3)
        assert len(run.tensors("update")) == 4


@lightnings
def test_an_exception_in_lightning_is_kept(tmp_path):
    callback = chainrule.callbacks.LightningCallback(to=tmp_path / "run.db")
    with pytest.raises(AssertionError):
        fit(lightning_module(fails_at=3), tmp_path, callback)
    with runs.open(tmp_path / "run.db") as run:
        assert run.status.startswith("AssertionError")
        assert len(run.steps()) == 3


def test_accelerate(tmp_path):
    from accelerate import Accelerator

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(
        *(lambda m: (m, torch.optim.AdamW(m.parameters(), lr=1e-2)))(Regression()),
        torch.utils.data.DataLoader(rows(), batch_size=8),
    )
    with chainrule.callbacks.watch_accelerate(accelerator, model, optimizer, to=tmp_path / "run.db") as watch:
        for _ in range(2):
            for batch in loader:
                with accelerator.accumulate(model):
                    loss = model(**batch)["loss"]
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    optimizer.zero_grad()
    assert watch.step_number == 8
    with runs.open(tmp_path / "run.db") as run:
        assert [facts.passes for facts in run.steps()] == [2] * 8
        assert run.steps()[0].clipped[1] == pytest.approx(0.1, rel=1e-3)
        assert len(run.tensors("moment")) == 8


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, chainrule; chainrule.callbacks; chainrule.runs; "
        "names = ('torch', 'transformers', 'lightning', 'accelerate', 'pandas'); "
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_library_that_is_missing_is_named():
    code = "import sys, chainrule; sys.modules['lightning.pytorch'] = None; chainrule.callbacks.LightningCallback"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == (
        "chainrule.errors.MissingError: chainrule.callbacks.LightningCallback needs lightning, which is not installed: "
        "pip install lightning"
    )


def test_a_callback_is_pickled_by_its_public_name():
    callback = chainrule.callbacks.LightningCallback(every=3)
    assert pickle.loads(pickle.dumps(callback)).options == {"every": 3}
    assert type(callback) is chainrule.callbacks.LightningCallback
