import copy
import dataclasses
import threading

import pytest
import torch
from torch import Tensor, nn

from tenfold.build import Builder
from tenfold.errors import WorkloadError
from tenfold.execute import plain_session
from tenfold.export import Served
from tenfold.lever import Refusal, Stage, discover
from tenfold.levers.prune.attention import NarrowAttention
from tenfold.levers.prune.structure import pruned
from tenfold.plan import Plan
from tenfold.testing import LeverContract
from tenfold.train.loop import predict


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class TestPrune(LeverContract):
    name = "prune"

    def test_a_model_without_a_pattern_is_refused_with_the_reason(self, lever, small_builder: Builder, plan: Plan) -> None:
        linear = Served(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), None)
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, fresh=lambda: linear))
        assert isinstance(answer, Refusal)
        assert "no group of channels, neurons or heads was found" in answer.reason

    def test_takes_the_largest_share_that_reaches_each_cost(self, lever, small_builder: Builder, plan: Plan) -> None:
        ratios = [1.1, 1.4, 1.6, "it cannot be built", 2.4, 2.6, 3.0]
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda _: ratios, training_seconds=100.0))
        assert [c["keep"] for c in answer] == [0.6, 0.3]
        assert answer[0]["epochs"] < answer[1]["epochs"], "what is cheaper trains for longer in the same time"
        ratios[-1] = 5.5
        long = self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda _: ratios, training_seconds=60.0)
        assert [c["keep"] for c in lever.propose(long)] == [0.6, 0.3, 0.2]
        short = dataclasses.replace(long, seconds_left=140.0, training_seconds=160.0)  # 35 s; an epoch takes about 42
        assert [c["keep"] for c in lever.propose(short)] == [0.6]
        dear = lever.propose(self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs: [1.2] * len(configs)))
        assert isinstance(dear, Refusal)
        assert "the best comes to 1.20×" in dear.reason


def test_recurrent_layers_are_left_as_they_are() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    with pytest.raises(WorkloadError, match="no group of channels, neurons or heads was found"):
        pruned(Recurrent(), (torch.randn(2, 5, 8),), 0.5)


def test_a_pruned_model_recovers_what_its_teacher_answers(small_builder: Builder) -> None:
    root = Plan(training=small_builder.workload.training, session=plain_session())
    plan = discover()["prune"].apply(root, {"keep": 0.3, "epochs": 4.0, "teachers": 1})
    valid = small_builder.examples.valid
    teacher = predict(small_builder.load(root), valid).argmax(1)
    assert (predict(small_builder.load(plan), valid).argmax(1) == teacher).mean() > 0.9
    assert size(small_builder.load(plan)) < size(small_builder.load(root)) / 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1)
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 32), nn.Linear(3, 32), nn.Linear(64, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x).relu(), self.right(y).relu()], 1))


class Padded(nn.Module):
    """An encoder that is told which tokens are padding, as most of text are."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(1))


class FixedWidth(nn.Module):
    """Attention that knows its head width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(-1, 5, 32).mean(1))


class OwnAttention(nn.Module):
    """A block as many write it: heads of whatever width there is."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class OwnTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = OwnAttention()
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return self.head((x + self.narrow(self.wide(x).relu())).mean(1))


def test_attention_of_ones_own_keeps_its_heads_whole() -> None:
    small = pruned(OwnTransformer(), (torch.randn(2, 5, 32),), 0.5)
    assert (small.attention.qkv.in_features, small.attention.qkv.out_features) == (32, 96)
    assert (small.wide.in_features, small.wide.out_features) == (32, 32)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Attention(), (torch.randn(2, 5, 32),)),
        (Depthwise(), (torch.randn(2, 3, 8, 8),)),
        (TwoInputs(), (torch.randn(2, 6), torch.randn(2, 3))),
        (Padded(), (torch.tensor([[3, 4, 5, 0], [7, 8, 0, 0]]),)),
        (nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)), (torch.randn(2, 4),)),
    ],
    ids=["attention", "depthwise", "two inputs", "padding", "perceptron"],
)
def test_models_of_many_kinds_get_smaller_and_keep_their_outputs_shape(model, example) -> None:
    model.eval()
    before = copy.deepcopy(model.state_dict())
    small = pruned(model, example, 0.5)
    assert size(small) < size(model)
    assert small(*example).shape == model(*example).shape
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model itself is left alone
    again = pruned(model, example, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "both"])
def test_attention_with_all_heads_is_the_attention_it_was_made_from(batch_first, mask) -> None:
    source = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    with torch.no_grad():
        source.in_proj_bias.normal_()
        source.out_proj.bias.normal_()
    x = torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    masks = {}
    if mask in ("causal", "both"):
        masks["attn_mask"] = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    if mask in ("padding", "both"):
        masks["key_padding_mask"] = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    assert torch.allclose(NarrowAttention(source, 4)(x, x, x, **masks)[0], source(x, x, x, **masks)[0], atol=1e-5)


def test_attention_loses_the_heads_with_the_least_weights() -> None:
    source = nn.MultiheadAttention(16, 4, bias=False, batch_first=True).eval()
    silent = [0, 2]
    with torch.no_grad():
        for head in silent:
            source.in_proj_weight.reshape(3, 4, 4, 16)[:, head] = 0
            source.out_proj.weight.reshape(16, 4, 4)[:, head] = 0
    x = torch.randn(3, 5, 16)
    narrow = NarrowAttention(source, 2)
    assert narrow.project.weight.shape == (24, 16)
    assert torch.allclose(narrow(x, x, x)[0], source(x, x, x)[0], atol=1e-5)


def test_attention_in_an_encoder_loses_whole_heads() -> None:
    attention = pruned(Attention(), (torch.randn(2, 5, 32),), 0.5).encoder.layers[0].self_attn
    assert (attention.num_heads, attention.head_dim) == (2, 8)


def test_the_channels_with_the_largest_weights_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[0].weight[::2] *= 100
    kept = pruned(model, (torch.randn(2, 4),), 0.5)[0].weight
    assert torch.equal(kept, model[0].weight[::2])


def test_a_model_that_fixes_a_width_is_refused() -> None:
    with pytest.raises(WorkloadError, match="channels cannot be taken out of this model .*: it fixes a width somewhere, or cannot be traced"):
        pruned(FixedWidth(), (torch.randn(2, 5, 32),), 0.5)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    net.lock = threading.Lock()
    with pytest.raises(WorkloadError, match="cannot be copied"):
        pruned(net, (torch.randn(2, 4),), 0.5)
