"""What torchvision, timm and others publish of the zoo's networks: names of parameters, some shapes, multiply-adds.

Written down from their module trees, without their code. Names are in the shell's braces: `{a,b}` and `{1..3}` stand
for each of their parts. `@` stands for the five tensors of a batch norm, `%` for weight and bias.
"""

from __future__ import annotations

from typing import NamedTuple

_BN = "{weight,bias,running_mean,running_var,num_batches_tracked}"
_CONV_BN = "{conv.weight,bn.@}"
# torchvision's Conv2dNormActivation, and its squeeze-and-excitation as part 1 or 2 of a block
_C = "{0.weight,1.@}"
_SE = "fc{1,2}.%"
_RESNET = "conv1.weight bn1.@ fc.% layer{2..4}.0.downsample.{0.weight,1.@} "
_BASIC = "{conv{1,2}.weight,bn{1,2}.@}"
_BOTTLENECK = "{conv{1,2,3}.weight,bn{1,2,3}.@}"
_50 = (
    f"{_RESNET} layer1.0.downsample.{{0.weight,1.@}} layer{{1.{{0..2}},2.{{0..3}},3.{{0..5}},4.{{0..2}}}}.{_BOTTLENECK}"
)
_FIRE = "{squeeze,expand1x1,expand3x3}.%"
_GOOGLENET = (
    f"conv{{1..3}}.{_CONV_BN} fc.% "
    f"inception{{3a,3b,4a,4b,4c,4d,4e,5a,5b}}.{{branch1,branch{{2,3}}.{{0,1}},branch4.1}}.{_CONV_BN}"
)
_A = "{branch1x1,branch5x5_{1,2},branch3x3dbl_{1..3},branch_pool}"
_B = "{branch3x3,branch3x3dbl_{1..3}}"
_IC = "{branch1x1,branch7x7_{1..3},branch7x7dbl_{1..5},branch_pool}"
_D = "{branch3x3_{1,2},branch7x7x3_{1..4}}"
_E = "{branch1x1,branch3x3_{1,2a,2b},branch3x3dbl_{1,2,3a,3b},branch_pool}"
_VIT_BLOCK = "{norm{1,2},attn.{qkv,proj},mlp.fc{1,2}}.%"


class Published(NamedTuple):
    """names: of the state dict, in braces. shapes: of some. macs: multiply-adds of one image in thousand millions."""

    names: str
    shapes: dict[str, tuple[int, ...]]
    macs: float | None = None


def _vgg(convolutions: str, norms: str | None, macs: float) -> Published:
    bn = f" features.{{{norms}}}.@" if norms else ""
    names = f"features.{{{convolutions}}}.%{bn} classifier.{{0,3,6}}.%"
    return Published(names, {"classifier.0.weight": (4096, 25088), "features.0.weight": (64, 3, 3, 3)}, macs)


