"""ZeRO over real processes: the same losses, norms and first weights as one plain process."""

import pytest

from tests.distributed.zero import curve

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_and_norms_are_those_of_one_process(run_of_stage, stage):
    """Gradients are clipped at a norm of 1, so that a wrong scale would show in the losses too."""
    one, two = run_of_stage(0), run_of_stage(stage)
    assert list(curve(two)) == list(range(7))
    assert curve(two) == pytest.approx(curve(one), abs=5e-6)
    assert curve(two, "train/grad_norm") == pytest.approx(curve(one, "train/grad_norm"), rel=1e-5)
    assert min(curve(one, "train/grad_norm").values()) > 1
