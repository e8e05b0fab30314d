"""The command `embed`: an embedding of every channel and segment of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.claim import Finished, claim
from manyhead.mvpformer.detector import Detector, Recordings, setup_of
from manyhead.mvpformer.predict import Found, Recorded
from manyhead.mvpformer.preparing import Prepared
from manyhead.mvpformer.preparing.options import Montage
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.windows import Windows
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.data.batch import Outcome
from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import replace
from manyhead_core.training.results import RESEARCH_ONLY

FileType = Literal["h5", "npz"]
Pool = Literal["none", "channels"]
# An .npz is put together in memory.
LARGEST_NPZ = 4 * 2**30


def embed(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    pool: Pool = "none",
    file: FileType = "h5",
    recording: list[str] | None = None,
    format: str = "auto",
    units: str = "auto",
    channels: str | None = None,
    montage: Montage | None = None,
    notch: float | None = None,
    band: tuple[float, float] | None = None,
    device: str = "cpu",
    batch_windows: int = 8,
    overwrite: bool = False,
    strict: bool = False,
) -> int:
    """Write the embeddings of recordings, one file each: what the trunk says of every step.

    A step is the newest segment of a window, seen with the segments before it. Each file holds
    `embedding`, float32 (steps, channels, dim) or pooled (steps, dim), `start` and `stop` of the
    steps in s, and `channels`. Any weights will do, those of pre-training too.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: Recording, or folder of recordings.
        out: Folder of the results, new or of the same weights and options.
        pool: `none` keeps the channels, `channels` takes their mean.
        file: `h5` is written as it is computed; `npz` is put together in memory.
        recording: Ids of the recordings to embed; default: all.
        format: How the recordings lie on disk; `auto` finds it.
        units: Unit of the stored numbers: `auto`, `V`, `mV`, `uV` or `nV`.
        channels: Channels by name with commas in between, or a rule; default: as in the training.
        montage: Reference; default: as in the training.
        notch: Mains frequency to take out, Hz; default: as in the training.
        band: Lowest and highest frequency to keep, Hz; default: as in the training.
        device: `cpu`, `cuda` or `cuda:1`.
        batch_windows: Windows that the network is given at a time.
        overwrite: Replace results of other weights or options in the folder.
        strict: Exit with code 2 when one recording failed.
    """
    given = {"channels": channels, "montage": montage, "notch": notch, "band": band}
    detector = Detector.load(app, weights, device).changed(**given)
    options = detector.preprocessor.windows
    stream = Stream(net=detector.net, options=options, batch_windows=batch_windows)
    read = ReadOptions(units=units)  # type: ignore[arg-type]  # checked there
    found = Recordings.find(input, format, read, detector.preprocessor.prepare, recording or ())
    setup = setup_of(detector, found) | {"pool": pool, "file": file}
    finished = Finished(out, claim(out, "embed", setup, overwrite=overwrite), found.digest)
    if overwrite:
        finished.forget(found.sources)
    work = Embed(finished, detector, found, stream, pool, file)
    batch = Recorded(work, out, "embedding recordings", work.done)
    code = batch.run({name: name for name in found.sources}, strict=strict)
    console.result(RESEARCH_ONLY)
    return code


@dataclass(frozen=True)
class Embed:
    """Embeds one recording after the other.

    Args:
        finished: Recordings that are done.
        detector: Network.
        recordings: Where they come from.
        stream: Looks at the windows.
        pool: Whether channels are averaged.
        file: Kind of file.
    """

    finished: Finished
    detector: Detector
    recordings: Recordings
    stream: Stream
    pool: Pool = "none"
    file: FileType = "h5"

    def __call__(self, name: str) -> Outcome:
        """Work on a recording.

        Args:
            name: Its id.
        """
        self.finished.need_same(name)
        with self.recordings.opened(name) as prepared:
            warnings = self.detector.warnings(prepared)
            self.recordings.tell(prepared, warnings)
            windows = self.stream.windows(prepared)
            write = self._h5 if self.file == "h5" else self._npz
            replace(self.path(name), lambda path: write(path, prepared, windows))
            about = {"warnings": warnings, "preparing": prepared.manifest()}
            self.finished.write(name, about)
            return Found("ok", len(windows))

    def path(self, name: str) -> Path:
        """File of a recording.

        Args:
            name: Its id.
        """
        return self.finished.out / f"{name}.{self.file}"

    def done(self, name: str) -> bool:
        """Whether an earlier start with the same set-up has finished a recording."""
        return bool(self.finished.about(name)) and self.path(name).is_file()

    def parts(self, prepared: Prepared, windows: Windows) -> Iterator[npt.NDArray[np.float32]]:
        """Embeddings of the next steps, `(next steps, channels, dim)` or `(next steps, dim)`.

        Args:
            prepared: The recording.
            windows: All of its windows.
        """
        for output in self.stream.look(prepared, windows):
            newest = output.hidden[:, -1].float()
            yield (newest.mean(1) if self.pool == "channels" else newest).cpu().numpy()

    def _h5(self, path: Path, prepared: Prepared, windows: Windows) -> None:
        with h5py.File(path, "w") as target:
            done = 0
            for part in self.parts(prepared, windows):
                if not done:
                    shape = (len(windows), *part.shape[1:])
                    data = target.create_dataset(
                        "embedding", shape, "f4", chunks=(1, *part.shape[1:])
                    )
                data[done : done + len(part)] = part
                done += len(part)
            for field, value in self._more(prepared, windows).items():
                target[field] = value if field != "channels" else [str(v) for v in value]
            target.attrs["weights_sha256"] = self.detector.digest
            target.attrs["note"] = RESEARCH_ONLY

    def _npz(self, path: Path, prepared: Prepared, windows: Windows) -> None:
        parts = []
        for part in self.parts(prepared, windows):
            size = part[0].nbytes * len(windows)
            if size > LARGEST_NPZ:
                raise DataError(
                    f"{prepared.info.id}: its embeddings take {size / 2**30:.0f} GiB; use "
                    "--file h5, or --pool channels"
                )
            parts.append(part)
        more = self._more(prepared, windows)
        with path.open("wb") as target:
            np.savez(target, embedding=np.concatenate(parts), **more)

    def _more(self, prepared: Prepared, windows: Windows) -> dict[str, Any]:
        return {
            "start": windows.step_start,
            "stop": windows.step_stop,
            "channels": np.array(prepared.channels),
        }
