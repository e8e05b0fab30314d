"""Attention with predicted connectivity."""

import torch
from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention import MapRequest
from manyhead_core.attention.mixers.sparsifiner import Sparsifiner


def replay(reference: Reference) -> None:
    header = reference.config
    mixer = Sparsifiner(
        header["dim"],
        header["num_heads"],
        num_tokens=header["num_tokens"],
        reduce_tokens=header["reduce_n_factor"],
        reduce_channels=header["reduce_c_factor"],
        keep_rate=header["attn_keep_rate"],
        basis_threshold=header["basis_threshold"],
        basis_topk=header["basis_coef_topk"],
        qkv_bias=header["qkv_bias"],
    )
    mixer.load_state_dict(reference.group("weights"))
    mixer.eval()
    inputs, outputs = reference.group("input"), reference.group("output")
    found = mixer(inputs["x"], maps=MapRequest())
    with torch.no_grad():
        approximate, allowed = mixer.mask_predictor.sparse(*mixer.project(inputs["x"])[:2])
    maps = {"attn": found.maps, "attn_mask": allowed, "approx_attn": approximate}
    reference.output("y", found.y.detach())
    for name in maps.keys() & outputs.keys():
        # Some maps have a row for the class token, some do not.
        reference.output(name, maps[name][:, :, -outputs[name].shape[2] :])
    if "target" in inputs:
        compare_loss(reference, mixer, (found.y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


MECHANISMS = {"sparsifiner": replay}
