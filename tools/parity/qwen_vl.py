"""qwen2_5_vl_vision, qwen2_5_vl and image_processor: transformers' Qwen2.5-VL."""

import json
import tempfile
import warnings

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common import Case, image, randn, randomise, round_to_bf16, write_bf16, write_json
from text import config_of, token_ids

VISION = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "out_hidden_size": 28, "patch_size": 4,
    "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    "hidden_act": "silu",
}
"""Windows are 2 x 2 merged tokens wide, so that grids of odd size leave partial windows."""


def patches(seed, grid, config):
    count = sum(t * h * w for t, h, w in grid)
    return randn(seed, count, 3 * config.temporal_patch_size * config.patch_size**2)


def image_embeds(vision, pixel_values, image_grid_thw):
    return {"image_embeds": vision(pixel_values, grid_thw=image_grid_thw).pooler_output}


@torch.no_grad()
def make_vision():
    # As the vision class saves itself: its own config, its own names.
    model = randomise(Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION)), 201)
    grid = torch.tensor([[1, 6, 10], [1, 4, 4], [1, 2, 14]])
    case = Case("qwen2_5_vl_vision", "three_images")
    case.config(config_of(model))
    case.weights(model.state_dict())
    write_vision(case, model, 202, grid)

    # As a whole published checkpoint has it: a flat config and `visual.` names; bf16.
    config = published_config(text_config(vocab_size=40, num_hidden_layers=1), {
        **VISION, "depth": 2, "num_heads": 4, "patch_size": 2, "window_size": 12, "fullatt_block_indexes": [0],
    })
    model = round_to_bf16(randomise(load_published(config), 211)).model.visual
    case = Case("qwen2_5_vl_vision", "published_names_bf16")
    case.config(config)
    case.weights({f"visual.{name}": weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    write_vision(case, model, 212, torch.tensor([[1, 10, 8], [1, 12, 14]]))

    model = randomise(Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION)), 311)
    write_bf16(
        "qwen2_5_vl_vision", "computed_in_bf16", model, config_of(model), image_embeds,
        vision_inputs(model, 312, torch.tensor([[1, 6, 10], [1, 2, 14]])),
    )


def vision_inputs(model, seed, grid):
    return {"pixel_values": patches(seed, grid.tolist(), model.config), "image_grid_thw": grid}


def write_vision(case, model, seed, grid):
    inputs = vision_inputs(model, seed, grid)
    case.inputs(**inputs)
    case.outputs(image_embeds(model, **inputs))
    case.save()


IMAGE, START, END = 3, 4, 5
"""Special ids of the small vocabularies; words are drawn from 6 on, and 0 pads."""


def text_config(**config):
    return {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "bos_token_id": 1, "eos_token_id": 2, **config,
    }


def special_ids():
    return {
        "image_token_id": IMAGE, "video_token_id": 2, "vision_start_token_id": START, "vision_end_token_id": END,
    }


def published_config(text, vision):
    """The flat layout of the published checkpoints' config.json."""
    vision = {**vision, "in_chans": 3, "spatial_patch_size": vision["patch_size"], "tokens_per_second": 2}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 28, "tie_word_embeddings": False,
        **special_ids(), **text, "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
    }


