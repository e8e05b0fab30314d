import shutil

import pytest
import torch

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.spectral import SpectralGate, resampled
from manyhead_core.errors import ConfigError

GRIDS = [(4, 6), (5, 7), (1, 1), (3, 1), (1, 8)]


def layer(size: int | tuple[int, int], **options: object) -> SpectralGate:
    torch.manual_seed(0)
    mixer = SpectralGate(3, size=size, **options).requires_grad_(False)
    mixer.complex_weight.normal_()
    return mixer


def identity(mixer: SpectralGate) -> SpectralGate:
    mixer.complex_weight.copy_(torch.tensor([1.0, 0.0]).expand_as(mixer.complex_weight))
    return mixer


def tokens(grid: tuple[int, int]) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, grid[0] * grid[1], 3)


@pytest.mark.parametrize("grid", GRIDS)
def test_is_a_circular_convolution_with_the_kernel_of_the_weights(grid: tuple[int, int]) -> None:
    mixer, x = layer(grid), tokens(grid)
    weight = torch.view_as_complex(mixer.complex_weight)
    kernel = torch.fft.irfft2(weight, s=grid, dim=(0, 1))
    image = x.unflatten(1, grid)
    expected = torch.zeros_like(image)
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected += kernel[row, column] * image.roll((row, column), (1, 2))
    torch.testing.assert_close(mixer(x, grid=grid).y, expected.flatten(1, 2), rtol=0, atol=5e-6)


