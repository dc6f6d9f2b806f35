"""The loss at supervised positions only is the loss that all logits would give, for several kinds of models."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from trainer.config import AdapterConfig
from trainer.data.batch import Batch, make_batch, pack_batch
from trainer.data.tokens import TokenRow
from trainer.errors import InputError
from trainer.model import layerwise
from trainer.model.lora import attach_adapter
from trainer.model.loss import fused_loss, log_sum_exp, plain_loss, summed_loss
from trainer.model.network import Network

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
}
# what differs between them: a tied head, a head of its own, normalised queries, a soft cap on the logits, a scaled head
KINDS = {
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "llama, own head": ("llama", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2, soft cap": ("gemma2", {"query_pre_attn_scalar": 16.0, "final_logit_softcapping": 30.0}),
    "cohere, scaled head": ("cohere", {"logit_scale": 0.25, "layer_norm_eps": 1e-5}),
}


def make_model(kind: str, quantized: bool = False, seed: int = 0) -> nn.Module:
    """Return a small model of one kind with an adapter on all layers that is not zero."""
    name, changes = KINDS[kind]
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict({"model_type": name, **COMMON, **changes}))
    if name == "gemma2":  # its norms scale by 1 + weight: at 1 attention is so sharp that rounding shows at 1e-5
        norms = [(path, 0 * value) for path, value in tree_flatten(model.parameters()) if "norm" in path]
        model.load_weights(norms, strict=False)
    if quantized:
        nn.quantize(model, group_size=32, bits=4)
    attach_adapter(model, AdapterConfig(num_layers=-1, rank=4), seed)
    noisy = [(name, value + 0.01 * mx.random.normal(value.shape)) for name, value in tree_flatten(model.trainable_parameters())]
    model.load_weights(noisy, strict=False)
    return model


def all_logits_loss(model: nn.Module, rows: list[TokenRow]) -> mx.array:
    """Return the summed loss the obvious way: every row alone, all logits, the unsupervised ones thrown away."""
    total = mx.zeros(())
    for row in rows:
        logits = model(mx.array(row.tokens[None, :-1]))[0]
        losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:]))
        total = total + (losses * mx.array(row.supervised[1:])).sum()
    return total


# each technique alone, and all of them together
WAYS: dict[str, dict[str, bool]] = {
    "padded, all at once": {"packing": False, "fused": False, "kernels": False},
    "packed": {"packing": True, "fused": False, "kernels": False},
    "in portions": {"packing": False, "fused": True, "kernels": False},
    "kernels": {"packing": False, "fused": False, "kernels": True},
    "all": {"packing": True, "fused": True, "kernels": True},
    "layer by layer": {"packing": False, "fused": False, "kernels": False, "checkpointing": True},
    "all, layer by layer": {"packing": True, "fused": True, "kernels": True, "checkpointing": True},
}


@pytest.fixture(autouse=True)
def plain_functions() -> Iterator[None]:
    """Give mlx_lm's model files their own functions back, which a network with kernels replaces."""
    homes = [importlib.import_module(f"mlx_lm.models.{name}") for name, _ in KINDS.values()]
    own = [
        (home, name, getattr(home, name))
        for home in homes
        for name in ("swiglu", "scaled_dot_product_attention")
        if hasattr(home, name)
    ]
    yield
    for home, name, function in own:
        setattr(home, name, function)


def assert_same(model: nn.Module, rows: list[TokenRow], tolerance: float, way: str = "padded, all at once") -> None:
    """Loss and gradients of one batch equal those of the rows alone, relative to the largest entry."""
    expected_loss, expected = nn.value_and_grad(model, lambda: all_logits_loss(model, rows))()
    mx.eval(expected_loss, expected)
    chosen = WAYS[way]
    network = Network(model, packing=chosen["packing"], use_kernels=chosen["kernels"])
    assert network.is_selective
    assert (network.is_packable, network.has_kernels) == (chosen["packing"], chosen["kernels"] and has_kernels(model))
    batch: Batch = pack_batch(rows) if chosen["packing"] else make_batch(rows)
    if chosen.get("checkpointing"):
        layerwise.install_checked(network)
    loss, gradients = nn.value_and_grad(model, lambda: summed_loss(network, batch, fused=chosen["fused"]))()
    np.testing.assert_allclose(loss.item(), expected_loss.item(), rtol=max(tolerance, 1e-6))  # a float32 in any case
    expected_by_name = dict(tree_flatten(expected))
    assert set(expected_by_name) == {name for name, _ in tree_flatten(model.trainable_parameters())}
    for name, value in tree_flatten(gradients):
        want = np.array(expected_by_name[name])
        np.testing.assert_allclose(np.array(value), want, atol=tolerance * max(np.abs(want).max(), 1e-3), rtol=0, err_msg=name)


