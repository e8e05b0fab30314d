"""`routing`: against plain loops over clusters, and full attention as its limit."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from manyhead_core.attention import attend
from manyhead_core.attention.masks import Causal, Dense, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.routing import RoutingAttention, update_means
from manyhead_core.errors import ConfigError

PARITY = Path(__file__).parents[2] / "parity"
HEADS, WIDTH = 2, 4


def mixer(clusters: int = 3, window: int = 5, **options) -> RoutingAttention:
    torch.manual_seed(0)
    made = RoutingAttention(8, HEADS, num_clusters=clusters, window_size=window, **options)
    made = made.double()
    for layer in (made.qkv, made.proj):
        torch.nn.init.normal_(layer.weight, std=0.5)
    made.kmeans.means.copy_(F.normalize(torch.randn_like(made.kmeans.means), dim=-1))
    made.kmeans.initted.fill_(True)
    return made.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def heads(count: int = 9) -> tuple[Tensor, ...]:
    return tuple(draw(2, HEADS, count, WIDTH, seed=seed) for seed in (1, 2, 3))


def nearest_tokens(unit: Tensor, mean: Tensor, window: int) -> list[int]:
    return (unit @ mean).argsort(descending=True)[:window].tolist()


def formula(made: RoutingAttention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One head of one sample at a time; the mean over clusters, and the loss before weighting."""
    out, distances = torch.zeros_like(q), []
    window = min(made.window_size, q.shape[2])
    for b in range(q.shape[0]):
        for h in range(HEADS):
            queries, keys = q[b, h], k[b, h]
            total, taken = torch.zeros_like(queries), torch.zeros(len(queries)).double()
            units = [F.normalize(queries, dim=-1)]
            if made.shared_qk:
                keys = F.normalize(keys, dim=-1)
            else:
                units.append(F.normalize(keys, dim=-1))
            means = made.kmeans.means[h]
            for token in torch.cat(units):
                nearest = max(range(len(means)), key=lambda c: float((token @ means[c]).detach()))
                distances.append((token - means[nearest]).square().mean())
            for c, mean in enumerate(means):
                ours = nearest_tokens(units[0], mean, window)
                theirs = nearest_tokens(units[-1], mean, window)
                for i in ours:
                    scores = [key @ queries[i] / WIDTH**0.5 for key in made.mem_key[h, c]]
                    values = list(made.mem_value[h, c])
                    for j in theirs:
                        if made.causal and j > i:
                            continue
                        score = keys[j] @ queries[i] / WIDTH**0.5
                        scores.append(score - 5e4 if made.shared_qk and i == j else score)
                        values.append(v[b, h, j])
                    total[i] += torch.stack(scores).softmax(0) @ torch.stack(values)
                    taken[i] += 1
            out[b, h] = total / taken.clamp(min=1)[:, None]
    return out, torch.stack(distances).mean()


FORMS = [
    {},
    {"num_mem_kv": 2},
    {"causal": True},
    {"shared_qk": True},
    {"shared_qk": True, "causal": True},
    {"shared_qk": True, "causal": True, "num_mem_kv": 1},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("clusters", "window"), [(3, 5), (4, 2), (2, 50)])
def test_is_the_formula(form: dict, clusters: int, window: int) -> None:
    made, (q, k, v) = mixer(clusters, window, **form), heads()
    routed = made.route(q, k, v)
    out, loss = formula(made, q, k, v)
    torch.testing.assert_close(routed.out, out)
    torch.testing.assert_close(routed.loss, loss)


def test_one_cluster_of_all_tokens_is_full_attention() -> None:
    made, (q, k, v) = mixer(1, 9), heads()
    torch.testing.assert_close(made.route(q, k, v).out, attend(q, k, v).out)


def test_order_of_clusters_does_not_matter() -> None:
    made, x = mixer(num_mem_kv=2), draw(2, 9, 8)
    before = made(x)
    order = [2, 0, 1]
    for tensor in (made.kmeans.means, made.mem_key.data, made.mem_value.data):
        tensor.copy_(tensor[:, order].clone())
    after = made(x)
    torch.testing.assert_close(after.y, before.y)
    torch.testing.assert_close(after.aux, before.aux)


def test_token_that_no_cluster_takes_is_zero() -> None:
    made, (q, k, v) = mixer(1, 2), heads()
    routed = made.route(q, k, v)
    assert (routed.taken.sum(2) == 2).all()
    assert routed.out[(routed.taken == 0).expand_as(routed.out)].abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_masked_tokens_change_nothing(form: dict) -> None:
    made, x = mixer(3, 5, **form), draw(2, 9, 8)
    mask = KeyPadding(torch.tensor([6, 6]))
    found, alone = made(x, mask=mask), made(x[:, :6])
    torch.testing.assert_close(found.y[:, :6], alone.y, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.aux, alone.aux)
    bias = made.proj.bias.expand_as(found.y[:, 6:])
    torch.testing.assert_close(found.y[:, 6:], bias)


def test_dense_mask_holds_inside_clusters() -> None:
    made, (q, k, v) = mixer(1, 9), heads()
    allowed = torch.rand(2, HEADS, 9, 9, generator=torch.Generator().manual_seed(4)) > 0.5
    routed = made.route(q, k, v, mask=Dense(allowed))
    torch.testing.assert_close(routed.out, attend(q, k, v, mask=allowed).out)


