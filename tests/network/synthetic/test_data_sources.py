"""Examples made without data: statistics by hand, toy languages, and the published networks."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.cli.loading import load_model
from mpq.errors import InputError, ModelError
from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.synthetic import DATA_SOURCES
from mpq.network.synthetic.distilled import DistilledInputs, RememberedStatistics
from mpq.network.synthetic.self_generated import SelfGeneratedText
from mpq.network.synthetic.tokens import RandomTokens, vocabulary_of


class Normed(nn.Module):
    """Two BatchNorm layers that remember something, and a ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.relu = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)
        self.fc, self.second, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        for norm in (self.first, self.second):
            norm.get_buffer("running_mean").normal_()
            norm.get_buffer("running_var").uniform_(0.5, 2)

    def pooled(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.first(self.conv(x)))
        return y.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.fc(self.pooled(x))))
        return y


class Language(nn.Module):
    """Logits of the next token from the last one; positions have a table, too."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.positions = nn.Embedding(64, 1)
        self.table = nn.Embedding.from_pretrained(table)

    def forward(self, ids: Tensor) -> Tensor:
        place = self.positions(torch.arange(ids.shape[1])[None].expand_as(ids))
        logits: Tensor = self.table(ids) + place
        return logits


def language(vocabulary: int = 7) -> nn.Module:
    """One with random logits."""
    return Language(torch.randn(vocabulary, vocabulary)).eval()


def llama() -> nn.Module:
    """Of Hugging Face, which remembers keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config).eval()
    return model


SOURCES = {
    "batch-norm": "batch-norm:shape=2x6x6,num_examples=7,batch_size=3,steps=3",
    "noise": "noise:shape=2x6x6,num_examples=7,batch_size=3",
    "random-tokens": "random-tokens:length=6,num_examples=7,batch_size=3",
    "self-generated": "self-generated:length=6,num_examples=7,batch_size=3",
}


def model_for(source: str) -> nn.Module:
    """A model that the source works with, whose parameters require gradients."""
    return Normed().eval() if source in ("batch-norm", "noise") else llama()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tensors(data: Calibration) -> list[Tensor]:
    """The single input of every batch."""
    return [next(iter((*batch.args, *batch.kwargs.values()))) for batch in data]


@pytest.mark.parametrize("name", DATA_SOURCES.names())
def test_source_makes_examples_that_the_model_takes(name: str) -> None:
    """As many as asked for, in batches, the same at every reading."""
    model = model_for(name)

    data = DATA_SOURCES.build(SOURCES[name]).calibration(model)

    assert [batch.size for batch in data] == [3, 3, 1]
    assert all(batch.targets is None for batch in data)
    for batch in data:
        model(*batch.args, **batch.kwargs)