def has_kernels(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RMSNorm) and module.weight.dtype == mx.float32 for module in model.modules())


def random_rows(lengths: list[int], share: float, seed: int) -> list[TokenRow]:
    random = np.random.default_rng(seed)
    return [TokenRow(random.integers(0, VOCABULARY, n).astype(np.int32), random.random(n) < share) for n in lengths]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "4 bits"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_loss_and_gradients_of_all_logits(kind: str, quantized: bool, way: str) -> None:
    """Tied, own, scaled and capped heads, plain and quantised: equal to 1e-5 on a batch of ragged rows."""
    assert_same(make_model(kind, quantized), random_rows([17, 3, 40, 2, 9], 0.5, seed=1), 1e-5, way)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    share=st.sampled_from([0.05, 0.5, 1.0]),
    kind=st.sampled_from(["llama, tied head", "qwen3", "llama, own head"]),
    quantized=st.booleans(),
    way=st.sampled_from(list(WAYS)),
    seed=st.integers(0, 99),
)
def test_any_ragged_batch(lengths: list[int], share: float, kind: str, quantized: bool, way: str, seed: int) -> None:
    """Whatever the lengths and however few tokens are supervised, every technique alone and all together are the plain path."""
    rows = random_rows(lengths, share, seed)
    rows[0].supervised[-1] = True
    assert_same(make_model(kind, quantized, seed), rows, 1e-5, way)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    share=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_padding_changes_nothing(lengths: list[int], share: float, seed: int) -> None:
    """For any ragged batch, rows padded together equal rows computed alone, also when few tokens are supervised.

    In float64: among all batches there are some where float32's rounding alone is more than 1e-5.
    """
    rows = random_rows(lengths, share, seed)
    rows[0].supervised[-1] = True
    with mx.stream(mx.cpu):
        assert_same(MODEL, rows, 1e-9)


MODEL = make_model("llama, tied head", seed=3)
MODEL.set_dtype(mx.float64)


def test_generation_is_untouched() -> None:
    """Outside of the loss the model still returns logits for every position."""
    model = make_model("llama, own head")
    inputs = mx.array([[1, 2, 3]])
    before = np.array(model(inputs))
    network = Network(model, use_kernels=False)
    mx.eval(network.hidden(make_batch(random_rows([5, 3], 1.0, seed=0))))
    np.testing.assert_array_equal(np.array(model(inputs)), before)


class Opaque(nn.Module):
    """A model that hides its trunk: what we cannot select from must be computed whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def __call__(self, inputs: mx.array) -> mx.array:
        return self.table(inputs)


class Shuffled(nn.Module):
    """A model whose trunk is called ``model`` but whose head needs all positions: selecting would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Embedding(VOCABULARY, VOCABULARY)

    def __call__(self, inputs: mx.array) -> mx.array:
        return mx.cumsum(self.model(inputs), axis=1)


@pytest.mark.parametrize("kind", [Opaque, Shuffled])
def test_a_model_that_does_not_fit_falls_back_to_all_logits(kind: type[nn.Module]) -> None:
    """Found out by trying once; the logits at the chosen positions are right all the same."""
    model = kind()
    network = Network(model)
    assert not network.is_selective
    assert not network.is_packable
    inputs = np.array([[4, 5, 6], [7, 8, 9]], np.int32)
    batch = Batch(inputs, np.array([0, 4], np.int32), np.array([5, 9], np.int32), 6)
    expected = model(mx.array(inputs)).reshape(6, VOCABULARY)[mx.array([0, 4])]
    np.testing.assert_array_equal(np.array(network.logits(batch)), np.array(expected))
    assert summed_loss(network, batch).item() == plain_loss(expected, mx.array([5, 9])).item()


