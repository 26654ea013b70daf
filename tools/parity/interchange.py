"""Shows that peft and diffusers load the adapters that we write, and compute our outputs with them.

    cargo run -p retouch-models --example write_adapter -- /tmp/adapter
    python tools/parity/interchange.py /tmp/adapter

The other way, their adapters in our hands, is what the peft_folder cases are for. With --base FOLDER, an adapter of a
run over that base (runs/NAME/adapters/HASH) is only loaded, and its layers and scales are told.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import (
    FluxKontextPipeline, FluxTransformer2DModel, QwenImageEditPlusPipeline, QwenImageTransformer2DModel,
)
from diffusers.utils import logging
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

CASES = pathlib.Path(__file__).parent / "cases"
TOLERANCE = 1e-4

BASES = {
    "flux": CASES / "kontext_pipeline__euler" / "pipeline",
    "qwen": CASES / "qwen_image_edit_pipeline__sequential_positions" / "pipeline",
}
"""The pipeline that each folder's adapter is for."""

CLASSES = {
    "FluxKontextPipeline": (FluxKontextPipeline, FluxTransformer2DModel),
    "QwenImageEditPlusPipeline": (QwenImageEditPlusPipeline, QwenImageTransformer2DModel),
}


def classes_of(base):
    return CLASSES[json.loads((base / "model_index.json").read_text())["_class_name"]]


def transformer_of(base):
    return classes_of(base)[1].from_pretrained(base / "transformer", torch_dtype=torch.float32)


def pipeline_of(base):
    return classes_of(base)[0].from_pretrained(base, torch_dtype=torch.float32)


def by_peft(folder, base):
    return PeftModel.from_pretrained(transformer_of(base), folder).eval()


def by_pipeline(folder, base):
    """As a user does: one call on the pipeline."""
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(folder)
    return pipeline.transformer


def by_pipeline_merged(folder, base):
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline.transformer


def by_transformer(folder, base):
    transformer = transformer_of(base)
    transformer.load_lora_adapter(folder, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    return transformer


# Fusing leaves no layers to count.
LOADERS = {
    "peft PeftModel.from_pretrained": by_peft,
    "diffusers load_lora_weights": by_pipeline,
    "diffusers load_lora_weights, fused": by_pipeline_merged,
    "diffusers load_lora_adapter": by_transformer,
}


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def inputs_of(tensors):
    inputs = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("in.")}
    if "img_shapes" in inputs:
        shapes = [tuple(shape) for shape in inputs["img_shapes"].tolist()]
        batch, text, _ = inputs["encoder_hidden_states"].shape
        inputs["img_shapes"] = [shapes] * batch
        inputs["encoder_hidden_states_mask"] = torch.ones(batch, text, dtype=torch.long)
    return inputs


@torch.no_grad()
def compare(folder, base):
    tensors = load_file(folder / "io.safetensors")
    inputs = inputs_of(tensors)
    failed = report("diffusers, no adapter", relative(tensors["out.base"], transformer_of(base)(**inputs).sample))
    moved = relative(tensors["out.base"], tensors["out.adapted"])
    print(f"the adapter moves the output by {moved:.2f} of its largest value")
    for name, load in LOADERS.items():
        sample = load(folder, base)(**inputs).sample
        failed |= report(name, relative(tensors["out.adapted"], sample))
    return failed or moved < 0.05


def report(name, error):
    print(f"{'ok  ' if error <= TOLERANCE else 'FAIL'} {name}: {error:.1e}")
    return error > TOLERANCE


def load_only(folder, base):
    for name, load in LOADERS.items():
        model = load(folder, base)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        scales = {scale for layer in layers for scale in layer.scaling.values()}
        print(f"{name}: {len(layers)} layers, scales {sorted(scales)}")


def compare_all(folder):
    failed = False
    for name, base in BASES.items():
        print(f"{name}: {base.parent.name}")
        failed |= compare(folder / name, base)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--base", type=pathlib.Path, help="only load, over this pipeline folder")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.base:
        load_only(arguments.folder, arguments.base)
    else:
        sys.exit(compare_all(arguments.folder))
