"""One row per case: plain strings, so that `--list` imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Args:
        name: What the user types; the results file begins with it.
        summary: One line for `--list`.
        devices: Where it makes sense.
    """

    name: str
    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def function(self) -> str:
        """Dotted path of the function that takes a `Setting` and gives an `Outcome`."""
        return f"benchmarks.cases.{self.name}:run"


CASES = (
    Case("acmil_features", "feature files of one-row chunks against converted ones", ("cpu",)),
    Case("attention", "attend: automatic choice, eager and SDPA, with and without maps"),
    Case("attention_pool", "pool: bags of different lengths, packed, padded and in a loop"),
    Case("attention_sparse", "sparse mixers: from which length they beat full attention", ("cpu",)),
    Case("attention_length", "every mixer: time and memory over the number of tokens", ("cpu",)),
    Case("attention_cab", "every mixer on one small task for each attention pattern", ("cpu",)),
    Case("attention_mvpa", "parallel attention over steps and channels: each form against eager"),
    Case("autoint_model", "AutoInt: kernels, compilation, optimisers and inference"),
    Case("autoint_loader", "batches from an encoded store against a per-row DataLoader"),
    Case("autoint_parquet", "encoded Parquet on one core against pandas", ("cpu",)),
    Case("autoint_training", "training fed by the loader against batches held in memory"),
    Case("autoint_heap", "training on a CPU with freed memory kept by the process", ("cpu",)),
    Case("autoint_memory", "peak memory of training on a large encoded Parquet file", ("cpu",)),
    Case("acmil_bags", "ACMIL: a packed batch of bags against a loop over bags"),
    Case("acmil_heads", "ACMIL: multi-head attention folded and written out"),
    Case("acmil_memory", "peak memory of training on one very large slide", ("cpu",)),
    Case("mvpformer_stream", "MVPFormer: tokens kept from window to window or computed anew"),
    Case("mvpformer_memory", "peak memory of predict on recordings of minutes and hours", ("cpu",)),
    Case("mvpformer_training", "training fed by the loader of windows against staged batches"),
)