def test_the_adapter_starts_at_the_base_model() -> None:
    """A fresh adapter changes no logit, on any number of layers, and only its own weights are trained."""
    for layers, count in ((1, 1), (2, 2), (-1, 2)):
        module = importlib.import_module("mlx_lm.models.llama")
        mx.random.seed(0)
        model = module.Model(module.ModelArgs.from_dict({"model_type": "llama", **COMMON}))
        base = np.array(model(mx.array([[1, 2, 3]])))
        attach_adapter(model, AdapterConfig(num_layers=layers, rank=4), seed=0)
        np.testing.assert_array_equal(np.array(model(mx.array([[1, 2, 3]]))), base)
        names = [name for name, _ in tree_flatten(model.trainable_parameters())]
        assert {name.split(".")[-1] for name in names} == {"lora_a", "lora_b"}
        assert len({name.split(".")[2] for name in names}) == count


def test_the_adapter_depends_on_the_seed_alone() -> None:
    """Two processes that draw other random numbers first still start from the same adapter."""
    one, two, other = make_adapter(1), make_adapter(1, warm_up=7), make_adapter(2)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def make_adapter(seed: int, warm_up: int = 0) -> dict[str, np.ndarray]:
    module = importlib.import_module("mlx_lm.models.llama")
    model = module.Model(module.ModelArgs.from_dict({"model_type": "llama", **COMMON}))
    mx.eval(mx.random.normal((warm_up + 1,)))
    attach_adapter(model, AdapterConfig(num_layers=1, rank=4), seed)
    return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}


def test_impossible_adapters_are_refused() -> None:
    """More layers than there are, or a layer that does not exist, are told with what there is."""
    module = importlib.import_module("mlx_lm.models.llama")
    model = module.Model(module.ModelArgs.from_dict({"model_type": "llama", **COMMON}))
    with pytest.raises(InputError) as many:
        attach_adapter(model, AdapterConfig(num_layers=3), 0)
    assert str(many.value) == "adapter.num_layers: 3 is more than the model's 2 layers"
    with pytest.raises(InputError) as unknown:
        attach_adapter(model, AdapterConfig(num_layers=1, keys=("self_attn.q_pro",)), 0)
    assert str(unknown.value) == (
        "adapter.keys: the model has no layer self_attn.q_pro; it has mlp.down_proj, mlp.gate_proj, mlp.up_proj, "
        "self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
    )


@pytest.mark.parametrize("in_numpy", [False, True])
def test_a_large_vocabulary_in_many_portions(in_numpy: bool) -> None:
    """With a few positions at a time, loss and gradient are those of float64 over a large vocabulary."""
    random = np.random.default_rng(0)
    hidden, weight = random.normal(size=(50, 16)), random.normal(size=(16, 20_000))
    targets = random.integers(0, 20_000, 50).astype(np.int32)
    head = lambda h: h @ mx.array(weight.astype(np.float32))  # noqa: E731
    chunked = lambda h: fused_loss(head, h, targets, in_numpy=in_numpy, chunk_bytes=1)  # noqa: E731
    loss, gradient = mx.value_and_grad(chunked)(mx.array(hidden.astype(np.float32)))
    logits = hidden @ weight
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = (np.log(shares.sum(axis=1)) + logits.max(axis=1) - logits[np.arange(50), targets]).sum()
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(50), targets] -= 1
    want = shares @ weight.T
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(np.array(gradient), want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 49152, 49153])
def test_the_logarithm_of_a_long_sum_is_exact(vocabulary: int) -> None:
    """Against NumPy in float64, for whole and broken blocks: MLX alone is off by 7e-5 where a vocabulary is large."""
    logits = np.random.default_rng(0).normal(scale=3.0, size=(8, vocabulary)).astype(np.float32)
    top = logits.max(axis=-1, keepdims=True).astype(np.float64)
    expected = np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)) + top
    np.testing.assert_allclose(np.array(log_sum_exp(mx.array(logits))), expected, rtol=0, atol=4e-6)
