"""Shows that peft and diffusers load the adapters that we write, and compute our outputs with them.

    cargo run -p retouch-models --example write_adapter -- /tmp/adapter
    python tools/parity/interchange.py /tmp/adapter

The other way, their adapters in our hands, is what the peft_folder cases are for. With --base FOLDER, an adapter of a
run over that base (runs/NAME/adapters/HASH) is only loaded, and its layers and scales are told.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.utils import logging
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

PIPELINE = pathlib.Path(__file__).parent / "cases" / "kontext_pipeline__euler" / "pipeline"
TOLERANCE = 1e-4


def by_peft(folder, base):
    transformer = FluxTransformer2DModel.from_pretrained(base / "transformer", torch_dtype=torch.float32)
    return PeftModel.from_pretrained(transformer, folder).eval()


def by_pipeline(folder, base):
    """As a user does: one call on the pipeline."""
    pipeline = FluxKontextPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.load_lora_weights(folder)
    return pipeline.transformer


def by_pipeline_merged(folder, base):
    pipeline = FluxKontextPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline.transformer


def by_transformer(folder, base):
    transformer = FluxTransformer2DModel.from_pretrained(base / "transformer", torch_dtype=torch.float32)
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


@torch.no_grad()
def compare(folder):
    tensors = load_file(folder / "io.safetensors")
    inputs = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("in.")}
    base = FluxTransformer2DModel.from_pretrained(PIPELINE / "transformer", torch_dtype=torch.float32)
    failed = report("diffusers, no adapter", relative(tensors["out.base"], base(**inputs).sample))
    moved = relative(tensors["out.base"], tensors["out.adapted"])
    print(f"the adapter moves the output by {moved:.2f} of its largest value")
    for name, load in LOADERS.items():
        sample = load(folder, PIPELINE)(**inputs).sample
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
        sys.exit(compare(arguments.folder))
