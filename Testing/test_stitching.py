"""Label split and logit stitching."""

from __future__ import annotations

import pytest
import torch

from dcaseg.method.stitching import split_labels, stitch

OWNERS = ((2,), (1, 4), (3,))
MODES = ("raw", "background_relative", "log_softmax")


@pytest.fixture
def expert_logits() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 3, 4, 5, generator=generator) for _ in OWNERS]


def test_label_split_keeps_the_experts_labels_and_their_numbers():
    labels = torch.tensor([[0, 1, 2], [3, 4, 1]], dtype=torch.uint8)
    assert split_labels(labels, (1, 4)).tolist() == [[0, 1, 0], [0, 4, 1]]


def test_raw_stitching_is_the_papers_equation(expert_logits):
    head, medium, tail = expert_logits
    stitched = stitch(expert_logits, OWNERS, "raw")
    torch.testing.assert_close(stitched[:, 0], (head[:, 0] + medium[:, 0] + tail[:, 0]) / 3)
    assert torch.equal(stitched[:, 2], head[:, 2])
    assert torch.equal(stitched[:, [1, 4]], medium[:, [1, 4]])
    assert torch.equal(stitched[:, 3], tail[:, 3])


@pytest.mark.parametrize("mode", MODES)
def test_each_foreground_channel_comes_from_its_owner_only(mode, expert_logits):
    before = stitch(expert_logits, OWNERS, mode)
    for label in range(1, 5):
        for expert, owned in enumerate(OWNERS):
            if label in owned:
                continue
            changed = [logits.clone() for logits in expert_logits]
            changed[expert][:, label] = -1e3  # zero probability in a log-softmax too, so no other channel depends on it
            reference = [logits.clone() for logits in expert_logits]
            reference[expert][:, label] = -2e3
            assert torch.equal(stitch(changed, OWNERS, mode), stitch(reference, OWNERS, mode))
    assert before.shape == (2, 5, 3, 4, 5)


def test_a_constant_added_to_one_expert_changes_only_raw_stitching(expert_logits):
    shifted = [expert_logits[0] + 7 * torch.randn(2, 1, 3, 4, 5), *expert_logits[1:]]
    assert not torch.equal(
        stitch(shifted, OWNERS, "raw").argmax(dim=1), stitch(expert_logits, OWNERS, "raw").argmax(dim=1)
    )
    for mode in ("background_relative", "log_softmax"):
        torch.testing.assert_close(
            stitch(shifted, OWNERS, mode), stitch(expert_logits, OWNERS, mode), atol=1e-4, rtol=1e-4
        )


def test_background_relative_is_background_where_every_expert_prefers_it(expert_logits):
    stitched = stitch(expert_logits, OWNERS, "background_relative").argmax(dim=1)
    claims = torch.stack(
        [logits[:, list(owned)].amax(dim=1) > logits[:, 0] for logits, owned in zip(expert_logits, OWNERS, strict=True)]
    )
    assert torch.equal(stitched > 0, claims.any(dim=0))


def test_invalid_owners_are_rejected(expert_logits):
    with pytest.raises(ValueError, match="exactly one owner"):
        stitch(expert_logits, ((2,), (1,), (3,)), "raw")
    with pytest.raises(ValueError, match="need 3 sets"):
        stitch(expert_logits, ((2,), (1, 3, 4)), "raw")
    with pytest.raises(ValueError, match="stitching must be"):
        stitch(expert_logits, OWNERS, "mean")  # type: ignore[arg-type]
