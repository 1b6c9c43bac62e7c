"""Whole models, each a container with `init` and a function."""

from purenn.models.capsnet import CapsNet, CapsNetOutput, capsnet, decode
from purenn.models.capsnet_efficient import EfficientCapsNet, efficient_capsnet
from purenn.models.capsnet_matrix import MatrixCapsNet, matrix_capsnet
from purenn.models.dense_block import (
    DenseBlock,
    DenseLayer,
    Transition,
    dense_block,
    dense_layer,
    transition,
)
from purenn.models.densenet import DenseNet, densenet
from purenn.models.fpn import FPN, fpn
from purenn.models.gpt2 import GPT2, GPT2Model, gpt2, gpt2_model
from purenn.models.gpt2_block import (
    GPT2MLP,
    GPT2Attention,
    GPT2Block,
    TransposedLinear,
    gpt2_attention,
    gpt2_block,
    gpt2_mlp,
    transposed_linear,
)
from purenn.models.inception import Inception, NormalizedConv2d, inception, normalized_conv2d
from purenn.models.mlp import MLP, MLPBlock, mlp, mlp_block
from purenn.models.residual import (
    BasicBlock,
    Bottleneck,
    ScaledResidualBlock,
    basic_block,
    bottleneck,
    scaled_residual_block,
)
from purenn.models.resnet import ResNet, resnet, resnet_maps
from purenn.models.unet import (
    ConvBlock,
    DownBlock,
    UNet,
    UpBlock,
    conv_block,
    down_block,
    unet,
    up_block,
)
from purenn.models.vit import ViT, ViTBlock, ViTEncoder, vit, vit_block, vit_encoder

__all__ = [
    "FPN",
    "GPT2",
    "GPT2MLP",
    "MLP",
    "BasicBlock",
    "Bottleneck",
    "CapsNet",
    "CapsNetOutput",
    "ConvBlock",
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "DownBlock",
    "EfficientCapsNet",
    "GPT2Attention",
    "GPT2Block",
    "GPT2Model",
    "Inception",
    "MLPBlock",
    "MatrixCapsNet",
    "NormalizedConv2d",
    "ResNet",
    "ScaledResidualBlock",
    "Transition",
    "TransposedLinear",
    "UNet",
    "UpBlock",
    "ViT",
    "ViTBlock",
    "ViTEncoder",
    "basic_block",
    "bottleneck",
    "capsnet",
    "conv_block",
    "decode",
    "dense_block",
    "dense_layer",
    "densenet",
    "down_block",
    "efficient_capsnet",
    "fpn",
    "gpt2",
    "gpt2_attention",
    "gpt2_block",
    "gpt2_mlp",
    "gpt2_model",
    "inception",
    "matrix_capsnet",
    "mlp",
    "mlp_block",
    "normalized_conv2d",
    "resnet",
    "resnet_maps",
    "scaled_residual_block",
    "transition",
    "transposed_linear",
    "unet",
    "up_block",
    "vit",
    "vit_block",
    "vit_encoder",
]
