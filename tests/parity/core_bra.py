"""Bi-level routing attention."""

from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.mixers.bra import BiLevelRoutingAttention


def replay(reference: Reference) -> None:
    header = reference.config
    mixer = build(header)
    mixer.load_state_dict(reference.group("weights"))
    mixer.eval()
    inputs = reference.group("input")
    channels = 1 if header.get("layout") == "NCHW" else -1
    tokens = inputs["x"].movedim(channels, -1).flatten(1, 2)
    grid = (header["height"], header["width"])
    y = mixer(tokens, grid=grid).y.unflatten(1, grid).movedim(-1, channels)
    reference.output("y", y.detach())
    wanted = reference.group("output")
    if "route_index" in wanted or "route_weight" in wanted:
        routing = mixer.routing(tokens, grid)
        for name, ours in (("route_index", routing.regions), ("route_weight", routing.weight)):
            if name in wanted:
                reference.output(name, ours.detach())
    if "target" in inputs:
        compare_loss(reference, mixer, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


def build(header: dict) -> BiLevelRoutingAttention:
    soft = header.get("soft_routing", False)
    pooling = header.get("kv_downsample_mode") or "identity"
    size = header.get("kv_per_win" if pooling == "ada_avgpool" else "kv_downsample_ratio")
    return BiLevelRoutingAttention(
        header["dim"],
        header["num_heads"],
        num_windows=header["n_win"],
        topk=header["topk"],
        qk_dim=header.get("qk_dim"),
        lepe_kernel=header["lepe_kernel"],
        kv_downsample=pooling,
        # Files of pooled keys name the factor like the size of adaptive pooling, or by itself.
        kv_size=size or header.get("kv_per_win") or 1,
        auto_pad=header.get("auto_pad", False),
        mask_padding=header.get("mask_padding", False),
        soft_routing=soft,
        routing_gradient=soft and header.get("diff_routing", False),
    )


MECHANISMS = {"bi_level_routing": replay}
