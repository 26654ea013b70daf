"""A folder of a model of published size with weights of no use: for launches, memory and time, not for pictures.

    python3 model_folder.py flux FOLDER [--random] [--parts transformer,vae]
    python3 model_folder.py qwen FOLDER --like QWEN_FOLDER
    python3 model_folder.py judge-7b FOLDER

Shapes are those of `tools/parity/tables`, in bf16; tokenizers and the like come from a small model of the same kind (one of
assets/tiny, for Qwen-Image-Edit one of `make-qwen-editor`). Weights are zeros in sparse files, which take no
disk; --random writes values of the right scale (24 GB for FLUX), as products of zeros are faster than others.
"""

import argparse
import json
import math
import os
import re
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
TABLES = os.path.join(HERE, "../parity/tables")
TINY = os.path.join(HERE, "../../assets/tiny")

# Folder of the part: table of its shapes, file of its weights.
FLUX = {
    "transformer": ("flux1-kontext-dev_transformer", "diffusion_pytorch_model.safetensors"),
    "vae": ("flux1-kontext-dev_vae", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("flux1-kontext-dev_text_encoder", "model.safetensors"),
    "text_encoder_2": ("flux1-kontext-dev_text_encoder_2", "model.safetensors"),
}
QWEN = {
    "transformer": ("qwen-image-edit-2509_transformer", "diffusion_pytorch_model.safetensors"),
    "vae": ("qwen-image-edit-2509_vae", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("qwen2.5-vl-7b-instruct", "model.safetensors"),
}
# What a kind of folder has, and the small model that it is like.
KINDS = {
    "flux": (FLUX, os.path.join(TINY, "editor")),
    "qwen": (QWEN, None),
    "judge-7b": ({".": ("qwen2.5-vl-7b-instruct", "model.safetensors")}, os.path.join(TINY, "judge")),
    "judge-32b": ({".": ("qwen2.5-vl-32b-instruct", "model.safetensors")}, os.path.join(TINY, "judge")),
}
# The published schedule of FLUX.1-Kontext-dev; the small editor has its own.
FLUX_SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
# Lists of layers, and what configurations call their lengths.
LAYERS = {
    "transformer_blocks.": "num_layers",
    "single_transformer_blocks.": "num_single_layers",
    "encoder.block.": "num_layers",
    "text_model.encoder.layers.": "num_hidden_layers",
    "model.layers.": "num_hidden_layers",
}
# Random values repeat after this many.
PERIOD = 1 << 22


def unfold(name, shape, layers):
    """`blocks.{0..2}.weight` stands for three tensors, or for as many as there are layers."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not found:
        yield name, shape
        return
    last = int(found[2])
    if layers and name[: found.start()] in LAYERS:
        last = min(last, layers - 1)
    for index in range(int(found[1]), last + 1):
        yield from unfold(name[: found.start()] + str(index) + name[found.end() :], shape, layers)


class Random:
    """bf16 values of either sign and uniform mantissa, in one octave: made once for each exponent."""

    def __init__(self):
        self.low, self.high = os.urandom(PERIOD), os.urandom(PERIOD)
        self.blocks = {}

    def block(self, exponent):
        if exponent not in self.blocks:
            biased = exponent + 127
            both = bytearray(2 * PERIOD)
            both[0::2] = self.low.translate(bytes((biased & 1) << 7 | byte & 127 for byte in range(256)))
            both[1::2] = self.high.translate(bytes(byte & 128 | biased >> 1 for byte in range(256)))
            self.blocks[exponent] = memoryview(bytes(both))
        return self.blocks[exponent]

    def write(self, out, number, name, shape):
        left = 2 * math.prod(shape)
        if len(shape) == 1 and "norm" in name and name.endswith("weight"):
            out.write(b"\x80\x3f" * (left // 2))
            return
        # Products keep the variance of what they are given: uniform in an octave around 1 / sqrt(fan in).
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4 * shape[0]
        block = self.block(round(math.log2(1 / math.sqrt(3 * fan_in)) - 0.5))
        # Tensors begin at different places, so that no two are alike.
        start = 2 * 7919 * number % len(block)
        while left:
            left -= out.write(block[start : start + left])
            start = 0


def write_weights(path, tensors, random):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as out:
        out.write(struct.pack("<Q", len(text)) + text)
        if random:
            for number, (name, shape) in enumerate(tensors):
                random.write(out, number, name, shape)
        else:
            out.truncate(8 + len(text) + offset)
    return offset


def write_processor(folder, vision):
    """The small model's, for the patches that this vision tower takes, and with Qwen2-VL's limits of pixels."""
    path = os.path.join(folder, "preprocessor_config.json")
    with open(path) as source:
        config = json.load(source)
    config |= {"patch_size": vision["patch_size"], "temporal_patch_size": vision["temporal_patch_size"]}
    config |= {"merge_size": vision["spatial_merge_size"], "min_pixels": 3136, "max_pixels": 12845056}
    with open(path, "w") as out:
        json.dump(config, out)


def small_config(like, part):
    with open(os.path.join(like, part, "config.json")) as source:
        return json.load(source)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=KINDS)
    parser.add_argument("folder")
    parser.add_argument("--like", help="a small model of the same kind")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--layers", type=int, help="of each kind [all]")
    parser.add_argument("--parts", help="those to make weights for [all]")
    arguments = parser.parse_args()
    parts, like = KINDS[arguments.model]
    like = arguments.like or like or parser.error("--like is missing")
    wanted = arguments.parts.split(",") if arguments.parts else list(parts)
    unknown = [part for part in wanted if part not in parts]
    if unknown:
        parser.error(f"--parts {unknown[0]} is not one of {', '.join(parts)}")

    os.makedirs(arguments.folder, exist_ok=True)
    for entry in os.scandir(like):
        if entry.is_file():
            shutil.copy(entry.path, arguments.folder)
        elif entry.name not in parts:
            shutil.copytree(entry.path, os.path.join(arguments.folder, entry.name), dirs_exist_ok=True)
    if arguments.model == "flux":
        with open(os.path.join(arguments.folder, "scheduler", "scheduler_config.json"), "w") as out:
            json.dump(FLUX_SCHEDULE, out)
    random, total = Random() if arguments.random else None, 0
    for part in wanted:
        name, file = parts[part]
        with open(os.path.join(TABLES, name + ".json")) as source:
            table = json.load(source)
        folder = os.path.join(arguments.folder, part)
        os.makedirs(folder, exist_ok=True)
        config = table["config"]
        for layers, length in LAYERS.items():
            if arguments.layers and any(name.startswith(layers) for name in table["shapes"]):
                config[length] = arguments.layers
        # Tokens are the small tokenizer's.
        config |= {key: value for key, value in small_config(like, part).items() if key.endswith("_token_id")}
        with open(os.path.join(folder, "config.json"), "w") as out:
            json.dump(config, out)
        if "vision_config" in config:
            write_processor(folder if part == "." else os.path.join(arguments.folder, "processor"), config["vision_config"])
        tensors = [t for name, shape in table["shapes"].items() for t in unfold(name, shape, arguments.layers)]
        total += write_weights(os.path.join(folder, file), tensors, random)
    print(f"{arguments.folder}: {total / 1e9:.1f} GB in {len(wanted)} parts")


main()
