"""The trainer's operations against ops/reference.py, gradients included, and its optimizers against torch's."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from libremoe.experts import Expert
from libremoe.ops import reference
from libremoe.train import fused, ops
from libremoe.train.network import RouterWatch, network, new_parameters
from libremoe.train.optim import Optimizer, clip, orthogonal
from libremoe.train.recipe import Recipe, find_recipe, read_recipe
from libremoe.train.shards import Rows, Shard
from tests.training import rules_shards

CLOSE = {"atol": 2e-5, "rtol": 2e-4}  # float32 sums in another order


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    folder = tmp_path_factory.mktemp("shards")
    rules_shards(folder, 60, 10)
    return Shard(folder / "pretrain")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(find_recipe("minute"))


def _rows(shard: Shard, context: int, count: int = 3) -> Rows:
    return shard.rows(shard.row_starts(context, False)[1 : 1 + count], context, False)


@pytest.mark.parametrize("context", [40, 300])  # below and above one block of queries
def test_attention_over_packed_rows_is_the_references(shard: Shard, context: int) -> None:
    rows = _rows(shard, context)
    results = []
    for module in (ops, reference):
        generator = torch.Generator().manual_seed(0)
        n = len(rows.tokens)
        q, k, v = (torch.randn(n, h, 16, generator=generator).mul_(3).requires_grad_() for h in (4, 2, 2))
        out = module.attention(q, k, v, rows.batch, None, None, 0.7, 5.0, None)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, **CLOSE)


def test_the_plain_attention_of_other_devices_is_the_same(shard: Shard) -> None:
    batch = _rows(shard, 40).batch
    q, k, v = (torch.randn(3, h, 40, 16) for h in (4, 2, 2))
    written_out = ops._CachedAttention.apply(q, k, v, batch.hidden_BTT, 0.7, 5.0)
    torch.testing.assert_close(ops._plain_attention(q, k, v, batch.hidden_BTT, 0.7, 5.0), written_out, **CLOSE)


def test_the_attention_that_gpus_compile_is_the_same(shard: Shard) -> None:
    batch = _rows(shard, 300).batch
    results = []
    for function in (lambda *x: fused.packed_attention(*x, batch.block_mask, 0.7, 5.0),
                     lambda *x: ops._plain_attention(*x, batch.hidden_BTT, 0.7, 5.0)):
        generator = torch.Generator().manual_seed(0)
        results.append([function(*(torch.randn(3, h, 300, 16, generator=generator) for h in (4, 2, 2)))])
    torch.testing.assert_close(*results, **CLOSE)


def test_what_gpus_compile_is_the_references() -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(30, 16, generator=generator), torch.randn(16, generator=generator)
    torch.testing.assert_close(fused.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **CLOSE)
    gate, up = x[:, :8], x[:, 8:]
    for activation, function in (("gelu", lambda v: F.gelu(v, approximate="tanh")), ("silu", F.silu)):
        torch.testing.assert_close(fused.gated(gate, up, activation), function(gate) * up, **CLOSE)
    y, gates = x.view(10, 3, 16), torch.rand(10, 3, generator=generator)
    torch.testing.assert_close(fused.weighed(y, gates), torch.einsum("nad,na->nd", y, gates), **CLOSE)


def test_the_loss_that_gpus_compile_is_torchs_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(12, 40, generator=generator, requires_grad=True)
    targets = torch.randint(0, 40, (12,), generator=generator)
    targets[[2, 7]] = -1  # rows that count for nothing
    expected = F.cross_entropy(logits * 0.6, targets, ignore_index=-1, reduction="sum")
    expected.backward()
    for function in (fused.loss_and_slope, ops._loss_and_slope):
        loss, slope = function(logits.detach(), targets, 0.6)
        torch.testing.assert_close(loss.float(), expected.detach(), **CLOSE)
        torch.testing.assert_close(slope, logits.grad, **CLOSE)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_experts_sorted_by_token_are_the_references(activation: str) -> None:
    results = []
    for module in (ops, reference):
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).requires_grad_()

        x, logits = (0.3 * random(50, 24)).detach().requires_grad_(), random(50, 5)  # gates whose tanh is not all 1
        experts = [Expert(random(32, 24), random(32, 24), random(24, 32)) for _ in range(5)]
        masked = logits - torch.tensor([0, 0, 100.0, 0, 0])  # expert 2 is never chosen
        ids, gates = module.route(masked, 2, False)
        out = module.moe(x, ids, gates, [{e: experts[e] for e in ids.unique().tolist()}], activation)
        out.square().sum().backward()
        grads = [w.grad for e in experts for w in (e.gate, e.up, e.down)]
        assert all((g is None or not g.any()) == (i // 3 == 2) for i, g in enumerate(grads))
        results.append([out, x.grad, logits.grad, *(g for g in grads if g is not None and g.any())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, **CLOSE)


@pytest.mark.parametrize("step", [1, 8, 128])
def test_places_are_sorted_by_expert_and_filled_up(step: int) -> None:
    ids = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(9))
    ids[ids == 3] = 4  # nobody chooses expert 3
    places, counts = ops._places(ids, step)
    assert all(n % step == 0 and n >= int((ids == e).sum()) for e, n in enumerate(counts)) and counts[3] == 0
    assert len(set(places.tolist())) == len(ids)
    begins = [sum(counts[:e]) for e in range(5)]
    for e in (0, 1, 2, 4):  # in their order, without a gap
        assert places[ids == e].tolist() == list(range(begins[e], begins[e] + int((ids == e).sum())))


def test_a_step_in_bfloat16_is_near_the_one_in_float32(shard: Shard, recipe: Recipe) -> None:
    """Gradients point the same way, those of the experts, whose rows are filled up with zeros, included."""
    rows = _rows(shard, 96)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        parameters = new_parameters(recipe.model, 3)
        h = network(recipe.model, parameters, dtype).hidden(rows.tokens, rows.batch)
        assert h.dtype == dtype
        loss = ops.cross_entropy_sum(h, parameters["embed.weight"], rows.targets, recipe.model.logit_scale)
        (loss / len(rows.tokens)).backward()
        grads.append({"loss": loss.detach() / len(rows.tokens)} | {n: p.grad for n, p in parameters.items()})
    exact, near = grads
    torch.testing.assert_close(near["loss"], exact["loss"], atol=0.01, rtol=0.01)
    for name in exact:
        if name != "loss" and exact[name].norm() > 1e-6:
            alike = F.cosine_similarity(exact[name].flatten(), near[name].flatten(), dim=0).item()
            assert alike > 0.95, f"{name}: {alike}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_on_a_gpu_is_near_the_one_on_the_processor(shard: Shard, recipe: Recipe) -> None:
    context, results = 128, []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        rows = shard.rows(shard.row_starts(context, False)[1:5], context, False, device)
        parameters = new_parameters(recipe.model, 3, device)
        h = network(recipe.model, parameters, dtype).hidden(rows.tokens, rows.batch)
        loss = ops.cross_entropy_sum(h, parameters["embed.weight"], rows.targets, recipe.model.logit_scale)
        (loss / len(rows.tokens)).backward()
        results.append((float(loss), {n: p.grad.cpu() for n, p in parameters.items() if p.grad is not None}))
    exact_loss, exact = results[0]
    for (loss, grads), least in zip(results[1:], (0.999, 0.95), strict=True):
        assert abs(loss / exact_loss - 1) < 0.01
        for name, grad in exact.items():
            if grad.norm() > 1e-6:
                alike = F.cosine_similarity(grad.flatten(), grads[name].flatten(), dim=0).item()
                assert alike > least, f"{name}: {alike}"


def test_grouped_products_are_one_product_an_expert() -> None:
    generator = torch.Generator().manual_seed(2)
    counts = [16, 0, 24, 8]
    x = torch.randn(sum(counts), 32, generator=generator).bfloat16()
    shapes = ((64, 32), (64, 32), (32, 64))
    experts = [Expert(*(torch.randn(s, generator=generator) / 6 for s in shapes)) for _ in counts]
    try:
        grouped = ops.grouped_feed_forward(x, counts, experts, "gelu")
    except (RuntimeError, AttributeError) as error:
        pytest.skip(f"no grouped product in bfloat16 here: {error}")
    single = torch.cat([ops.feed_forward(part, e, "gelu") for part, e in zip(x.split(counts), experts, strict=True)])
    torch.testing.assert_close(grouped.float(), single.float(), atol=0.05, rtol=0.05)  # bfloat16


def test_the_network_learns_as_with_the_reference(shard: Shard, recipe: Recipe) -> None:
    rows = _rows(shard, 96)
    results = []
    for module in (ops, reference):
        parameters = new_parameters(recipe.model, 3)
        model = network(recipe.model, parameters, ops=module)
        if module is ops:
            h = model.hidden(rows.tokens, rows.batch)
            loss = ops.cross_entropy_sum(h, model.head.weight, rows.targets, recipe.model.logit_scale, chunk=50)
        else:
            loss = F.cross_entropy(model(rows.tokens, rows.batch), rows.targets, reduction="sum")
        (loss / len(rows.tokens)).backward()
        results.append({"loss": loss / len(rows.tokens)} | {n: p.grad for n, p in parameters.items()})
    for name, slow in results[1].items():
        torch.testing.assert_close(results[0][name], slow, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_document_does_not_see_its_neighbours(shard: Shard, recipe: Recipe) -> None:
    rows = _rows(shard, 200, 1)
    model = network(recipe.model, new_parameters(recipe.model, 4))
    begin, end = rows.batch.starts[1:3]
    other = rows.tokens.clone()
    other[:begin] = 20
    with torch.no_grad():
        torch.testing.assert_close(model(rows.tokens, rows.batch)[begin:end], model(other, rows.batch)[begin:end])


def test_rows_of_whole_documents_begin_with_one_and_lose_nothing(shard: Shard) -> None:
    starts = shard.row_starts(200, True)
    assert set(starts) <= set(shard.docs.tolist())  # no document here is longer than a row
    covered = np.zeros(len(shard.tokens), bool)
    for start in starts:
        covered[start : start + 200] = True
    assert covered[: starts[-1] + 200].all()


def test_targets_are_the_next_tokens_of_the_same_document(shard: Shard) -> None:
    start = np.array([7])
    every, answers = (shard.rows(start, 300, only) for only in (False, True))
    documents = np.searchsorted(shard.docs, np.arange(7, 308), side="right")
    assert every.targets.tolist() == shard.tokens[8:308].tolist()
    assert every.weights.tolist() == (documents[1:] == documents[:-1]).astype(float).tolist()
    assert answers.weights.tolist() == (every.weights.numpy() * shard.mask[8:308]).tolist()


def test_router_losses_are_least_when_even(recipe: Recipe, shard: Shard) -> None:
    parameters = new_parameters(recipe.model, 5)
    model = network(recipe.model, parameters)
    watch = RouterWatch(model)
    rows = _rows(shard, 96)

    def balance() -> float:
        model.hidden(rows.tokens, rows.batch)
        value, z, counts = watch.take()
        assert counts.sum().item() == len(rows.tokens) * recipe.model.n_layers * recipe.model.n_experts_per_tok
        assert z.item() > 0
        return value.item()

    with torch.no_grad():
        for layer in range(recipe.model.n_layers):
            parameters[f"layers.{layer}.router.weight"].mul_(0.01)
        even = balance()
        parameters["layers.0.router.weight"].mul_(10_000)
        assert 0.99 < even < balance()


def test_adamw_is_torchs() -> None:
    recipe = read_recipe(find_recipe("minute"))
    ours, theirs = new_parameters(recipe.model, 6), new_parameters(recipe.model, 6)
    optimizer = Optimizer(ours, "adamw", 0.1)
    decayed = [p for n, p in theirs.items() if not n.endswith("norm.weight") and n != "embed.weight"]
    plain = [p for n, p in theirs.items() if n.endswith("norm.weight") or n == "embed.weight"]
    torchs = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                               lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    generator = torch.Generator().manual_seed(7)
    for number in (1, 2, 3):
        for name in ours:
            grad = torch.randn(ours[name].shape, generator=generator)
            ours[name].grad, theirs[name].grad = grad.clone(), grad.clone()
        optimizer.step(number, 1e-2)
        torchs.step()
    for name in ours:
        torch.testing.assert_close(ours[name].data, theirs[name].data, **CLOSE)


@pytest.mark.parametrize("shape", [(4, 24, 64), (3, 64, 24)])
def test_muons_updates_are_nearly_orthogonal_and_keep_the_directions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    values = torch.linalg.svdvals(orthogonal(x))
    assert values.min() > 0.6 and values.max() < 1.3
    inner = (u.transpose(1, 2) @ orthogonal(x) @ vt.transpose(1, 2)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner.sort().values, values.sort().values, atol=1e-3, rtol=1e-3)


def test_clipping_limits_the_joint_norm() -> None:
    parameters = {n: torch.nn.Parameter(torch.zeros(3)) for n in "ab"}
    for p in parameters.values():
        p.grad = torch.full((3,), 2.0)
    assert clip(parameters, 1.0).item() == pytest.approx(math.sqrt(24))
    joint = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters.values() if p.grad is not None))
    assert joint == pytest.approx(1.0, rel=1e-4)


def test_mistakes_in_recipes_and_shards_are_sentences(tmp_path: Path) -> None:
    from libremoe.errors import LibremoeError

    good = find_recipe("minute").read_text()
    for old, new, said in (("rows = 32", "rowz = 32", "rowz"), ("share = 1.0", "share = 0.5", "add up to 1"),
                           ("lr = 8e-3", 'lr = "fast"', "of type float"),
                           ("context = 128", "context = 4096", "context_len"),
                           ("micro_rows = 32", "micro_rows = 5", "multiple"), ("dim = 64", "dim = -64", "dim")):
        path = tmp_path / "bad.toml"
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(LibremoeError, match=said):
            read_recipe(path)
    with pytest.raises(LibremoeError, match="cpu, gpu, minute"):
        find_recipe("nothing")
    with pytest.raises(LibremoeError, match="train data"):
        Shard(tmp_path)