PUBLISHED: dict[str, Published] = {
    "alexnet": Published(
        "features.{0,3,6,8,10}.% classifier.{1,4,6}.%",
        {"features.0.weight": (64, 3, 11, 11), "classifier.1.weight": (4096, 9216)},
        0.714,
    ),
    "vgg11": _vgg("0,3,6,8,11,13,16,18", None, 7.609),
    "vgg11_bn": _vgg("0,4,8,11,15,18,22,25", "1,5,9,12,16,19,23,26", 7.609),
    "vgg13": _vgg("0,2,5,7,10,12,15,17,20,22", None, 11.308),
    "vgg13_bn": _vgg("0,3,7,10,14,17,21,24,28,31", "1,4,8,11,15,18,22,25,29,32", 11.308),
    "vgg16": _vgg("0,2,5,7,10,12,14,17,19,21,24,26,28", None, 15.470),
    "vgg16_bn": _vgg("0,3,7,10,14,17,20,24,27,30,34,37,40", "1,4,8,11,15,18,21,25,28,31,35,38,41", 15.470),
    "vgg19": _vgg("0,2,5,7,10,12,14,16,19,21,23,25,28,30,32,34", None, 19.632),
    "vgg19_bn": _vgg(
        "0,3,7,10,14,17,20,23,27,30,33,36,40,43,46,49", "1,4,8,11,15,18,21,24,28,31,34,37,41,44,47,50", 19.632
    ),
    "googlenet": Published(
        _GOOGLENET,
        {"inception4d.branch2.1.conv.weight": (288, 144, 3, 3), "inception5b.branch3.1.conv.weight": (128, 48, 3, 3)},
        1.498,
    ),
    "inception_v3": Published(
        f"Conv2d_{{1a_3x3,2a_3x3,2b_3x3,3b_1x1,4a_3x3}}.{_CONV_BN} Mixed_{{5b,5c,5d}}.{_A}.{_CONV_BN} "
        f"Mixed_6a.{_B}.{_CONV_BN} Mixed_{{6b,6c,6d,6e}}.{_IC}.{_CONV_BN} Mixed_7a.{_D}.{_CONV_BN} "
        f"Mixed_{{7b,7c}}.{_E}.{_CONV_BN} AuxLogits.{{conv{{0,1}}.{_CONV_BN},fc.%}} fc.%",
        {
            "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
            "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
            "AuxLogits.conv1.conv.weight": (768, 128, 5, 5),
        },
        5.713,
    ),
    "resnet18": Published(
        f"{_RESNET} layer{{1..4}}.{{0,1}}.{_BASIC}", {"layer2.0.downsample.0.weight": (128, 64, 1, 1)}, 1.814
    ),
    "resnet34": Published(
        f"{_RESNET} layer{{1.{{0..2}},2.{{0..3}},3.{{0..5}},4.{{0..2}}}}.{_BASIC}", {"fc.weight": (1000, 512)}, 3.664
    ),
    "resnet50": Published(_50, {"layer3.0.conv2.weight": (256, 256, 3, 3), "fc.weight": (1000, 2048)}, 4.089),
    "resnet101": Published(
        f"{_RESNET} layer1.0.downsample.{{0.weight,1.@}} "
        f"layer{{1.{{0..2}},2.{{0..3}},3.{{0..22}},4.{{0..2}}}}.{_BOTTLENECK}",
        {"layer3.22.conv3.weight": (1024, 256, 1, 1)},
        7.801,
    ),
    "resnet152": Published(
        f"{_RESNET} layer1.0.downsample.{{0.weight,1.@}} "
        f"layer{{1.{{0..2}},2.{{0..7}},3.{{0..35}},4.{{0..2}}}}.{_BOTTLENECK}",
        {"layer3.35.conv3.weight": (1024, 256, 1, 1)},
        11.514,
    ),
    "resnext50_32x4d": Published(_50, {"layer1.0.conv2.weight": (128, 4, 3, 3)}, 4.230),
    "wide_resnet50_2": Published(_50, {"layer1.0.conv2.weight": (128, 128, 3, 3)}, 11.398),
    "mobilenet_v1": Published(
        "conv_stem.weight bn1.@ classifier.% blocks.{0.0,1.{0,1},2.{0,1},3.{0..5},4.{0,1}}."
        "{conv_dw.weight,bn1.@,conv_pw.weight,bn2.@}",
        {"blocks.1.0.conv_dw.weight": (64, 1, 3, 3), "blocks.4.0.conv_pw.weight": (1024, 512, 1, 1)},
        0.569,  # table 4 of the paper
    ),
    "mobilenet_v2": Published(
        f"features.{{0,18}}.{_C} features.1.conv.{{0.{_C},1.weight,2.@}} "
        f"features.{{2..17}}.conv.{{{{0,1}}.{_C},2.weight,3.@}} classifier.1.%",
        {"features.2.conv.0.0.weight": (96, 16, 1, 1), "features.17.conv.2.weight": (320, 960, 1, 1)},
        0.301,
    ),
    "mobilenet_v3_large": Published(
        f"features.{{0,16}}.{_C} features.1.block.{{0,1}}.{_C} features.{{2,3,7,8,9,10}}.block.{{0..2}}.{_C} "
        f"features.{{4,5,6,11,12,13,14,15}}.block.{{{{0,1,3}}.{_C},2.{_SE}}} classifier.{{0,3}}.%",
        {"features.4.block.2.fc1.weight": (24, 72, 1, 1), "features.13.block.1.0.weight": (672, 1, 5, 5)},
        0.217,
    ),
    "mobilenet_v3_small": Published(
        f"features.{{0,12}}.{_C} features.1.block.{{{{0,2}}.{_C},1.{_SE}}} features.{{2,3}}.block.{{0..2}}.{_C} "
        f"features.{{4..11}}.block.{{{{0,1,3}}.{_C},2.{_SE}}} classifier.{{0,3}}.%",
        {"features.1.block.1.fc1.weight": (8, 16, 1, 1), "classifier.0.weight": (1024, 576)},
        0.057,
    ),
    "squeezenet1_0": Published(
        f"features.0.% features.{{3,4,5,7,8,9,10,12}}.{_FIRE} classifier.1.%",
        {"features.0.weight": (96, 3, 7, 7), "features.12.expand3x3.weight": (256, 64, 3, 3)},
        0.819,
    ),
    "squeezenet1_1": Published(
        f"features.0.% features.{{3,4,6,7,9,10,11,12}}.{_FIRE} classifier.1.%",
        {"features.0.weight": (64, 3, 3, 3), "features.9.squeeze.weight": (48, 256, 1, 1)},
        0.349,
    ),
    "densenet121": Published(
        "features.{conv0.weight,norm0.@,norm5.@,transition{1..3}.{norm.@,conv.weight}} classifier.% "
        "features.denseblock{1.denselayer{1..6},2.denselayer{1..12},3.denselayer{1..24},4.denselayer{1..16}}."
        "{norm{1,2}.@,conv{1,2}.weight}",
        {"features.denseblock4.denselayer16.conv1.weight": (128, 992, 1, 1)},
        2.834,
    ),
    "efficientnet_b0": Published(
        f"features.{{0,8}}.{_C} features.1.0.block.{{{{0,2}}.{_C},1.{_SE}}} "
        f"features.{{2.{{0,1}},3.{{0,1}},4.{{0..2}},5.{{0..2}},6.{{0..3}},7.0}}.block.{{{{0,1,3}}.{_C},2.{_SE}}} "
        "classifier.1.%",
        {"features.2.0.block.2.fc1.weight": (4, 96, 1, 1), "features.6.3.block.1.0.weight": (1152, 1, 5, 5)},
        0.386,
    ),
    "efficientnet_lite0": Published(
        "conv_stem.weight bn1.@ conv_head.weight bn2.@ classifier.% "
        "blocks.0.0.{conv_dw.weight,bn1.@,conv_pw.weight,bn2.@} "
        "blocks.{1.{0,1},2.{0,1},3.{0..2},4.{0..2},5.{0..3},6.0}.{conv_{pw,dw,pwl}.weight,bn{1..3}.@}",
        {"blocks.5.0.conv_dw.weight": (672, 1, 5, 5), "conv_head.weight": (1280, 320, 1, 1)},
    ),
    "convnext_tiny": Published(
        "features.0.{0,1}.% features.{2,4,6}.{0,1}.% classifier.{0,2}.% "
        "features.{1.{0..2},3.{0..2},5.{0..8},7.{0..2}}.{layer_scale,block.{0,2,3,5}.%}",
        {"features.5.8.layer_scale": (384, 1, 1), "features.2.1.weight": (192, 96, 2, 2)},
        4.456,
    ),
    "vit_tiny": Published(
        f"cls_token pos_embed patch_embed.proj.% blocks.{{0..11}}.{_VIT_BLOCK} norm.% head.%",
        {
            "pos_embed": (1, 197, 192),
            "blocks.11.attn.qkv.weight": (576, 192),
            "patch_embed.proj.weight": (192, 3, 16, 16),
        },
    ),
    "dcgan_generator": Published("main.{0,3,6,9,12}.weight main.{1,4,7,10}.@", {"main.0.weight": (100, 512, 4, 4)}),
    "dcgan_discriminator": Published("main.{0,2,5,8,11}.weight main.{3,6,9}.@", {"main.11.weight": (1, 512, 4, 4)}),
    "crnn": Published(
        "cnn.conv{0..6}.% cnn.batchnorm{2,4,6}.@ rnn.{0,1}.embedding.% "
        "rnn.{0,1}.rnn.{weight,bias}_{ih,hh}_l0{,_reverse}",
        {"cnn.conv6.weight": (512, 512, 2, 2), "rnn.1.rnn.weight_ih_l0_reverse": (1024, 256)},
    ),
}

# With the auxiliary classifiers that its weight file has.
GOOGLENET_WITH_AUX = f"{_GOOGLENET} aux{{1,2}}.{{conv.{_CONV_BN},fc{{1,2}}.%}}"


def names(text: str) -> list[str]:
    """Every name that a text with braces stands for."""
    full = text.replace("%", "{weight,bias}").replace("@", _BN)
    return [name for word in full.split() for name in _expand(word)]


def _expand(text: str) -> list[str]:
    start = text.find("{")
    if start < 0:
        return [text]
    depth, parts, begin = 0, [], start + 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0 or (depth == 1 and text[at] == ","):
            parts.append(text[begin:at])
            begin = at + 1
        if depth == 0:
            break
    else:
        raise ValueError(f"a brace is not closed: {text}")
    low, dots, high = parts[0].partition("..")
    if len(parts) == 1 and dots and low.isdigit() and high.isdigit():
        parts = [str(number) for number in range(int(low), int(high) + 1)]
    inner = [name for part in parts for name in _expand(part)]
    return [text[:start] + name + rest for name in inner for rest in _expand(text[begin:])]
