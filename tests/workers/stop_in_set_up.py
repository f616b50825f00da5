"""The training command, during whose set-up someone touches the stop file, as train.sbatch's trap does."""

import sys

from mdmscale.system.run_folder import RunFolder
from mdmscale.train_command import main as train_main
from mdmscale.training import trainer

if __name__ == "__main__":
    set_up = trainer.set_up

    def stopped(config, ranks):  # type: ignore[no-untyped-def]
        folder = RunFolder(trainer.Path(config.run.output_dir) / config.run.name)
        assert not folder.stop.exists(), "an earlier run's is removed"
        folder.stop.touch()
        return set_up(config, ranks)

    trainer.set_up = stopped
    sys.exit(train_main())
