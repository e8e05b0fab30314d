"""MVPFormer against files of the published code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from comparison import Reference
from torch import Tensor, nn

from manyhead.mvpformer.checkpoint import from_official, official_names
from manyhead.mvpformer.lora import freeze_base
from manyhead.mvpformer.losses import contrastive_loss
from manyhead.mvpformer.wavelet import WaveletEncoder, wavelet_coefficients
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.mixers.mvpa import ParallelAttention
from manyhead_core.attention.multivariate.choice import HAS_TRITON

CASES = (
    "mvpa_layer", "wave_encoder", "generative", "classification", "import", "windows",
    "event_scoring",
)  # fmt: skip
LAYER = {
    "q_attn.weight": "q_proj.weight",
    "c_attn.weight": "kv_proj.weight",
    "position_net.weight": "step_proj.weight",
    "channel_net.weight": "channel_proj.weight",
    "c_proj.weight": "o_proj.weight",
}
FORMS = ("eager", "chunked", "flex")
# Triton's own setting: its kernels run as Python, without a GPU.
if HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1":
    FORMS += ("triton",)


def replay(reference: Reference) -> None:
    """Dispatch on the case."""
    case = reference.config["case"]
    if case == "windows":
        from mvpformer_windows import replay_windows

        replay_windows(reference)
    elif case == "event_scoring":
        from mvpformer_scoring import replay_scoring

        replay_scoring(reference)
    else:
        {
            "mvpa_layer": replay_layer,
            "wave_encoder": replay_encoder,
            "generative": replay_generative,
            "classification": replay_classification,
            "import": replay_import,
        }[case](reference)


def replay_layer(reference: Reference) -> None:
    """Attention alone: every form gives the output, those with a backward pass the gradients."""
    for form in FORMS:
        layer = attention(reference, form)
        x = reference.tensors["input/hidden_states"].clone().requires_grad_()
        rows = [
            reference.tensors[f"input/{kind}_embeddings"][0].clone().requires_grad_()
            for kind in ("position", "channel")
        ]
        learns = form != "flex"
        with torch.set_grad_enabled(learns):
            grid = (x.shape[1], x.shape[2])
            found = layer(x.flatten(1, 2), grid=grid, positions=(rows[0], rows[1])).y
        reference.output("attention", found.view(x.shape))
        if learns:
            found.view(x.shape).backward(reference.tensors["input/grad_output"])
            compare_layer(reference, layer, x, rows)
        if "attention_probs" in reference.group("output"):
            maps = MapRequest(dtype=torch.float32)
            positions = (rows[0].detach(), rows[1].detach())
            with torch.no_grad():
                given = layer(x.flatten(1, 2), grid=grid, positions=positions, maps=maps)
            reference.output("attention_probs", given.maps)
    reference.assert_complete("output", "grad", "grad_input")


def attention(reference: Reference, form: str) -> ParallelAttention:
    """The layer of a file."""
    config, weights = reference.config, reference.group("weights")
    layer = ParallelAttention(
        config["n_embd"],
        config["n_head"],
        num_key_heads=config["n_head_kv"],
        window=config["window"],
        content=config["global_att"],
        own_positions=False,
        form=form,
    )
    state = {ours: weights[theirs] for theirs, ours in LAYER.items()}
    layer.load_state_dict(state | {"biases": weights["attn_bias"].view(layer.biases.shape)})
    return layer.eval()


def compare_layer(
    reference: Reference, layer: ParallelAttention, x: Tensor, rows: list[Tensor]
) -> None:
    """Gradients of weights and inputs."""
    for theirs, ours in LAYER.items():
        reference.gradient(theirs, layer.get_parameter(ours).grad)
    reference.gradient("attn_bias", layer.biases.grad.flatten())
    reference.gradient("hidden_states", x.grad, "grad_input")
    reference.gradient("position_embeddings", rows[0].grad[None], "grad_input")
    reference.gradient("channel_embeddings", rows[1].grad[None], "grad_input")


def replay_encoder(reference: Reference) -> None:
    """Coefficients, norm and token of segments, one in volts and one flat."""
    config = reference.config
    encoder = WaveletEncoder(config["size_input"], config["size_output"])
    weights = reference.group("weights")
    encoder.load_state_dict(
        {"norm.weight": weights["ln.weight"], "proj.weight": weights["proj.weight"]}
    )
    assert list(encoder.bands) == config["band_lengths_cA_then_coarse_to_fine"]
    segments = reference.tensors["input/segments"]
    coefficients = wavelet_coefficients(segments)
    reference.output("dwt", coefficients)
    reference.output("normed", encoder.norm(coefficients))
    found = encoder(segments)
    reference.output("embedding", found)
    found.backward(reference.tensors["input/grad_output"])
    reference.gradient("ln.weight", encoder.norm.weight.grad)
    reference.gradient("proj.weight", encoder.proj.weight.grad)
    reference.assert_complete("output", "grad")


def replay_generative(reference: Reference) -> None:
    """Pre-training: all outputs, the loss and gradients."""
    model = network(reference)
    found = model(reference.tensors["input/x"])
    reference.output("encoder_embedding", found.tokens)
    reference.output("last_hidden_state", found.hidden)
    reference.output("prediction", found.prediction)
    contrast = contrastive_loss(
        found.prediction,
        found.tokens,
        reference.tensors["input/negative_index"],
        reference.config["temp"],
    )
    reference.output("logits", contrast.logits)
    reference.output("loss", contrast.loss[None])
    reference.output("accuracy", contrast.accuracy[None])
    contrast.loss.backward()
    compare_gradients(reference, model)
    reference.assert_complete("output", "grad")


def replay_classification(reference: Reference) -> None:
    """Adapters not merged, with frozen parts; merged they give the same logits."""
    model = network(reference)
    learning = set(freeze_base(model))
    ours = {theirs for theirs, name in official_names(model).items() if name in learning}
    assert ours == set(reference.config["trainable"])
    x = reference.tensors["input/x"]
    found = model(x)
    reference.output("last_hidden_state", found.hidden)
    reference.output("pooled", found.pooled)
    reference.output("logits", found.logits)
    label = reference.tensors["input/label"].flatten().long()
    weight = torch.tensor(reference.config["class_weight"])
    loss = nn.functional.cross_entropy(found.logits, label, weight=weight)
    reference.output("loss", loss[None])
    loss.backward()
    compare_gradients(reference, model)
    reference.output("logits", model.merged().eval()(x).logits)
    reference.assert_complete("output", "grad")


def replay_import(reference: Reference) -> None:
    """Files of the released kind; the expected outputs need all files of the group."""
    config = reference.config
    if config["role"] != "expected":
        siblings(reference)
        return
    files = siblings(reference)
    head_dim = config["n_embd"] // config["n_head"]
    x = reference.tensors["input/x"]
    base, _ = from_official(files["base"], head_dim=head_dim)
    reference.output("prediction_base", base(x).prediction)
    for role in ("adapter_v", "adapter_kv"):
        model, _ = from_official(
            files["base"], files[role], head_dim=head_dim, lora_alpha=config["lora_alpha"]
        )
        reference.output(f"logits_{role}", model(x).logits)
        reference.output(f"logits_{role}", model.merged()(x).logits)
    reference.assert_complete("output")


def siblings(reference: Reference) -> dict[str, dict[str, Tensor]]:
    """Tensors of the files of one group, by role; each is of a kind that the importer knows."""
    found = {}
    for path in sorted(Path(reference.path).parent.glob("import_*.safetensors")):
        other = Reference(path)
        if other.config.get("group") == reference.config["group"]:
            found[other.config["role"]] = other.tensors
    assert {"base", "adapter_v", "adapter_kv"} <= found.keys()
    return found


def network(reference: Reference) -> Any:
    """The model of a file, dropout off."""
    config = reference.config
    model, found = from_official(
        reference.group("weights"), head_dim=config["n_embd"] // config["n_head"]
    )
    assert not found.unknown
    return model


def compare_gradients(reference: Reference, model: Any) -> None:
    """Gradients by official name."""
    names = official_names(model)
    for name in reference.group("grad"):
        found = model.get_parameter(names[name]).grad
        reference.gradient(name, found.flatten() if name.endswith("attn_bias") else found)
