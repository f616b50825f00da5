"""What an engine saves: how much it takes, and a disk that is full."""

from pathlib import Path

import pytest
import torch
from engine.small_engine import make_config, make_engine, take_step

from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

SETTINGS = [(stage, dtype) for dtype in ("fp32", "bf16") for stage in range(4)]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_the_size_of_a_checkpoint_is_known_before_it_is_written(
    ranks: Ranks, tmp_path: Path, stage: int, dtype: str, ema_decay: float | None
) -> None:
    config = make_config(stage, dtype, ema_decay)
    config = config.model_copy(update={"model": config.model.model_copy(update={"hidden_size": 256})})
    engine = make_engine(config, ranks)
    take_step(engine)
    engine.save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert engine.checkpoint_bytes() == pytest.approx(size, rel=0.02)


def test_a_file_that_cannot_be_written_is_named_when_the_others_are(ranks: Ranks, tmp_path: Path) -> None:
    """The ranks of a save wait for each other, so each writes what it can before any gives up."""
    engine = make_engine(make_config(2, "bf16"), ranks)
    take_step(engine)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mp_rank_00_model_states.pt").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"engine/mp_rank_00_model_states\.pt: No space left on device"):
        engine.save(tmp_path)
    (optimizer,) = (tmp_path / "engine").glob("*optim_states.pt")
    torch.load(optimizer, weights_only=False)
    engine.save(tmp_path / "again")
    assert (tmp_path / "again" / "engine" / "mp_rank_00_model_states.pt").stat().st_size > 0
