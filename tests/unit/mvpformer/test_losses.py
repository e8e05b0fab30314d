"""The contrastive loss and its negatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from manyhead.mvpformer import losses
from manyhead.mvpformer.losses import contrastive_loss, draw_negatives, next_token_quality


def tokens(seed: int = 0, shape: tuple[int, ...] = (2, 5, 3, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_loss_follows_the_formula() -> None:
    prediction, encoded = tokens(1), tokens(2)
    rows = draw_negatives((2, 5, 3), 4, generator=torch.Generator().manual_seed(3))
    found = contrastive_loss(prediction, encoded, rows, 0.2)
    flat, total, right = encoded.reshape(-1, 8), 0.0, 0
    for b in range(2):
        for t in range(4):
            for c in range(3):
                target = (b * 5 + t + 1) * 3 + c
                others = [int(r) for r in rows[target]]
                logits = torch.stack(
                    [
                        F.cosine_similarity(prediction[b, t, c], flat[n], dim=0) / 0.2
                        for n in (target, *others)
                    ]
                )
                total += float(F.cross_entropy(logits[None], torch.tensor([0])))
                right += int(logits.argmax() == 0)
    assert float(found.loss) == pytest.approx(total / 24, abs=1e-5)
    assert float(found.accuracy) == pytest.approx(right / 24, abs=1e-6)


def test_chunks_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw_negatives((2, 5, 3), 4, generator=torch.Generator().manual_seed(3))
    results = []
    for numbers in (losses.CHUNK_NUMBERS, 5 * 4 * 8):
        monkeypatch.setattr(losses, "CHUNK_NUMBERS", numbers)
        prediction, encoded = tokens(1).requires_grad_(), tokens(2).requires_grad_()
        loss = contrastive_loss(prediction, encoded, rows).loss
        loss.backward()
        results.append((loss.detach(), prediction.grad, encoded.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_dead_channel_is_no_negative_of_another() -> None:
    encoded = tokens(2)
    encoded[:, :, 1] = 0
    rows = torch.arange(30).repeat(30, 1)
    found = contrastive_loss(tokens(1), encoded, rows)
    dead = found.logits.view(2, 4, 3, -1)[:, :, 1]
    assert (dead[..., 0] == 0).all()
    assert dead[..., 1:].isneginf().sum(-1).eq(10).all()
    assert found.loss.isfinite()


@pytest.mark.parametrize("source", ["any", "same_recording", "other_recordings", "mixed"])
@pytest.mark.parametrize("batch", [1, 3])
def test_no_token_is_its_own_negative(source: str, batch: int) -> None:
    each = 4 * 2
    rows = draw_negatives(
        (batch, 4, 2),
        200,
        source,
        generator=torch.Generator().manual_seed(0),  # type: ignore[arg-type]
    )
    own = torch.arange(batch * each)[:, None]
    assert (rows != own).all()
    assert rows.min() >= 0
    assert rows.max() < batch * each
    same = rows // each == own // each
    if source == "same_recording" or batch == 1:
        assert same.all()
    elif source == "other_recordings":
        assert not same.any()
    elif source == "mixed":
        assert same.float().mean() == 0.5
    # With so many draws every allowed token comes up.
    allowed = each - 1 if source == "same_recording" or batch == 1 else batch * each - 1
    if source == "any":
        assert len(rows[0].unique()) == allowed


def test_quality_of_a_perfect_prediction() -> None:
    encoded = tokens(4)
    prediction = torch.roll(encoded, -1, 1)
    found = next_token_quality(prediction, encoded)
    assert float(found["next"]) == pytest.approx(1, abs=1e-6)
    assert float(found["other"]) < 0.5
    assert float(found["two_ahead"]) < 0.5