@pytest.mark.parametrize("name", DATA_SOURCES.names())
def test_same_seed_same_examples(name: str) -> None:
    """The global random state does not matter, nor the grad mode; the seed does."""
    model = model_for(name)

    def examples(seed: int) -> list[Tensor]:
        return tensors(DATA_SOURCES.build(SOURCES[name], seed).calibration(model))

    torch.manual_seed(1)
    first = examples(5)
    torch.manual_seed(2)
    with torch.no_grad():
        second, other = examples(5), examples(6)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def state_of(model: nn.Module) -> list[Any]:
    """Everything that must not change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        [(id(p), p.requires_grad, p.grad) for p in model.parameters()],
        [(m.training, *(len(m.__dict__[kind]) for kind in hooks)) for m in model.modules()],
    ]


@pytest.mark.parametrize("name", DATA_SOURCES.names())
def test_model_is_left_as_found(name: str) -> None:
    """Weights, running statistics, gradients, mode, hooks, and the global random state."""
    model = model_for(name)
    before, random_state = state_of(model), torch.get_rng_state()

    DATA_SOURCES.build(SOURCES[name]).calibration(model)

    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", DATA_SOURCES.names())
def test_source_is_described(name: str) -> None:
    """Every source has a sentence for the list that users see."""
    part = DATA_SOURCES.get(name)

    assert 20 < len(part.summary) < 80
    assert part.__doc__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch-norm:shape=3x0", "batch-norm: write a shape such as 3x32x32.*got '3x0'"),
        ("noise:shape=3;32", "noise: write a shape such as 3x32x32"),
        ("batch-norm:steps=0", "batch-norm needs steps above 0; got 0"),
        ("batch-norm:learning_rate=-1", "needs learning_rate above 0"),
        ("noise:batch_size=0", "noise needs batch_size above 0"),
        ("random-tokens:length=0", "random-tokens needs length above 0"),
        ("random-tokens:vocabulary=-1", "random-tokens needs a vocabulary above 0"),
        ("self-generated:temperature=0", "self-generated needs temperature above 0"),
        ("self-generated:num_greedy=-1", "needs num_greedy of at least 0; got -1"),
    ],
)
def test_option_that_cannot_be_is_refused(text: str, message: str) -> None:
    """At once, in a sentence."""
    with pytest.raises(InputError, match=message):
        DATA_SOURCES.build(text)


def distance_by_hand(model: Normed, x: Tensor) -> float:
    """The sum of the paper, in numpy, from the inputs of both layers."""
    before = [x, model.conv(x), model.fc(model.pooled(x))[..., None, None]]
    remembered = [(np.zeros(2), np.ones(2))]
    for norm in (model.first, model.second):
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        remembered.append((mean.numpy(), variance.numpy()))
    total = 0.0
    for tensor, (center, square) in zip(before, remembered, strict=True):
        values = tensor.detach().numpy()
        total += np.square(values.mean((0, 2, 3)) - center).sum()
        total += np.square(values.std((0, 2, 3)) - np.sqrt(square)).sum()
    return total


def test_distance_is_that_of_the_paper() -> None:
    """Means and deviations before both layers, and of the input itself."""
    model, x = Normed().eval(), torch.randn(6, 2, 5, 5)

    found = RememberedStatistics(share_parameters(model)).distance(x)

    assert float(found) == pytest.approx(distance_by_hand(model, x), rel=1e-4)


def test_distilled_inputs_have_the_remembered_statistics() -> None:
    """Those of stripes are matched: in the median over seeds to a thousandth of the noise's."""
    model, source = Normed(), "shape=2x8x8,num_examples=64,batch_size=64"
    for norm in (model.first, model.second):
        norm.momentum = 1.0
    stripes = torch.randn(64, 2, 8, 1).sign().expand(64, 2, 8, 8)
    model.train()(stripes)
    model.eval()

    kept = []
    for seed in range(5):
        (distilled,) = tensors(DATA_SOURCES.build(f"batch-norm:{source}", seed).calibration(model))
        (noise,) = tensors(DATA_SOURCES.build(f"noise:{source}", seed).calibration(model))
        kept.append(distance_by_hand(model, distilled) / distance_by_hand(model, noise))

    assert median(kept) < 1e-3
    assert max(kept) < 0.02, "the start that stalls is begun anew"


def test_distilled_inputs_have_the_dtype_of_the_weights() -> None:
    """They are optimised in float32 all the same."""
    model = Normed().eval().to(torch.bfloat16)

    data = DistilledInputs("2x6x6", num_examples=4, steps=2).calibration(model)

    assert tensors(data)[0].dtype == torch.bfloat16


def test_network_that_remembers_nothing_is_refused() -> None:
    """No BatchNorm, one without running statistics, and one that is not called."""

    class Uncalled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y

    source = DistilledInputs("4", num_examples=2, steps=1)
    forgetful = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    for model in (nn.Linear(4, 3), forgetful.eval()):
        with pytest.raises(ModelError, match="no BatchNorm with running statistics"):
            source.calibration(model.eval())
    with pytest.raises(ModelError, match="calls none of its BatchNorm layers"):
        source.calibration(Uncalled().eval())


@pytest.mark.parametrize("name", ["batch-norm", "random-tokens", "self-generated"])
def test_model_in_training_mode_is_refused(name: str) -> None:
    """Its statistics would change while they are matched."""
    with pytest.raises(ModelError, match="training mode"):
        DATA_SOURCES.build(SOURCES[name]).calibration(model_for(name).train())


def test_noise_is_standard_normal() -> None:
    """Mean 0, variance 1, to a few standard errors."""
    data = DATA_SOURCES.build("noise:shape=3x16x16").calibration(Normed())

    x = torch.cat(tensors(data))
    assert x.shape == (64, 3, 16, 16)
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.var()) - 1) < 0.03


def test_random_tokens_are_uniform_over_the_vocabulary() -> None:
    """Every id comes about as often as the others."""
    (ids,) = tensors(RandomTokens(length=300, batch_size=64).calibration(language(7)))

    shares = ids.flatten().bincount(minlength=7) / ids.numel()
    assert len(shares) == 7
    torch.testing.assert_close(shares, torch.full((7,), 1 / 7), rtol=0.05, atol=0)


def test_vocabulary_is_read_from_the_model() -> None:
    """From the table that ids are looked up in, not of positions; or the configuration."""
    assert vocabulary_of(language(9)) == 9
    assert vocabulary_of(llama()) == 12
    assert RandomTokens(vocabulary=3).calibration(language(9)).first().args[0].max() == 2


