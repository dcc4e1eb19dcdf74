"""Training: cases and patches, the training loop, the strategies (DCA and other methods), and the export of models.

``dca train`` and ``dca bundle export`` do the following, here with synthetic CTs in place of a list of CTs::

    from pathlib import Path

    from dcaseg.organs import AMOS
    from dcaseg.training.checkpoints import RunRecord, write_record
    from dcaseg.training.export import export_bundle
    from dcaseg.training.options import TrainingOptions
    from dcaseg.training.trainer import Trainer
    from dcaseg.training.training_set import TrainingSet

    options = TrainingOptions(steps=200)
    data = TrainingSet.from_phantoms(labeled=2, unlabeled=2, validation=1)
    labeled, unlabeled, validation = data.cases(Path("cache"), options.grid)

    run = Path("run")
    run.mkdir()
    trainer = Trainer(run, options, AMOS, labeled, unlabeled, validation, device="cpu")
    trainer.run(validate_every=100)
    write_record(run, RunRecord(AMOS, options, data, trainer.partition))
    export_bundle(run, Path("model"))

To train on your own CTs, make ``data`` with ``make_training_set(read_datalist(path))`` (``training_set``,
``datalist``). A new method is a class in ``strategies`` (Resources/Docs/how-to/add-a-training-method.md).
"""
