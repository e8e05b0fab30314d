import onnxscript_that_nobody_has  # noqa: F401


def run() -> None:
    """Never gets here."""