@pytest.mark.parametrize("length", [1, 8, 9])
def test_a_sequence_is_convolved_along_its_only_axis(length: int) -> None:
    mixer, x = layer(length), tokens((length, 1))
    assert mixer.complex_weight.shape == (length // 2 + 1, 3, 2)
    kernel = torch.fft.irfft(torch.view_as_complex(mixer.complex_weight), n=length, dim=0)
    expected = sum(kernel[shift] * x.roll(shift, 1) for shift in range(length))
    torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_output_is_real_and_has_the_shape_of_the_input(grid: tuple[int, int]) -> None:
    y = layer(grid)(tokens(grid), grid=grid).y
    assert y.dtype == torch.float32
    assert y.shape == (2, grid[0] * grid[1], 3)


@pytest.mark.parametrize("grid", GRIDS)
def test_weights_of_one_are_the_identity(grid: tuple[int, int]) -> None:
    x = tokens(grid)
    torch.testing.assert_close(identity(layer(grid))(x, grid=grid).y, x, rtol=0, atol=1e-6)


def test_is_linear() -> None:
    mixer, grid = layer((5, 7)), (5, 7)
    a, b = tokens(grid), torch.randn(2, 35, 3)
    expected = 2 * mixer(a, grid=grid).y - 3 * mixer(b, grid=grid).y
    torch.testing.assert_close(mixer(2 * a - 3 * b, grid=grid).y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_commutes_with_circular_shifts(grid: tuple[int, int]) -> None:
    mixer, x = layer(grid), tokens(grid)
    moved = x.unflatten(1, grid).roll((2, -3), (1, 2)).flatten(1, 2)
    expected = mixer(x, grid=grid).y.unflatten(1, grid).roll((2, -3), (1, 2)).flatten(1, 2)
    torch.testing.assert_close(mixer(moved, grid=grid).y, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("resample", ["bilinear", "kernel"])
@pytest.mark.parametrize("other", [(6, 9), (3, 4), (5, 8), (4, 7)])
def test_the_identity_stays_one_at_every_size(resample: str, other: tuple[int, int]) -> None:
    mixer, x = identity(layer((5, 7), resample=resample)), tokens(other)
    torch.testing.assert_close(mixer(x, grid=other).y, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("other", [(8, 9), (7, 6), (5, 5), (12, 11)])
def test_resampling_the_kernel_keeps_a_local_filter(other: tuple[int, int]) -> None:
    small = torch.zeros(6, 7, 3)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            small[row, column] = torch.randn(3)
    weight = torch.view_as_real(torch.fft.rfft2(small, dim=(0, 1)))
    found = resampled(weight, (6, 7), other, "kernel")
    kernel = torch.fft.irfft2(torch.view_as_complex(found), s=other, dim=(0, 1))
    expected = torch.zeros(*other, 3)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            expected[row, column] = small[row, column]
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-6)


def test_bilinear_resampling_keeps_the_mean_and_the_highest_frequency() -> None:
    weight = layer((6, 8)).complex_weight
    found = resampled(weight, (6, 8), (9, 12), "bilinear")
    assert found.shape == (9, 7, 3, 2)
    torch.testing.assert_close(found[0, 0], weight[0, 0])
    torch.testing.assert_close(found[0, -1], weight[0, -1])
    torch.testing.assert_close(found[-1, 0], weight[-1, 0])


@pytest.mark.parametrize("resample", ["bilinear", "kernel"])
@pytest.mark.parametrize(("size", "other"), [((5, 7), (8, 6)), ((9,), (12,))])
def test_resizing_equals_resampling_in_each_call(
    resample: str, size: tuple[int, ...], other: tuple[int, ...]
) -> None:
    mixer = layer(size, resample=resample)
    grid = other if len(other) == 2 else None
    x = tokens(other if grid else (other[0], 1))
    before = mixer(x, grid=grid).y
    mixer.resize(other)
    assert mixer.size == other
    assert mixer.complex_weight.shape[:-2] == (*other[:-1], other[-1] // 2 + 1)
    torch.testing.assert_close(mixer(x, grid=grid).y, before)
    with pytest.raises(ConfigError, match="does not have the axes"):
        mixer.resize((2, 3) if len(other) == 1 else 6)


def test_transforms_in_float32_under_autocast() -> None:
    mixer, x = identity(layer((4, 6))), tokens((4, 6)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x, grid=(4, 6)).y
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, x)
    assert torch.equal(mixer.bfloat16()(x, grid=(4, 6)).y, x)


@pytest.mark.parametrize("other", [(3, 5), (4, 4)])
def test_gradients_are_those_of_finite_differences(other: tuple[int, int]) -> None:
    mixer = layer((3, 5)).double().requires_grad_()
    x = torch.randn(1, other[0] * other[1], 3, dtype=torch.float64, requires_grad=True)
    weight = mixer.complex_weight.detach().clone().requires_grad_()

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            mixer, {"complex_weight": weight}, (x,), {"grid": other}
        ).y

    assert torch.autograd.gradcheck(run, (x, weight))


def test_first_weights_are_small_and_normal() -> None:
    torch.manual_seed(0)
    weight = SpectralGate(16, size=(14, 14)).complex_weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert SpectralGate(16, 4, size=[14, 14]).complex_weight.shape == (14, 8, 16, 2)


def test_undeclared_uses_are_refused() -> None:
    mixer, x = layer((2, 3)), tokens((2, 3))
    for words, message in [
        ({"context": x}, "spectral: does not support non-causal cross-attention"),
        ({"mask": Causal()}, "causal self-attention"),
        ({"mask": KeyPadding(torch.tensor([3, 3]))}, "does not support masks"),
        ({"maps": MapRequest()}, "attention maps"),
    ]:
        with pytest.raises(UnsupportedPattern, match=message):
            mixer(x, grid=(2, 3), **words)
    with pytest.raises(ConfigError, match=r"pass grid=\(height, width\)"):
        mixer(x)
    with pytest.raises(ConfigError, match="neither a length nor a height and width"):
        SpectralGate(3, size=(2, 3, 4))
    with pytest.raises(ConfigError, match="resample: 'cubic' is unknown"):
        SpectralGate(3, size=4, resample="cubic")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    mixer = layer((4, 5))
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    for grid in ((4, 5), (6, 7)):
        x = tokens(grid)
        torch.testing.assert_close(compiled(x, grid=grid).y, mixer(x, grid=grid).y)