def load_published(config):
    """The model that transformers builds from a published config.json, read from a file as users do."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/config.json", "w") as file:
            json.dump(config, file)
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).float()


def nested(seed, vision, tie_word_embeddings=False, **text):
    text = text_config(**text)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config={**VISION, "out_hidden_size": text["hidden_size"], **vision},
        tie_word_embeddings=tie_word_embeddings, **special_ids(),
    )
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed)


def prompt(seed, vocab, grids, words):
    """`words[0] <start> image.. <end> words[1] <start> image.. <end> ... words[-1]`, each a run of random words."""
    parts = [token_ids(seed, 6, vocab, words[0])]
    for index, (t, h, w) in enumerate(grids):
        parts += [torch.tensor([START] + [IMAGE] * (t * h * w // 4) + [END])]
        parts += [token_ids(seed + 1 + index, 6, vocab, words[index + 1])]
    return torch.cat(parts)


def pad(rows, side):
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
    return ids, mask


def model_inputs(model, ids, mask, grid, seed):
    pixel_values = patches(seed, grid, model.config.vision_config)
    return {
        "input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values, "image_grid_thw": torch.tensor(grid)
    }


def model_outputs(model, input_ids, attention_mask, pixel_values, image_grid_thw):
    tokens = (input_ids == model.config.image_token_id).int()
    position_ids, _ = model.model.get_rope_index(
        input_ids, tokens, image_grid_thw=image_grid_thw, attention_mask=attention_mask
    )
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, image_grid_thw=image_grid_thw,
        mm_token_type_ids=tokens,
    ).logits
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    return {"position_ids": position_ids, "logits": logits[torch.arange(len(input_ids)), last]}


@torch.no_grad()
def write_model(variant, model, config, ids, mask, grid, seed, dtype=torch.float32):
    inputs = model_inputs(model, ids, mask, grid, seed)
    case = Case("qwen2_5_vl", variant)
    case.config(config)
    case.weights({name: weight.to(dtype) for name, weight in saved_weights(model).items()})
    case.inputs(**inputs)
    case.outputs(model_outputs(model, **inputs))
    case.save()


def saved_weights(model):
    """The tensors under the names that `save_pretrained` writes, which are the published ones."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def make_model():
    # Grouped queries, one image per row, padded on the right, in transformers 5's nested config.
    model = nested(221, {})
    rows = [prompt(222, 97, [(1, 4, 6)], [3, 5]), prompt(232, 97, [(1, 6, 4)], [7, 12])]
    ids, mask = pad(rows, "right")
    write_model("one_image_right_padded", model, config_of(model), ids, mask, [(1, 4, 6), (1, 6, 4)], 223)

    # Two images of different sizes in a row, padded on the left, one head of keys, tied embeddings, head size 16.
    model = nested(
        241, {"depth": 2, "fullatt_block_indexes": [1]}, tie_word_embeddings=True, vocab_size=61, hidden_size=48,
        num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=40, rms_norm_eps=1e-5,
        rope_theta=10000.0, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
    )
    rows = [prompt(242, 61, [(1, 6, 10), (1, 4, 4)], [2, 3, 4]), prompt(252, 61, [(1, 2, 8), (1, 4, 2)], [1, 1, 9])]
    ids, mask = pad(rows, "left")
    grid = [(1, 6, 10), (1, 4, 4), (1, 2, 8), (1, 4, 2)]
    write_model("two_images_left_padded_tied", model, config_of(model), ids, mask, grid, 243)

    # The published flat config in bf16; a row of text alone beside a row with an image.
    config = published_config(text_config(num_hidden_layers=3, num_key_value_heads=4, vocab_size=79), {**VISION})
    model = round_to_bf16(randomise(load_published(config), 261))
    rows = [prompt(262, 79, [], [11]), prompt(272, 79, [(1, 4, 4), (1, 4, 4)], [4, 2, 6])]
    ids, mask = pad(rows, "right")
    write_model(
        "published_config_bf16", model, config, ids, mask, [(1, 4, 4), (1, 4, 4)], 263, torch.bfloat16
    )

    # Grouped queries under padding on either side, in bf16.
    for side, seed in [("left", 321), ("right", 331)]:
        model = nested(seed, {})
        rows = [prompt(seed + 1, 97, [(1, 4, 6)], [3, 5]), prompt(seed + 4, 97, [(1, 6, 4)], [7, 12])]
        inputs = model_inputs(model, *pad(rows, side), [(1, 4, 6), (1, 6, 4)], seed + 7)
        write_bf16(
            "qwen2_5_vl", f"{side}_padded_in_bf16", model, config_of(model), model_outputs, inputs,
            weights=saved_weights,
        )


def write_processor(variant, processor, config, pixels, tolerance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = processor(images=Image.fromarray(pixels.numpy()), return_tensors="pt")
    case = Case("image_processor", variant, tolerance=tolerance)
    write_json(case.path("config.json"), config)
    case.inputs(image=pixels)
    case.outputs(pixel_values=output["pixel_values"], image_grid_thw=output["image_grid_thw"])
    case.save()


PUBLISHED_PROCESSOR = {
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}
"""preprocessor_config.json of the published checkpoints, but for the pixel limits."""


ONE_LEVEL = 0.015
"""Tolerance: one of 256 levels, by which the two resamplers' roundings differ here and there."""


def picture(seed, height, width):
    """Away from 0 and 255, where overshoots are cut between the two passes, whose order is not the packages' promise."""
    return (image(seed, height, width).float() * 0.6 + 50).round().to(torch.uint8)


def make_processor():
    # Sides of 2.5 and 3.5 units: Python rounds halves to even. torchvision's antialiased bicubic.
    config = {**PUBLISHED_PROCESSOR, "min_pixels": 3136, "max_pixels": 12845056}
    processor = Qwen2VLImageProcessor(**config)
    write_processor("published_halves_to_even", processor, config, picture(281, 70, 98), ONE_LEVEL)

    # Too many pixels, shrunk by PIL's bicubic, with limits as transformers 5 writes them.
    config = {**PUBLISHED_PROCESSOR, "patch_size": 6, "size": {"shortest_edge": 576, "longest_edge": 4000}}
    processor = Qwen2VLImageProcessorPil(**config)
    write_processor("shrunk_by_pil", processor, config, picture(291, 103, 151), ONE_LEVEL)

    # Too few pixels, enlarged.
    config = {**PUBLISHED_PROCESSOR, "patch_size": 8, "min_pixels": 4096, "max_pixels": 100000}
    processor = Qwen2VLImageProcessor(**config)
    write_processor("enlarged", processor, config, picture(301, 21, 37), ONE_LEVEL)