@pytest.mark.parametrize("slots", [0, 2])
def test_fully_masked_row_is_zero_without_gradients(slots: int) -> None:
    made = mixer(2, 9, num_mem_kv=slots)
    parts = [x.requires_grad_() for x in heads()]
    allowed = torch.ones(9, 9, dtype=torch.bool)
    allowed[4] = False
    out = made.route(*parts, mask=Dense(allowed)).out
    assert out[:, :, 4].abs().max() == 0
    gradients = torch.autograd.grad(out[:, :, 4].sum(), parts, retain_graph=True)
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients)
    gradients = torch.autograd.grad(out.square().sum(), parts)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_causal_form_hides_later_positions_of_a_fixed_cluster() -> None:
    made, (q, k, v) = mixer(1, 9, causal=True), heads()
    before = made.route(q, k, v).out
    k[:, :, 5:], v[:, :, 5:] = 7.0, 7.0
    after = made.route(q, k, v).out
    torch.testing.assert_close(after[:, :, :5], before[:, :, :5])
    assert not torch.isclose(after[:, :, 5:], before[:, :, 5:]).all()


def test_first_forward_starts_the_means_on_the_sphere() -> None:
    made, x = mixer(3, 5), draw(2, 9, 8)
    made.kmeans.initted.fill_(False)
    made(x, mask=KeyPadding(torch.tensor([9, 2])))
    assert made.kmeans.initted
    ones = torch.ones(HEADS, 3, dtype=torch.float64)
    torch.testing.assert_close(made.kmeans.means.norm(dim=-1), ones)
    again = made.kmeans.means.clone()
    made(x)
    assert torch.equal(made.kmeans.means, again)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_tokens_than_clusters(count: int) -> None:
    made, x = mixer(5, 3), draw(1, count, 8)
    made.kmeans.initted.fill_(False)
    assert torch.isfinite(made(x).y).all()


def test_update_moves_means_to_their_tokens_once() -> None:
    made, (q, k, v) = mixer(3, 5).train(), heads()
    before = made.kmeans.means.clone()
    made.route(q, k, v)
    assert torch.equal(made.kmeans.means, before)
    update_means(made)
    unit = F.normalize(torch.cat((q, k), 2), dim=-1)
    expected = before.clone()
    for h in range(HEADS):
        nearest = (unit[:, h] @ before[h].T).argmax(-1)
        for c in range(3):
            own = unit[:, h][nearest == c]
            if len(own):
                expected[h, c] = 0.999 * before[h, c] + 0.001 * F.normalize(own.sum(0), dim=0)
    torch.testing.assert_close(made.kmeans.means, expected)
    assert made.kmeans.sums.abs().max() == 0


def test_recomputing_for_gradient_checkpointing_updates_once() -> None:
    x = draw(2, 9, 8).requires_grad_()
    plain, saving = mixer().train(), mixer().train()
    plain(x).y.sum().backward()
    checkpoint(lambda x: saving(x).y, x, use_reentrant=False).sum().backward()
    update_means(plain)
    update_means(saving)
    torch.testing.assert_close(saving.kmeans.means, plain.kmeans.means)
    assert not torch.equal(plain.kmeans.means, mixer().kmeans.means)


def test_evaluation_collects_nothing_and_sums_are_not_saved() -> None:
    made = mixer()
    made(draw(2, 9, 8))
    assert made.kmeans.sums.abs().max() == 0
    found = {name for name in made.state_dict() if name.split(".")[0] not in ("qkv", "proj")}
    assert found == {"kmeans.means", "kmeans.initted", "mem_key", "mem_value"}


def test_commitment_is_weighted_and_draws_tokens() -> None:
    made, x = mixer(commitment=0.5), draw(2, 9, 8)
    aux = made(x).aux["commitment"]
    weights = made.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(aux, 0.5 * made.route(*weights).loss)
    aux.backward()
    assert made.qkv.weight.grad.abs().max() > 0


def test_gradients_are_finite_under_autocast() -> None:
    made, x = mixer(num_mem_kv=1).float().train(), draw(2, 9, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    (found.y.float().square().sum() + found.aux["commitment"]).backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_undeclared_uses_are_refused() -> None:
    made, x = mixer(causal=True), draw(2, 9, 8)
    with pytest.raises(UnsupportedPattern):
        made(x, x)
    with pytest.raises(UnsupportedPattern):
        made(x, x, mask=Causal())
    with pytest.raises(ConfigError, match="num_heads=3"):
        RoutingAttention(8, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("added", [0.0, 1e-5])
def test_replays_a_reference_file(
    form: dict, added: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mixer(**form)
    q, k, v = (x.requires_grad_() for x in heads())
    out, distance = formula(made, q, k, v)
    taken = made.route(q, k, v).taken
    y = out * taken / (taken + added).clamp(min=1e-9)
    loss = (y - 1).square().mean()
    found = torch.autograd.grad(loss, (made.mem_value, v), allow_unused=True)
    groups = {"input/q": q, "input/k": k, "input/v": v, "input/target": torch.ones_like(y)}
    groups |= {"output/y": y, "output/aux_loss": 1e-4 * distance, "output/loss": loss}
    groups |= {"grad/v": found[1]}
    if made.mem_key.numel():
        groups |= {"weights/mem_key": made.mem_key, "weights/mem_value": made.mem_value}
        groups |= {"grad/mem_value": found[0]}
    groups |= {"weights/kmeans.means": made.kmeans.means}
    groups |= {"weights/kmeans.initted": made.kmeans.initted}
    header = {"case": "routing_kmeans", "num_heads": HEADS, "head_dim": WIDTH}
    header |= {"num_clusters": 3, "window_size": 5, "seq_len": 9, "commitment": 1e-4}
    header |= {"causal": False, "shared_qk": False, "num_mem_kv": 0, **form}
    file = tmp_path / "routing.safetensors"
    tensors = {name: x.detach().float().contiguous() for name, x in groups.items()}
    save_file(tensors, file, {"config": json.dumps(header)})
    monkeypatch.syspath_prepend(str(PARITY))
    replay = import_module("core_routing").MECHANISMS["routing_kmeans"]
    replay(import_module("comparison").Reference(file))