def test_vocabulary_that_cannot_be_read_is_asked_for() -> None:
    """A model that makes one-hot vectors of its ids."""

    class OneHot(nn.Linear):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(F.one_hot(ids, 5).float())

    with pytest.raises(ModelError, match="random-tokens:vocabulary=32000"):
        RandomTokens().calibration(OneHot(5, 3).eval())


def test_certain_language_is_spoken() -> None:
    """Where the next token is certain, text follows from its first token: here it counts."""
    model = Language(100 * torch.eye(7).roll(1, dims=1)).eval()

    (text,) = tensors(SelfGeneratedText(length=9, num_examples=7).calibration(model))

    assert text.shape == (7, 9)
    assert sorted(text[:, 0].tolist()) == list(range(7))
    assert torch.equal(text, (text[:, :1] + torch.arange(9)) % 7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_are_drawn_after_the_greedy_ones(temperature: float) -> None:
    """Token 2 is the most likely for the first three; then shares are those of the softmax."""
    logits = torch.tensor([0.0, -1.0, 1.0, 0.5])
    model = Language(logits.expand(4, 4).contiguous()).eval()

    source = SelfGeneratedText(20, 400, 400, num_greedy=3, temperature=temperature)

    (text,) = tensors(source.calibration(model))
    drawn = text[:, 4:].flatten().bincount(minlength=4) / text[:, 4:].numel()
    assert (text[:, 1:4] == 2).all()
    assert text[:, 0].bincount().tolist() == [100] * 4
    torch.testing.assert_close(drawn, (logits / temperature).softmax(0), rtol=0.1, atol=0)


def test_memory_of_keys_and_values_changes_no_text() -> None:
    """A model of Hugging Face, and the same one read from the start for every token."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)  # random logits are too even for a mistake to show

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
            return logits

    source = SelfGeneratedText(length=12, num_examples=6, batch_size=4)

    remembered, forgotten = source.calibration(model), source.calibration(Forgetful().eval())

    assert [list(batch.kwargs) for batch in remembered] == [["input_ids"], ["input_ids"]]
    for one, other in zip(tensors(remembered), tensors(forgotten), strict=True):
        assert torch.equal(one, other)
    assert torch.cat(tensors(remembered)).unique().numel() > 6


def test_classifier_writes_no_text() -> None:
    """It has logits for a sequence, not for its positions."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.table(ids).mean(1)
            return y

    with pytest.raises(ModelError, match="gives 1 positions for 2 tokens"):
        SelfGeneratedText().calibration(Classifier().eval())


@pytest.fixture(scope="module")
def resnet(data_dir: Path, root: Path) -> nn.Module:
    """ResNet-20, trained on CIFAR-10."""
    weights = data_dir / "cifar10" / "resnet20.safetensors"
    return load_model(f"{root}/examples/resnet20_cifar10.py:make_net", weights)


@pytest.fixture(scope="module")
def stories(data_dir: Path, root: Path) -> nn.Module:
    """A small Llama, trained on stories."""
    weights = data_dir / "llm" / "stories260K.fp32.safetensors"
    return load_model(f"{root}/examples/llama_stories.py:make_net", weights)


def test_distilled_images_are_nearer_than_noise(resnet: nn.Module) -> None:
    """To what ResNet-20 remembers: a tenth of noise's distance after a few steps."""
    statistics = RememberedStatistics(share_parameters(resnet))
    options = "num_examples=16,batch_size=16"

    (distilled,), (noise,) = (
        tensors(DATA_SOURCES.build(f"{source}{options}").calibration(resnet))
        for source in ("batch-norm:steps=25,", "noise:")
    )

    with torch.no_grad():
        assert float(statistics.distance(distilled)) < 0.1 * float(statistics.distance(noise))


def test_model_is_less_surprised_by_its_own_text(stories: nn.Module) -> None:
    """The Llama's loss on what it wrote is that of real stories; random ids cost far more."""
    options = "length=64,num_examples=16"

    losses = [
        float(np.mean(list(cross_entropies(stories, source))))
        for source in (f"self-generated:{options}", f"random-tokens:{options}")
    ]

    assert losses[0] < 3
    assert losses[1] > 3 * losses[0]


def cross_entropies(model: nn.Module, source: str) -> Iterator[float]:
    """Nats per token of every batch."""
    for ids in tensors(DATA_SOURCES.build(source).calibration(model)):
        with torch.no_grad():
            logits = model(ids)[:, :-1]
        yield float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
