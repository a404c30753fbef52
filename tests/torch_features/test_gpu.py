"""On a GPU: closed forms in numpy, the masks that a CPU finds, and a model's life."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import functional
from tools.by_hand import sigma
from tools.estimators import ELEMENTWISE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings(
        "ignore:.*torch.jit.script.* is deprecated"
    ),  # inductor's imports
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # inductor's advice
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),  # by Dynamo
]

DEVICE = "cuda"
ESTIMATORS = [
    *ELEMENTWISE,
    masktorch.TopK(0.3),
    masktorch.TopK(0.3, absolute=False),
    masktorch.Blocks(masktorch.TopK(0.5), (1, None)),
    masktorch.NOfM(2, 4),
]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


def network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 6),
    )


def pair(estimator, **options):
    """The same masked model on a CPU and on the GPU."""
    torch.manual_seed(0)
    model = masktorch.wrap(network(), estimator, init=torch.randn_like, **options)
    return model, copy.deepcopy(model).to(DEVICE)


def images():
    return torch.randn(16, 4, 6, 6), torch.randint(6, (16,))


def slope(s):
    return sigma(s) * (1 - sigma(s))


def largest(v, k):
    mask = np.zeros(v.size, dtype=bool)
    mask[np.argsort(-v.ravel(), kind="stable")[:k]] = True
    return mask.reshape(v.shape)


@pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
@pytest.mark.parametrize("shape", [(6, 8), (700, 900)])
@pytest.mark.parametrize(
    "name", ["threshold", "bernoulli", "intermediate", "piggyback", "topk"]
)
def test_a_gradient_is_its_closed_form(name, shape, fused):
    rng = np.random.default_rng(0)
    s, w, grad = (rng.normal(size=shape) for _ in range(3))
    s = s.round(2)  # with ties
    scores, weight = (
        torch.tensor(a, device=DEVICE, requires_grad=True) for a in (s, w)
    )
    options = {"density": 0.3} if name == "topk" else {}
    function = getattr(functional, name)
    if fused:
        out = function(scores, weight=weight, **options)
    else:
        out = weight * function(scores, **options)
    out.backward(torch.tensor(grad, device=DEVICE))
    out = out.detach().cpu().numpy()
    m = out != 0
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_array_equal(weight.grad.cpu().numpy(), grad * m)
    if name in ("bernoulli", "intermediate"):
        assert abs(m.sum() - sigma(s).sum()) < 5 * np.sqrt(slope(s).sum())
    else:
        top = largest(np.abs(s), round(0.3 * s.size))
        expected = {"threshold": s > 0, "piggyback": s > 5e-3, "topk": top}
        np.testing.assert_array_equal(m, expected[name])
    g = grad * w
    x = np.clip(0.1 * g / np.sqrt(np.mean(g**2)), -0.5, 0.5)
    by_hand = {
        "threshold": g * slope(s),
        "bernoulli": g * slope(s),
        "intermediate": sigma(s) - np.where(m, 1 / (1 + x), -x / (1 - x)),
        "piggyback": g,
        "topk": g * np.where(s < 0, -1, 1),
    }
    np.testing.assert_allclose(
        scores.grad.cpu().numpy(), by_hand[name], rtol=1e-9, atol=1e-12
    )


@each_estimator
@pytest.mark.parametrize("rescale", [False, True])
def test_in_eval_a_gpu_has_the_masks_and_outputs_of_a_cpu(estimator, rescale):
    cpu, gpu = pair(estimator, rescale=rescale)
    x, _ = images()
    for name, mask in masktorch.masks(gpu).items():
        assert mask.is_cuda
        assert torch.equal(mask.cpu(), masktorch.masks(cpu)[name])
    found = gpu.eval()(x.to(DEVICE)).cpu()
    torch.testing.assert_close(found, cpu.eval()(x), rtol=1e-2, atol=1e-2)  # TF32


@each_estimator
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_learn_and_weights_stay(estimator, precision):
    _, model = pair(estimator)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = masktorch.masks(model)
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler(
        DEVICE, enabled=precision == torch.float16, init_scale=256
    )
    x, y = (t.to(DEVICE) for t in images())
    losses = []
    for _ in range(40):
        with torch.autocast(
            DEVICE, dtype=precision, enabled=precision != torch.float32
        ):
            loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert min(losses[20:]) < losses[0]
    assert all(
        torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen
    )
    assert any(not torch.equal(m, before[n]) for n, m in masktorch.masks(model).items())


@each_estimator
def test_draws_follow_the_seed(estimator):
    _, model = pair(estimator)
    x = images()[0].to(DEVICE)

    def out(seed):
        torch.manual_seed(seed)
        return model(x)

    assert torch.equal(out(1), out(1))
    assert torch.equal(out(1), out(2)) != estimator.draws


@each_estimator
def test_a_mask_that_is_frozen_saved_sent_and_taken_off(estimator):
    cpu, gpu = pair(estimator)
    masktorch.freeze_weights(masktorch.freeze_mask(gpu), False)
    found = masktorch.masks(gpu)
    file = io.BytesIO()
    masktorch.save_masks(gpu, file)
    read = masktorch.read_masks(io.BytesIO(file.getvalue()))
    assert all(torch.equal(m, found[n].cpu()) for n, m in read.items())
    torch.manual_seed(0)
    for model in (cpu, network().to(DEVICE)):
        masktorch.load_masks(model, io.BytesIO(file.getvalue()))
        assert all(
            torch.equal(m.cpu(), read[n]) for n, m in masktorch.masks(model).items()
        )

    x, y = (t.to(DEVICE) for t in images())
    optimiser = torch.optim.SGD(
        [p for p in gpu.parameters() if p.requires_grad], lr=0.1
    )
    nn.functional.cross_entropy(gpu(x), y).backward()
    optimiser.step()
    assert all(torch.equal(m, found[n]) for n, m in masktorch.masks(gpu).items())
    torch.testing.assert_close(gpu(x), gpu(x))  # nothing is drawn

    gpu.eval()
    before = gpu(x)
    flipped = {n: m.flip(0) for n, m in found.items()}
    with masktorch.using(gpu, {n: m.cpu() for n, m in flipped.items()}):
        assert all(torch.equal(m, flipped[n]) for n, m in masktorch.masks(gpu).items())
    assert torch.equal(gpu(x), before)
    plain = masktorch.unwrap(copy.deepcopy(gpu))
    assert torch.equal(plain(x), before)
    masktorch.set_masks(gpu, flipped)
    assert all(torch.equal(m, flipped[n]) for n, m in masktorch.masks(gpu).items())


def test_a_frozen_mask_follows_scores_written_past_the_version_counter():
    _, model = pair(masktorch.TopK(0.3))
    masktorch.freeze_mask(model).eval()
    x = images()[0].to(DEVICE)
    model(x)
    for scores in masktorch.mask_parameters(model):
        scores.data.copy_(torch.arange(scores.numel()).view(scores.shape))
    by_hand = {
        n: torch.arange(m.numel()).view(m.shape)
        for n, m in masktorch.masks(model).items()
    }
    for name, mask in masktorch.masks(model).items():
        expected = largest(by_hand[name].numpy(), mask.sum().item())
        np.testing.assert_array_equal(mask.cpu().numpy(), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_the_largest_of_all_are_those_of_a_cpu(dtype):
    values = {
        f"{n}": torch.randn(n, 33).round(decimals=1).to(dtype) for n in (3, 50, 4000)
    }
    values["3"][0, :3] = torch.tensor([torch.nan, -0.0, torch.inf])
    for density in (0.01, 0.5, 0.9):
        expected = masktorch.keep_largest(values, density)
        on_gpu = {n: v.to(DEVICE) for n, v in values.items()}
        found = masktorch.keep_largest(on_gpu, density)
        one = masktorch.keep_largest({"4000": on_gpu["4000"]}, density)
        alone = masktorch.keep_largest({"4000": values["4000"]}, density)
        assert all(
            m.is_cuda and torch.equal(m.cpu(), expected[n]) for n, m in found.items()
        )
        assert torch.equal(one["4000"].cpu(), alone["4000"])


@pytest.mark.parametrize("share", ["overall", "erk"])
def test_densities(share):
    cpu, gpu = pair(masktorch.TopK(0.3))
    densities = getattr(masktorch.budget, share)(cpu, 0.2)
    assert getattr(masktorch.budget, share)(gpu, 0.2) == pytest.approx(densities)
    masktorch.set_density(gpu, densities)
    kept = sum(m.sum().item() for m in masktorch.masks(gpu).values())
    assert kept == pytest.approx(
        0.2 * sum(m.numel() for m in masktorch.masks(gpu).values()), abs=2
    )
    assert masktorch.expected_density(gpu).item() == pytest.approx(0.2, abs=2e-3)
    assert f"{masktorch.report(gpu)}"


@each_estimator
def test_a_compiled_model_is_the_eager_one(estimator):
    torch._dynamo.reset()
    _, model = pair(estimator)
    x = images()[0].to(DEVICE)
    compiled = torch.compile(model)
    if not estimator.draws:
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-2, atol=1e-2)
    compiled(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in masktorch.mask_parameters(model))
    assert estimator.draws != torch.equal(compiled(x), compiled(x))
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-2, atol=1e-2)
    torch._dynamo.reset()


@each_estimator
def test_an_ensemble_of_masks_in_one_call(estimator):
    _, model = pair(estimator)
    model.eval()
    x = images()[0].to(DEVICE)
    names = dict(masktorch.named_mask_parameters(model))
    stacked = {n: torch.randn(3, *s.shape, device=DEVICE) for n, s in names.items()}

    def call(scores):
        return torch.func.functional_call(model, scores, (x,))

    found = torch.vmap(call)(stacked)
    each = [call({n: s[i] for n, s in stacked.items()}) for i in range(3)]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-2, atol=1e-2)


def test_samples_have_a_generator_of_their_own():
    _, model = pair(masktorch.Bernoulli())
    drawn = [
        masktorch.sample_masks(model, torch.Generator(DEVICE).manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    first, again, other = (torch.cat([m.flatten() for m in d.values()]) for d in drawn)
    assert first.is_cuda
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_signed_constants():
    weight = torch.randn(64, 32, device=DEVICE)
    by_hand = np.where(weight.cpu().numpy() < 0, -1, 1) * np.sqrt(2 / 32)
    masktorch.init.signed_constant_(weight)
    np.testing.assert_allclose(weight.cpu().numpy(), by_hand, rtol=1e-6)
