"""The apps of the suite, one row each. Reading this file imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import entry_points

from manyhead_core.app import App, Command, find

# One row a line reads best here.
# fmt: off
# Commands that the core gives to every app; the app's own ones are added in its row.
CORE_COMMANDS = (
    Command("configs", "list the shipped configs with the number each should reach", "manyhead_core.cli.configs:configs"),
    Command("export", "write a checkpoint as a weights folder or as .onnx", "manyhead_core.hub.export:export"),
    Command("report", "turn the results of a run into one HTML page", "manyhead_core.evaluate.page:report"),
    Command("calibrate", "fit a temperature on validation predictions", "manyhead_core.evaluate.calibrate:calibrate"),
    Command("sweep", "run seeds x folds x variants and tabulate them", "manyhead_core.sweep.run:sweep"),
)

# Commands beside the apps; a name of two words is a sub-command.
TOP_COMMANDS = (
    Command("demo", "simulate, train, evaluate and explain: one HTML report", "manyhead_core.demo:demo"),
    Command("data list", "the data sets that the suite knows", "manyhead_core.data.command:list_cards"),
    Command("data show", "one data set: licence, access, files expected on disk", "manyhead_core.data.command:show_card"),
    Command("data check", "compare a folder with what the card of a data set expects", "manyhead_core.data.command:check_folder"),
    Command("weights list", "published checkpoints and how to import them", "manyhead_core.hub.weights:list_weights"),
    Command("weights verify", "check a weights folder or file against the catalogue", "manyhead_core.hub.weights:verify"),
    Command("compare", "compare runs on the same samples, with paired intervals", "manyhead_core.evaluate.compare:compare"),
    Command("doctor", "versions, devices, missing extras, write access", "manyhead_core.cli.doctor:doctor"),
)

APPS = (
    App(
        name="acmil",
        title="ACMIL",
        summary="whole-slide image classification with multi-branch attention (slides, feature files)",
        extra="wsi",
        model="manyhead.acmil.model:ACMIL",
        config="manyhead.acmil.model:ACMILConfig",
        task="manyhead.acmil.task:ACMILTask",
        data="manyhead.acmil.data:BagData",
        evaluate="manyhead.acmil.evaluate:evaluate",
        demo="manyhead.acmil.demo:demo",
        monitor="val/score",
        mode="max",
        medical=True,
        commands=(
            Command("tile", "find tissue on slides and write patch coordinates", "manyhead.acmil.tile:tile"),
            Command("features", "encode the patches of slides with any encoder, one file a slide", "manyhead.acmil.features:features"),
            Command("convert", "feature files of any tool into files that are read fast", "manyhead.acmil.layouts.convert:convert"),
            Command("predict", "score slides from their feature files", "manyhead.acmil.predict:predict"),
            Command("explain", "heat maps, galleries and QuPath files from existing features", "manyhead.acmil.explain.command:explain"),
            Command("froc", "lesion sensitivity of marked points", "manyhead.acmil.froc:froc_command"),
            Command("import", "convert a published checkpoint of ACMIL", "manyhead.acmil.checkpoint:import_official"),
            Command("simulate", "write slides with planted lesions, labels and features", "manyhead.acmil.simulate:simulate"),
            Command("inspect", "report on slides, patients, labels and features", "manyhead.acmil.inspect:inspect"),
            Command("split", "write a split file by patient", "manyhead.acmil.split:split"),
            *CORE_COMMANDS,
        ),
    ),
    App(
        name="autoint",
        title="AutoInt",
        summary="click-through-rate prediction with field self-attention (tables)",
        extra="rec",
        model="manyhead.autoint.model:AutoInt",
        config="manyhead.autoint.model:AutoIntConfig",
        task="manyhead.autoint.task:AutoIntTask",
        data="manyhead.autoint.data:TableData",
        evaluate="manyhead_core.evaluate.binary:evaluate_binary",
        demo="manyhead.autoint.demo:demo",
        monitor="val/logloss",
        mode="min",
        commands=(
            Command("predict", "score raw rows of a CSV or Parquet file", "manyhead.autoint.predict:predict"),
            Command("explain", "field-interaction maps and permutation importance", "manyhead.autoint.explain:explain"),
            Command("import", "convert a TensorFlow checkpoint given as npz or safetensors", "manyhead.autoint.checkpoint:import_official"),
            Command("simulate", "write a synthetic click log with planted interactions", "manyhead.autoint.simulate:simulate"),
            Command("inspect", "report on fields, missing values and label of a table", "manyhead.autoint.inspect:inspect"),
            Command("split", "write a split file by row, group or time", "manyhead.autoint.split:split"),
            *CORE_COMMANDS,
        ),
    ),
    App(
        name="mvpformer",
        title="MVPFormer",
        summary="seizure detection in intracranial EEG (BIDS, EDF, BrainVision, SWEC, MATLAB, npz)",
        extra="ieeg",
        model="manyhead.mvpformer.model:MVPFormer",
        config="manyhead.mvpformer.model:MVPFormerConfig",
        task="manyhead.mvpformer.task:MVPFormerTask",
        data="manyhead.mvpformer.data:RecordingData",
        evaluate="manyhead.mvpformer.evaluate:evaluate",
        kind="manyhead.mvpformer.evaluate:KIND",
        demo="manyhead.mvpformer.demo:demo",
        monitor="val/score",
        mode="max",
        medical=True,
        commands=(
            Command("predict", "seizures, probabilities and pictures of recordings", "manyhead.mvpformer.predict:predict"),
            Command("score", "compare detected with annotated seizures, as SzCORE does", "manyhead.mvpformer.events.score:score"),
            Command("explain", "attention over channels and time before each detection", "manyhead.mvpformer.explain:explain"),
            Command("embed", "an embedding of every channel and segment of recordings", "manyhead.mvpformer.embed:embed"),
            Command("import", "convert a published checkpoint, with or without adapters", "manyhead.mvpformer.convert:import_official"),
            Command("adapters", "write adapters and head of a fine-tuning alone", "manyhead.mvpformer.convert:export_adapters"),
            Command("merge", "add adapters to the weights, for inference", "manyhead.mvpformer.convert:merge"),
            Command("simulate", "write recordings of simulated patients as BIDS or SWEC files", "manyhead.mvpformer.simulate.command:simulate"),
            Command("inspect", "report on recordings, channels, units and seizures", "manyhead.mvpformer.inspect:inspect"),
            Command("split", "write a split file by patient", "manyhead.mvpformer.split:split"),
            *CORE_COMMANDS,
        ),
    ),
)
# fmt: on


def apps() -> dict[str, App]:
    """All apps by name: the built-in ones and those of other distributions.

    Other distributions add a row through the entry-point group `manyhead.apps`; a built-in name
    wins over a foreign one.
    """
    rows = {row.name: row for row in APPS}
    for point in entry_points(group="manyhead.apps"):
        if point.name not in rows:
            rows[point.name] = point.load()
    return rows


def get(name: str) -> App:
    """The row of one app.

    Raises:
        UserError: There is no such app.
    """
    rows = apps()
    return rows[find(name, rows, "app")]
